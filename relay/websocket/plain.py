"""Plain HTTP on a connection of the shared port: our own refusals, and the stream that Hypercorn gets.

Flows in: an accepted socket whose first request head has been read. Flows out: a short answer and the end (`refuse`),
or a stream for Hypercorn (`HttpStream`) that differs from the socket's in three points: its input begins with what was
read already, a head that has begun must end in time, and output does not wait for ever. Both run in the connection's
task.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Callable
from http import HTTPStatus

import orjson
import trio

from relay.fanout.linger import linger
from relay.websocket.head import Refusal

__all__ = ["HttpStream", "refuse"]

REFUSE_SECONDS = 2.0
# How often a blocked write looks whether the server stops.
SLICE_SECONDS = 0.25
# close() then resets the connection, and the kernel forgets the bytes that nobody reads.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


async def refuse(stream: trio.SocketStream, refusal: Refusal) -> None:
    """Answer, and see the peer off. Does not close the stream."""
    body = orjson.dumps({"error": refusal.error})
    lines = [
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name}: {value}" for name, value in refusal.headers),
    ]
    with trio.move_on_after(REFUSE_SECONDS):
        try:
            await stream.send_all("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        await linger(stream)


class HttpStream:
    """What Hypercorn's TCP server uses of a SocketStream.

    Hypercorn sends inside a shield without a deadline: one client that stops reading would keep the process alive for
    ever. Here a send ends when the peer has taken nothing for `stall_seconds`, and `stop_seconds` after the server
    began to stop, whatever the peer does. The connection is reset then.

    The head of a later request (the first has been read before) is the end of the input where it takes longer than
    `head_seconds`; `in_head` says whether a part of one has come. Hypercorn's own deadline is that of idleness."""

    def __init__(
        self,
        stream: trio.SocketStream,
        *,
        first: bytes = b"",
        in_head: Callable[[], bool] = lambda: False,
        head_seconds: float = math.inf,
        stopping: Callable[[], bool],
        stall_seconds: float,
        stop_seconds: float,
    ) -> None:
        self.socket = stream.socket  # Hypercorn asks it for the addresses
        self._stream = stream
        self._first = first
        self._in_head = in_head
        self._head_seconds = head_seconds
        self._head_due: float | None = None
        self._stopping = stopping
        self._stall_seconds = stall_seconds
        self._stop_seconds = stop_seconds

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._first:
            await trio.lowlevel.checkpoint()
            size = max_bytes if max_bytes is not None else len(self._first)
            first, self._first = self._first[:size], self._first[size:]
            return first
        if not self._in_head():
            self._head_due = None
            return await self._stream.receive_some(max_bytes)
        if self._head_due is None:
            self._head_due = trio.current_time() + self._head_seconds
        with trio.move_on_at(self._head_due):
            return await self._stream.receive_some(max_bytes)
        return b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises trio.BrokenResourceError when the peer is gone or does not read, trio.ClosedResourceError when closed.

        Bounded by itself, as its caller shields it."""
        left = memoryview(data)
        progress = trio.current_time()
        stop_noticed: float | None = None
        try:
            while left:
                with trio.move_on_after(SLICE_SECONDS):
                    # One `send` takes a piece or is cancelled without having taken any.
                    left = left[await self.socket.send(left) :]
                    progress = trio.current_time()
                if stop_noticed is None and self._stopping():
                    stop_noticed = trio.current_time()
                if left and self._overdue(progress, stop_noticed):
                    self._reset()
                    raise trio.BrokenResourceError("the peer does not read")
        except OSError as error:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError("this stream was closed") from None
            raise trio.BrokenResourceError(f"connection broken: {error}") from error

    def _overdue(self, progress: float, stop_noticed: float | None) -> bool:
        now = trio.current_time()
        if stop_noticed is not None and now - stop_noticed >= self._stop_seconds:
            return True
        return now - progress >= self._stall_seconds

    def _reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.socket.close()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
