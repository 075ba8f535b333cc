"""What the worker writes to: the database, seen as "chain one batch of what the outbox holds".

`PoolSink` owns at most one connection of the audit pool at a time and knows what the worker need not: transactions,
and what became of a commit whose answer never came. Nothing here retries; every call either returns or raises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol

import trio

from relay.asyncpg_trio import Connection, Pool
from relay.asyncpg_trio.errors import (
    CommitOutcomeUnknown,
    ConnectionLost,
    LockNotAvailableError,
    PoolTimeout,
    PostgresError,
)
from relay.audit import log, outbox
from relay.audit.log import BATCH_ENTRIES_LIMIT, BATCH_ENTRIES_MAX, Batch
from relay.audit.outbox import Oldest

# What a database does to us when it is away, overloaded or restarting: the worker tries again, for ever. Anything else
# (wrong arguments, a pool closed under a living worker) is a bug of ours and ends the process. TooSlowError: the
# worker's own deadline for a batch.
RETRIED: tuple[type[Exception], ...] = (
    PostgresError,
    ConnectionLost,
    CommitOutcomeUnknown,
    PoolTimeout,
    OSError,
    trio.TooSlowError,
)


# A server that was killed forgets the ids whose work was not on the disk yet: one that it has not given out (again) is
# an error to pg_xact_status, and would fail our transaction and every one after it.
_COMMITTED = """
SELECT CASE WHEN xid < pg_snapshot_xmax(pg_current_snapshot()) THEN pg_xact_status(xid) = 'committed' ELSE false END
FROM (SELECT $1::text::xid8) AS doubt (xid)
"""


class Sink(Protocol):
    """Where the worker's batches go."""

    async def chain_batch(self) -> Batch:
        """Chain what the outbox holds, up to one batch, and commit.

        Raises:
            RETRIED: it did not work, or nobody knows whether it did; calling again is always right.
        """

    async def oldest(self) -> Oldest | None:
        """The entry that would be chained next."""

    def abort(self) -> None:
        """Drop the connection in use at once, in mid-statement, without a farewell to the server."""


class PoolSink:
    """The sink that is a database. For one worker: its calls do not overlap."""

    def __init__(self, pool: Pool, *, entries_max: int = BATCH_ENTRIES_MAX) -> None:
        assert 0 < entries_max <= BATCH_ENTRIES_LIMIT
        self._pool = pool
        self._entries_max = entries_max
        self._connection: Connection | None = None
        self._in_doubt: Batch | None = None  # its COMMIT was sent and never answered
        # After a lock timeout, and while rows are held: the others must not wait for whoever holds those.
        self._skip_locked = False
        self._held = 0

    async def chain_batch(self) -> Batch:
        batch: Batch | None = None
        try:
            async with self._acquire() as con, con.transaction(isolation="read_committed"):
                batch = await log.chain_batch(con, entries_max=self._entries_max, skip_locked=self._skip_locked)
                recovered = await self._recovered(con)
        except CommitOutcomeUnknown:
            # A second doubt buries the first: it is only about a counter, the outbox decides what is chained.
            self._in_doubt = batch
            raise
        except LockNotAvailableError:
            self._skip_locked = True
            raise
        self._in_doubt = None
        if not batch.full:
            self._note_held(batch)
        return replace(batch, written=batch.written + recovered)

    async def oldest(self) -> Oldest | None:
        async with self._acquire() as con:
            return await outbox.oldest(con)

    def abort(self) -> None:
        if self._connection is not None:
            self._connection.terminate()

    def _note_held(self, batch: Batch) -> None:
        self._skip_locked = bool(batch.held)
        if len(batch.held) != self._held:  # once, and not every second for as long as it lasts
            self._held = len(batch.held)
            log.warn_of_held(batch)

    async def _recovered(self, con: Connection) -> int:
        """How many entries the batch in doubt had written: all of them or none.

        We hold the advisory lock, so its transaction is over. The log itself could not tell: had another writer chained
        the same entries behind the same head, every hash would be the same.
        """
        doubt = self._in_doubt
        if doubt is None or doubt.xid is None:
            return 0
        return doubt.written if await con.fetchval(_COMMITTED, doubt.xid) else 0

    @asynccontextmanager
    async def _acquire(self) -> AsyncIterator[Connection]:
        assert self._connection is None, "one call at a time"
        async with self._pool.acquire() as con:
            self._connection = con
            try:
                yield con
            finally:
                self._connection = None
