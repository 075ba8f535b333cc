"""Stored events of a subscription, page by page, as of one moment.

In: the filters of a REQ and what its caller may read. Out: pages of rows in the order of the filters, each event once.
A page is one short statement; no connection is held while its rows are being sent, however slow the client.

Theory: the first statement also returns its snapshot. Rows that a later page finds and that this snapshot does not show
are left out: they were committed after the subscription was registered, so they come live. What it does show, and only
that, is left out there. So each event comes once, although neither side waits for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import trio

from relay.asyncpg_trio import Connection
from relay.config import Settings
from relay.nostr.filter import Filter
from relay.query.conditions import Reach
from relay.query.sql import Cursor, Selection, select
from relay.store.snapshot import Snapshot

PAGE_ROWS: Final = 500

new_tuple: Final = tuple.__new__


class Database(Protocol):
    """A pool."""

    async def fetch(self, query: str, *args: Any) -> Sequence[Any]: ...

    def transaction(self, *, readonly: bool = False) -> AbstractAsyncContextManager[Connection]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows per filter without and at most with `limit`, rows per statement, and the time a statement may take."""

    rows_default: int = 500
    rows_max: int = 10_000
    page_rows: int = PAGE_ROWS
    statement_seconds: float = 10.0

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        return cls(settings.default_limit, settings.max_limit, statement_seconds=settings.statement_seconds)


class Row(NamedTuple):
    """One stored event: its id, its JSON as it goes into a frame, and where it is filed. A tuple, because a page makes
    hundreds of them."""

    id: bytes
    json: bytes
    channel_id: str | None
    created_at: int


class Pages:
    """`async for page in pages(...)`: lists of rows, never empty. `snapshot` is None until a statement was made; it
    stays None where no filter can match anything, and then nothing was shown.

    Raises:
        StoreError, or what the driver raises: a page could not be read.
        trio.TooSlowError: it took longer than `Limits.statement_seconds`.
    """

    def __init__(self, db: Database, filters: Sequence[Filter], reach: Reach, limits: Limits, now: int) -> None:
        self._db = db
        self._limits = limits
        chosen = [
            select(wanted, reach, now=now, limit_default=limits.rows_default, limit_max=limits.rows_max)
            for wanted in filters
        ]
        self._selections = [selection for selection in reversed(chosen) if selection is not None]
        # An event is sent once, however many filters find it; with one filter it cannot be found twice.
        self._sent: set[bytes] | None = set() if len(self._selections) > 1 else None
        self._after: Cursor | None = None
        self._rows_left = self._selections[-1].limit if self._selections else 0
        self.snapshot: Snapshot | None = None

    def __aiter__(self) -> Pages:
        return self

    async def __anext__(self) -> list[Row]:
        while self._selections:
            rows = await self._next_page(self._selections[-1])
            if rows:
                return rows
        await trio.lowlevel.checkpoint()
        raise StopAsyncIteration

    async def _next_page(self, selection: Selection) -> list[Row]:
        """What the next statement gives, perhaps nothing; goes on to the next filter when this one is done."""
        wanted = min(self._limits.page_rows, self._rows_left)
        first = self.snapshot is None
        statement, arguments = selection.page(wanted, self._after, with_snapshot=first)
        with trio.fail_after(self._limits.statement_seconds):
            records = await self._db.fetch(statement, *arguments)
        if first:
            self.snapshot = Snapshot.parse(records[0]["snapshot"])
            records = [record for record in records if record["id"] is not None]
        accepted, rows = self._accept(records, selection, check_snapshot=not first)
        self._rows_left -= accepted
        if len(records) < wanted or self._rows_left == 0:
            self._selections.pop()
            self._after = None
            self._rows_left = self._selections[-1].limit if self._selections else 0
        else:
            self._after = (records[-1]["created_at"], records[-1]["id"])
        return rows

    def _accept(self, records: Sequence[Any], selection: Selection, *, check_snapshot: bool) -> tuple[int, list[Row]]:
        """How many rows count against the filter's limit, and those of them that were not sent before."""
        snapshot, sent, check = self.snapshot, self._sent, selection.check
        assert snapshot is not None
        if check_snapshot:
            records = [record for record in records if snapshot.shows_row(record["xmin32"])]
        # By position: looking a column up by its name costs as much as everything else here. And past the constructor
        # that NamedTuple makes in Python, which costs a third of this line.
        rows = [new_tuple(Row, record[:4]) for record in records]
        if check is not None:
            rows = check(rows)
        if sent is None:
            return len(rows), rows
        fresh = [row for row in rows if row.id not in sent]
        sent.update(row.id for row in fresh)
        return len(rows), fresh


def pages(db: Database, filters: Sequence[Filter], reach: Reach, limits: Limits, *, now: int) -> Pages:
    """The stored events that match any of the filters: for each filter in turn its newest, at most `limit` of them,
    `created_at` descending, of equals the lowest id first. Left out: what was deleted, and what has expired at `now`
    (seconds)."""
    return Pages(db, filters, reach, limits, now)
