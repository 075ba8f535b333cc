"""The stored events of some filters as one list, for a door that answers once and keeps nothing open.

In: filters, each perhaps with the place behind which it goes on, and what their caller may read. Out: rows in the order
of the filters, each event once. The same statements as in a replay, without its snapshot: nothing comes live here, so
what is committed between two pages may as well be shown.

An answer is held in memory until its client has read it, so it is bounded in bytes, and so are all of them together.
One that is larger is refused and not cut: a client takes a short page for the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import trio

from relay.nostr.filter import Filter
from relay.query.conditions import Reach
from relay.query.replay import Database, Limits, Row, new_tuple
from relay.query.sql import Cursor, Selection, select

# Thirty thousand messages of usual size, or sixty of the largest (256 KiB).
ANSWER_BYTES_MAX: Final = 16 << 20
# Of all answers that are being made or read. An answer is in memory up to three times: rows, body, what is written.
ANSWERS_BYTES_MAX: Final = 128 << 20
# Of each answer that many are not counted, so that a few who read slowly do not keep everybody from small ones.
FREE_BYTES: Final = 64 << 10


class AnswerTooLarge(Exception):
    """The rows found have more bytes than one answer may."""


class AnswersTooLarge(Exception):
    """All answers together have more bytes than they may; later they may have less."""


class Answers:
    """The memory of all answers of a process: `held` bytes, each of them of a `Gathered` that was not released yet."""

    def __init__(self, each_max: int = ANSWER_BYTES_MAX, all_max: int = ANSWERS_BYTES_MAX) -> None:
        self.each_max = each_max
        self.all_max = all_max
        self.held = 0

    def begin(self) -> Gathered:
        return Gathered(self)


class Gathered:
    """Rows as they are found: each event once, and not more of them than one answer, and all of them, may hold. Whoever
    has begun it calls `release` when its client has read it, or will not."""

    def __init__(self, answers: Answers) -> None:
        self.rows: list[Row] = []
        self._ids: set[bytes] = set()
        self._answers = answers
        self._bytes = 0
        self._held = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Raises AnswerTooLarge, AnswersTooLarge."""
        for row in rows:
            if row.id not in self._ids:
                self._ids.add(row.id)
                self.rows.append(row)
                self._bytes += len(row.json)
        if self._bytes > self._answers.each_max:
            raise AnswerTooLarge
        self._hold(max(0, self._bytes - FREE_BYTES))

    def release(self) -> None:
        self._hold(0)

    def _hold(self, count: int) -> None:
        more = count - self._held
        if more > 0 and self._answers.held + more > self._answers.all_max:
            raise AnswersTooLarge
        self._answers.held += more
        self._held = count


async def gather(
    db: Database,
    filters: Sequence[tuple[Filter, Cursor | None]],
    reach: Reach,
    limits: Limits,
    found: Gathered,
    *,
    now: int,
) -> None:
    """Adds for each filter in turn its newest events behind its cursor, at most `limit`: `created_at` descending, of
    equals the lowest id first. Left out: what was deleted, and what has expired at `now` (seconds).

    Raises:
        AnswerTooLarge, AnswersTooLarge: They are more than `found` takes.
        StoreError, or what the driver raises: A page could not be read.
        trio.TooSlowError: It took longer than `Limits.statement_seconds`.
    """
    await trio.lowlevel.checkpoint()
    for wanted, after in filters:
        selection = select(
            wanted, reach, now=now, limit_default=limits.rows_default, limit_max=limits.rows_max
        )  # fmt: skip
        if selection is not None:
            await _gather_one(db, selection, after, limits, found)


async def _gather_one(
    db: Database, selection: Selection, after: Cursor | None, limits: Limits, found: Gathered
) -> None:  # fmt: skip
    left = selection.limit
    while left > 0:
        wanted = min(left, limits.page_rows)
        statement, arguments = selection.page(wanted, after)
        with trio.fail_after(limits.statement_seconds):
            records = await db.fetch(statement, *arguments)
        rows = [new_tuple(Row, record[:4]) for record in records]
        if selection.check is not None:
            rows = selection.check(rows)
        found.add(rows)
        left -= len(rows)
        if len(records) < wanted:
            return
        after = (records[-1]["created_at"], records[-1]["id"])
