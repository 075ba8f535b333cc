"""An outbox and a log in memory, for the tests in which Trio's clock is the mock one and no real socket may wait.

It stands in for `relay.audit.sink.PoolSink` and runs the same suite as that one (`test_sink.py`), so what the worker's
tests prove with it they prove for the database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from relay.asyncpg_trio import ConnectionLost
from relay.audit.chain import GENESIS, ChainedEntry, link
from relay.audit.entry import Action, Entry, new_entry
from relay.audit.log import BATCH_ENTRIES_MAX, Batch
from relay.audit.outbox import Oldest


def entry(number: int, **fields) -> Entry:
    """Entry number `number`; its uuid says so, which makes failures readable."""
    fields = {"time_us": 1_767_225_600_000_000 + number, "uuid": f"00000000-0000-4000-8000-{number:012x}", **fields}
    return new_entry(fields.pop("action", Action.EVENT_CREATED), **fields)


def entries(first: int, count: int) -> list[Entry]:
    return [entry(number) for number in range(first, first + count)]


async def _at_once() -> None:
    await trio.lowlevel.checkpoint()


class MemoryDatabase:
    """What two nodes would share."""

    def __init__(self) -> None:
        self.outbox: dict[int, Entry] = {}
        self.log: list[ChainedEntry] = []
        self.lock = trio.Lock()
        self._next_id = 1

    def commit(self, some: Sequence[Entry]) -> None:
        for one in some:
            assert all(one.uuid != other.uuid for other in self.outbox.values())
            self.outbox[self._next_id] = one
            self._next_id += 1

    @property
    def chained(self) -> list[Entry]:
        return [row.entry for row in self.log]


class MemorySink:
    """`before` runs inside the transaction, `after` once it is committed: where a test delays, fails or cuts."""

    def __init__(
        self,
        database: MemoryDatabase | None = None,
        *,
        entries_max: int = BATCH_ENTRIES_MAX,
        before: Callable[[], Awaitable[object]] = _at_once,
        after: Callable[[], Awaitable[object]] = _at_once,
    ) -> None:
        self.database = MemoryDatabase() if database is None else database
        self.before = before
        self.after = after
        self.aborted = 0
        self.batches: list[int] = []
        self._entries_max = entries_max
        self._scope: trio.CancelScope | None = None

    async def chain_batch(self) -> Batch:
        with trio.CancelScope() as self._scope:
            async with self.database.lock:
                await self.before()
                batch = self._move()
            await self.after()
            return batch
        raise ConnectionLost("aborted")

    async def oldest(self) -> Oldest | None:
        await trio.lowlevel.checkpoint()
        ids = sorted(self.database.outbox)
        return Oldest(ids[0], 0.0) if ids else None

    def abort(self) -> None:
        self.aborted += 1
        if self._scope is not None:
            self._scope.cancel()

    def _move(self) -> Batch:
        database = self.database
        prev = database.log[-1].head if database.log else GENESIS
        ids = sorted(database.outbox)[: self._entries_max]
        taken = [database.outbox.pop(one) for one in ids]
        known = {row.entry.uuid for row in database.log}
        rows = link(prev, [one for one in taken if one.uuid not in known])
        database.log += rows
        self.batches.append(len(rows))
        head = rows[-1].head if rows else prev
        return Batch(tuple(one.uuid for one in taken), len(rows), prev, head, len(taken) == self._entries_max)
