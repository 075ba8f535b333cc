"""BEGIN … COMMIT as a block, savepoints inside it, and an honest word where the outcome is unknown.

asyncpg's own Transaction object is not used: one that was interrupted in its start stays registered and turns the
next BEGIN into a SAVEPOINT. Here the commands go through `Connection.command` and the only state is the connection's
`depth`.

BEGIN, COMMIT and ROLLBACK are shielded from cancellation, each for at most `settle_seconds` (2 s), after which the
connection is dropped: a half-done BEGIN or COMMIT is worse than a late Cancelled.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import trio

from .errors import CommitOutcomeUnknown, ConnectionLost, InFailedSQLTransactionError

if TYPE_CHECKING:
    from .connection import Connection

_ISOLATION = {
    None: "",
    "read_committed": " ISOLATION LEVEL READ COMMITTED",
    "repeatable_read": " ISOLATION LEVEL REPEATABLE READ",
    "serializable": " ISOLATION LEVEL SERIALIZABLE",
}


class Transaction:
    """One block. `async with con.transaction() as con:`

    Leaving normally commits, leaving with an exception (`Cancelled` included) rolls back. A cancellation that the
    block did not notice does not stop the COMMIT: it arrives at the next checkpoint.

    Raises on entry: `ConnectionLost`, `RuntimeError` (a transaction begun by hand, or an isolation level for a
    savepoint). Raises on exit, where the block itself did not raise: `PostgresError` when the server refused the
    COMMIT (deferred constraint, serialization failure; class 25 where an error inside the block had been swallowed):
    rolled back. `ConnectionLost`: COMMIT was never sent, so nothing was kept. `CommitOutcomeUnknown`: COMMIT was sent
    and not answered.
    """

    __slots__ = ("_begin", "_connection", "_level")

    def __init__(
        self,
        connection: Connection,
        isolation: Literal["read_committed", "repeatable_read", "serializable"] | None,
        readonly: bool,
    ) -> None:
        if isolation not in _ISOLATION:
            raise ValueError(f"unknown isolation level {isolation!r}")
        self._connection = connection
        self._begin = _ISOLATION[isolation] + (" READ ONLY" if readonly else "")
        self._level = -1

    async def __aenter__(self) -> Connection:
        connection = self._connection
        assert self._level < 0, "a transaction block is entered once"
        level = connection.depth
        if level == 0:
            if connection.is_in_transaction():
                raise RuntimeError("a transaction begun with execute() is open on this connection")
            command = "BEGIN" + self._begin
            connection.xid = None
        else:
            if self._begin:
                raise RuntimeError("a nested transaction is a savepoint: it has no isolation or access mode of its own")
            command = f"SAVEPOINT s{level}"
        await trio.lowlevel.checkpoint_if_cancelled()
        await connection.command_uninterrupted(command)
        self._level = level
        connection.depth = level + 1
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        connection.depth = self._level
        if error is not None:
            await self._undo()
        elif connection.is_busy:
            connection.terminate()
            raise trio.BusyResourceError("a task of this transaction is still inside a verb")
        elif connection.is_closed():
            raise ConnectionLost("the connection was lost before COMMIT: nothing was kept")
        elif self._level:
            await connection.command_uninterrupted(f"RELEASE SAVEPOINT s{self._level}")
        else:
            await self._commit()

    async def _commit(self) -> None:
        connection = self._connection
        try:
            tag = await connection.command_uninterrupted("COMMIT")
        except ConnectionLost as lost:
            raise CommitOutcomeUnknown(f"COMMIT was sent, but: {lost}", xid=connection.xid) from lost
        if tag != "COMMIT":
            # The server's way of saying that a statement inside the block failed and somebody swallowed its error.
            raise InFailedSQLTransactionError(f"COMMIT was answered with {tag}: a statement in the block had failed")

    async def _undo(self) -> None:
        """Roll back. The block's own exception matters more than how this goes: if it fails, drop the connection."""
        connection = self._connection
        if connection.is_closed():
            return
        if connection.is_busy:  # another task is inside a verb: the session cannot be brought to rest from here
            connection.terminate()
            return
        command = (
            f"ROLLBACK TO SAVEPOINT s{self._level}; RELEASE SAVEPOINT s{self._level}" if self._level else "ROLLBACK"
        )
        try:
            await connection.command_uninterrupted(command)
        except Exception:
            connection.terminate()


async def roll_back_leftovers(connection: Connection) -> None:
    """End a transaction that its user left open, for the pool; afterwards the connection is at rest or closed."""
    connection.depth = 0
    transaction = Transaction(connection, None, False)
    transaction._level = 0
    with contextlib.suppress(ConnectionLost):
        await transaction._undo()
