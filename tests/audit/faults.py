"""A pool whose connections fail once, at a named step, in a named way: what the fault matrix is made of.

The database behind it is a real one. A fault is one of

    fail      the step did not happen, and its caller gets an error
    applied   it happened, and its caller gets an error all the same
    hang      it happened, and no answer ever comes: the caller's own deadline ends it
"""

from __future__ import annotations

from contextlib import asynccontextmanager

import trio

from relay.asyncpg_trio.errors import CommitOutcomeUnknown, ConnectionLost, QueryCanceledError
from relay.audit import checkpoints, log, outbox

MODES = ("fail", "applied", "hang")
STATEMENTS = {
    "lock": log._LOCK,
    "head": log._HEAD,
    "take": log._TAKE,
    "insert": log._INSERT,
    "outbox": outbox._INSERT_MISSING,
    "checkpoint": checkpoints._INSERT,
}


class Fault:
    """Happens once. `met` says that the step was reached: a cell whose fault never happened proves nothing."""

    def __init__(self, step: str, mode: str) -> None:
        self.step, self.mode = step, mode
        self.met = False

    def due(self, step: str | None) -> bool:
        if step != self.step or self.met:
            return False
        self.met = True
        return True


class FaultyPool:
    def __init__(self, pool, fault: Fault) -> None:
        self._pool, self._fault = pool, fault

    @asynccontextmanager
    async def acquire(self):
        async with self._pool.acquire() as con:
            yield FaultyConnection(con, self._fault)


class FaultyConnection:
    def __init__(self, con, fault: Fault) -> None:
        self._con, self._fault = con, fault

    def terminate(self) -> None:
        self._con.terminate()

    def is_closed(self) -> bool:
        return self._con.is_closed()

    def transaction(self, **options):
        return FaultyTransaction(self._con, self._con.transaction(**options), self._fault)

    async def execute(self, query, *args):
        return await self._do(query, self._con.execute, args)

    async def fetch(self, query, *args):
        return await self._do(query, self._con.fetch, args)

    async def fetchrow(self, query, *args):
        return await self._do(query, self._con.fetchrow, args)

    async def fetchval(self, query, *args):
        return await self._do(query, self._con.fetchval, args)

    async def _do(self, query, verb, args):
        step = next((name for name, text in STATEMENTS.items() if text == query), None)
        if not self._fault.due(step):
            return await verb(query, *args)
        if self._fault.mode == "fail":
            raise QueryCanceledError("as if the server had said so")
        await verb(query, *args)
        if self._fault.mode == "hang":
            await trio.sleep_forever()
        self._con.terminate()
        raise ConnectionLost("as if the answer had not come")


class FaultyTransaction:
    def __init__(self, con, transaction, fault: Fault) -> None:
        self._con, self._transaction, self._fault = con, transaction, fault

    async def __aenter__(self):
        if not self._fault.due("begin"):
            return await self._transaction.__aenter__()
        if self._fault.mode != "fail":
            await self._transaction.__aenter__()
        if self._fault.mode == "hang":
            await trio.sleep_forever()
        self._con.terminate()
        raise ConnectionLost("as if BEGIN had not been answered")

    async def __aexit__(self, kind, error, trace):
        if error is not None or not self._fault.due("commit"):
            return await self._transaction.__aexit__(kind, error, trace)
        if self._fault.mode == "fail":
            await self._con.command_uninterrupted("ROLLBACK")
        else:
            await self._transaction.__aexit__(None, None, None)
        if self._fault.mode == "hang":
            # A COMMIT is not cancelled: the connection itself gives up after its own time.
            with trio.move_on_after(0.02, shield=True):
                await trio.sleep_forever()
        self._con.terminate()
        raise CommitOutcomeUnknown("as if COMMIT had not been answered")
