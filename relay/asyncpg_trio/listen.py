"""LISTEN as a block with notifications to await or iterate over.

In: NotificationResponse messages, read by the task that waits in `receive()` or, in passing, by its queries. Out:
`Notification` values in the server's order. No task and no callback: while nobody waits here, nothing is read, and
what the server sends stays in the socket. A death of the connection ends the wait with `ConnectionLost`; a network
that swallows everything does not (send yourself a notification from time to time and put a deadline on its arrival).
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from .driver import quote_identifier
from .errors import ConnectionLost, PostgresError

if TYPE_CHECKING:
    from .connection import Connection


@dataclass(frozen=True, slots=True)
class Notification:
    """One NOTIFY: at most 8 000 bytes of payload; `pid` is the sender's backend."""

    channel: str
    payload: str
    pid: int


class Notifications:
    """What a connection hears between LISTEN and UNLISTEN. One block a connection at a time.

    Inside a transaction LISTEN takes effect at its COMMIT only, so that is refused.
    """

    __slots__ = ("_channels", "_connection", "_queue")

    def __init__(self, connection: Connection, channels: tuple[str, ...]) -> None:
        if not channels:
            raise ValueError("listen() needs at least one channel")
        self._connection = connection
        self._channels = channels
        self._queue: collections.deque[tuple[str, str, int]] = collections.deque()

    async def __aenter__(self) -> Self:
        connection = self._connection
        if connection.is_in_transaction():
            raise RuntimeError("LISTEN inside a transaction would only begin at its COMMIT")
        connection.start_hearing(self._queue)
        try:
            await connection.command("; ".join(f"LISTEN {quote_identifier(channel)}" for channel in self._channels))
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        connection = self._connection
        try:
            if connection.is_busy:
                connection.terminate()
            elif not connection.is_closed():
                await connection.command_uninterrupted("UNLISTEN *")
        except (PostgresError, ConnectionLost):
            connection.terminate()
        finally:
            connection.stop_hearing()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Notification:
        return await self.receive()

    async def receive(self) -> Notification:
        """Wait for the next notification.

        Raises ConnectionLost. Cancellation loses nothing.
        """
        if self._queue:
            await trio.lowlevel.checkpoint()
        else:
            await self._wait()
        return Notification(*self._queue.popleft())

    async def receive_many(self) -> list[Notification]:
        """Wait for at least one notification and return all that one read of the socket brought (≤ 256 KiB)."""
        if self._queue:
            await trio.lowlevel.checkpoint()
        else:
            await self._wait()
        batch = [Notification(*fields) for fields in self._queue]
        self._queue.clear()
        return batch

    def receive_nowait(self) -> Notification:
        """Return the next notification that has been read already. Raises trio.WouldBlock."""
        if not self._queue:
            raise trio.WouldBlock
        return Notification(*self._queue.popleft())

    async def _wait(self) -> None:
        while not self._queue:
            await self._connection.wait_message()
