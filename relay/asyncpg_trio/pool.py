"""A bounded pool of connections, lent last-in first-out.

In: tasks that want a connection for a verb or a block. Out: at most `size_max` of them at a time, the rest in line
(first come, first served) for at most `acquire_seconds`. Last-in first-out keeps few connections warm and lets the
others grow old.

A verb on the pool itself is bounded by `statement_seconds`: the server's own `statement_timeout` says nothing where
the server, or the way to it, has stopped. In a block (`acquire`, `transaction`) deadlines belong to the caller.

No task of its own: a connection's age and idleness are looked at when it is lent or given back. A returned connection
is not reset (that would halve the throughput) except that a transaction left open is rolled back; session settings
that a user changes stay changed, so use SET LOCAL. Before lending, the socket is peeked at, so that a server restart
costs no user an error.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import trio

from .connect import connect
from .connection import Connection, Isolation
from .driver import Record
from .errors import PoolClosed, PoolTimeout, StatementTimeout
from .transaction import roll_back_leftovers

_CLOSE_GRACE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A reading of the pool. `size` is idle + in_use; the totals only grow.

    `starved_seconds_ago`: how long ago a task was last turned away without a connection; infinite if never.
    """

    name: str
    size: int
    idle: int
    in_use: int
    waiting: int
    opened_total: int
    acquire_timeouts_total: int
    wait_seconds_total: float
    statements_total: int
    statement_timeouts_total: int
    starved_seconds_ago: float


class Pool:
    """`async with Pool(dsn) as pool`, or `open()` and `aclose()`."""

    def __init__(
        self,
        dsn: str,
        *,
        size_max: int = 20,
        size_min: int = 2,
        acquire_seconds: float = 3.0,
        statement_seconds: float = math.inf,
        lifetime_seconds: float = 1800.0,
        idle_seconds: float = 600.0,
        server_settings: dict[str, str] | None = None,
        name: str = "main",
        on_statement: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        **connect_options: Any,
    ) -> None:
        """Open nothing yet. `clock` measures ages, `connect_options` go to `connect()`, `size_max` caps `size_min`."""
        if size_min < 0 or size_max < 1:
            raise ValueError(f"a pool of {size_min} to {size_max} connections makes no sense")
        self.name = name
        self._dsn = dsn
        self._size_max = size_max
        self._size_min = min(size_min, size_max)
        self._acquire_seconds = acquire_seconds
        self._statement_seconds = statement_seconds
        self._lifetime_seconds = lifetime_seconds
        self._idle_seconds = idle_seconds
        self._connect_options = {"server_settings": server_settings, **connect_options}
        self._clock = clock
        self._on_statement = on_statement
        self._slots = trio.Semaphore(size_max, max_value=size_max)
        self._idle: list[Connection] = []
        self._lent: set[Connection] = set()
        self._closed = False
        self._waiting = 0
        self._opened_total = 0
        self._acquire_timeouts_total = 0
        self._wait_seconds_total = 0.0
        self._statements_gone = 0
        self._statement_timeouts_total = 0
        self._starved_at = -math.inf

    # ---- life

    async def open(self) -> None:
        """Open `size_min` connections, so that a wrong DSN shows now. Raises what `connect()` raises."""
        while len(self._idle) + len(self._lent) < self._size_min:
            connection = await self._connect()
            connection.idle_since = self._clock()
            self._idle.append(connection)

    async def aclose(self) -> None:
        """Lend no more, wait up to 2 s for what is lent, close politely; what then is left is terminated.

        Cancellation: terminates everything.
        """
        self._closed = True
        held = 0
        try:
            with trio.move_on_after(_CLOSE_GRACE_SECONDS):
                # Whoever holds every slot knows that nothing is lent. Tasks in line before us find the pool closed.
                while held < self._size_max and self._lent:
                    await self._slots.acquire()
                    held += 1
                while self._idle:
                    await self._forget(self._idle.pop()).close()
        finally:
            self.abort()
            for _ in range(held):
                self._slots.release()

    close = aclose

    def abort(self) -> None:
        """Terminate every connection at once, those in use included: their tasks get `ConnectionLost`."""
        self._closed = True
        for connection in (*self._idle, *self._lent):
            connection.terminate()
        while self._idle:
            self._forget(self._idle.pop())

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # ---- the verbs

    async def fetch(self, query: str, *args: Any) -> list[Record]:
        """`Connection.fetch` on any connection.

        Raises (each verb): what `acquire` and the connection's verb raise; StatementTimeout.
        """
        connection = await self._take()
        try:
            with trio.move_on_after(self._statement_seconds):
                return await connection.fetch(query, *args)
            raise self._too_slow()
        finally:
            await self._give(connection)

    async def fetchrow(self, query: str, *args: Any) -> Record | None:
        """`Connection.fetchrow` on any connection."""
        connection = await self._take()
        try:
            with trio.move_on_after(self._statement_seconds):
                return await connection.fetchrow(query, *args)
            raise self._too_slow()
        finally:
            await self._give(connection)

    async def fetchval(self, query: str, *args: Any, column: int = 0) -> Any:
        """`Connection.fetchval` on any connection."""
        connection = await self._take()
        try:
            with trio.move_on_after(self._statement_seconds):
                return await connection.fetchval(query, *args, column=column)
            raise self._too_slow()
        finally:
            await self._give(connection)

    async def execute(self, query: str, *args: Any) -> str:
        """`Connection.execute` on any connection."""
        connection = await self._take()
        try:
            with trio.move_on_after(self._statement_seconds):
                return await connection.execute(query, *args)
            raise self._too_slow()
        finally:
            await self._give(connection)

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[Connection, None]:
        """Borrow a connection for a block.

        Raises `PoolTimeout` after `acquire_seconds` (waiting and connecting together), `PoolClosed`, and what
        `connect()` raises where a new connection was needed.
        """
        connection = await self._take()
        try:
            yield connection
        finally:
            await self._give(connection)

    @asynccontextmanager
    async def transaction(
        self, *, isolation: Isolation | None = None, readonly: bool = False
    ) -> AsyncGenerator[Connection, None]:
        """Borrow a connection for one transaction. Raises as `acquire()` and `Transaction` do."""
        connection = await self._take()
        try:
            async with connection.transaction(isolation=isolation, readonly=readonly):
                yield connection
        finally:
            await self._give(connection)

    def statistics(self) -> PoolStatistics:
        """Return the pool's numbers now."""
        connections = (*self._idle, *self._lent)
        return PoolStatistics(
            name=self.name,
            size=len(connections),
            idle=len(self._idle),
            in_use=len(self._lent),
            waiting=self._waiting,
            opened_total=self._opened_total,
            acquire_timeouts_total=self._acquire_timeouts_total,
            wait_seconds_total=self._wait_seconds_total,
            statements_total=self._statements_gone + sum(each.statements for each in connections),
            statement_timeouts_total=self._statement_timeouts_total,
            starved_seconds_ago=self._clock() - self._starved_at,
        )

    def _too_slow(self) -> StatementTimeout:
        self._statement_timeouts_total += 1
        return StatementTimeout(f"no answer within {self._statement_seconds} s")

    # ---- lending

    async def _take(self) -> Connection:
        # The common case waits for nothing: a whole turn of the scheduler would cost as much as a tenth of a query,
        # and the verb that follows is a checkpoint anyway.
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise PoolClosed(f"the pool {self.name!r} is closed")
        if self._slots.value:
            self._slots.acquire_nowait()
            if (connection := self._pop_usable(from_hand_to_hand=False)) is not None:
                self._lent.add(connection)
                return connection
            return await self._take_new(self._acquire_seconds)
        started = self._clock()
        await self._wait_in_line()
        waited = self._clock() - started
        self._wait_seconds_total += waited
        # All were in use a moment ago: what is there now has not been idle, so the system call for the peek is saved.
        if (connection := self._pop_usable(from_hand_to_hand=True)) is not None:
            self._lent.add(connection)
            return connection
        return await self._take_new(self._acquire_seconds - waited)

    async def _wait_in_line(self) -> None:
        self._waiting += 1
        try:
            with trio.move_on_after(self._acquire_seconds) as scope:
                await self._slots.acquire()
        finally:
            self._waiting -= 1
        if scope.cancelled_caught:
            self._wait_seconds_total += self._acquire_seconds
            raise self._starved(f"no connection of the pool {self.name!r} came free within {self._acquire_seconds} s")
        if self._closed:
            self._slots.release()
            raise PoolClosed(f"the pool {self.name!r} is closed")

    def _starved(self, text: str) -> PoolTimeout:
        self._acquire_timeouts_total += 1
        self._starved_at = self._clock()
        return PoolTimeout(text)

    def _pop_usable(self, *, from_hand_to_hand: bool) -> Connection | None:
        now = self._clock()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.opened_at < self._lifetime_seconds and (from_hand_to_hand or connection.is_alive()):
                return connection
            self._forget(connection).terminate()
        return None

    async def _take_new(self, within_seconds: float) -> Connection:
        """Open a connection for the slot that we hold; the slot is given back if that fails."""
        try:
            with trio.move_on_after(max(0.0, within_seconds)):
                connection = await self._connect()
                if not self._closed:
                    self._lent.add(connection)
                    return connection
                self._forget(connection).terminate()
                raise PoolClosed(f"the pool {self.name!r} is closed")
            raise self._starved(f"no new connection for the pool {self.name!r} within {self._acquire_seconds} s")
        except BaseException:
            self._slots.release()
            raise

    async def _connect(self) -> Connection:
        connection = await connect(self._dsn, **self._connect_options)
        connection.opened_at = self._clock()
        connection.on_statement = self._on_statement
        self._opened_total += 1
        return connection

    async def _give(self, connection: Connection) -> None:
        """Take a connection back. No checkpoint, except for a transaction that was left open."""
        try:
            if not connection.is_at_rest() and not connection.is_closed() and not self._closed:
                await roll_back_leftovers(connection)
        finally:
            self._lent.discard(connection)
            now = self._clock()
            if self._closed or not connection.is_at_rest() or now - connection.opened_at >= self._lifetime_seconds:
                self._forget(connection).terminate()
            else:
                connection.idle_since = now
                self._idle.append(connection)
            self._drop_long_idle(now)
            self._slots.release()

    def _drop_long_idle(self, now: float) -> None:
        """Last-in first-out leaves the longest idle at the front: close those too long there, down to `size_min`."""
        while (
            len(self._idle) + len(self._lent) > self._size_min
            and self._idle
            and now - self._idle[0].idle_since >= self._idle_seconds
        ):
            self._forget(self._idle.pop(0)).terminate()

    def _forget(self, connection: Connection) -> Connection:
        self._statements_gone += connection.statements
        return connection
