"""A line to a database that is as long as one wants: a TCP port in front of a Unix socket, in a thread of its own.

Every byte arrives later by half of the round trip, in its order and as many at a time as were sent; so what is slow is
waiting for an answer, not sending.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio

_PIECE_BYTES = 1 << 16


@contextmanager
def long_line(socket_path: str, round_trip_seconds: float) -> Iterator[int]:
    """The port on 127.0.0.1 that leads to `socket_path`, for the time of the context."""
    line = _Line(socket_path, round_trip_seconds / 2)
    thread = threading.Thread(target=trio.run, args=(line.serve,), name="long line")
    thread.start()
    assert line.ready.wait(10)
    try:
        yield line.port
    finally:
        line.end()
        thread.join()


class _Line:
    def __init__(self, socket_path: str, delay_seconds: float) -> None:
        self.port = 0
        self.ready = threading.Event()
        self._path = socket_path
        self._delay = delay_seconds

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self._token, self._scope = trio.lowlevel.current_trio_token(), nursery.cancel_scope
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, self._lead, listeners)
            self.ready.set()

    def end(self) -> None:
        self._token.run_sync_soon(self._scope.cancel)

    async def _lead(self, client: trio.SocketStream) -> None:
        try:
            async with client, await trio.open_unix_socket(self._path) as server, trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, client, server, nursery.cancel_scope)
                nursery.start_soon(self._carry, server, client, nursery.cancel_scope)
        except OSError:
            return  # the server is not there: the client sees an end

    async def _carry(self, source: trio.SocketStream, target: trio.SocketStream, line: trio.CancelScope) -> None:
        give, take = trio.open_memory_channel[tuple[float, bytes]](math.inf)

        async def arrive() -> None:
            async for due, data in take:
                await trio.sleep_until(due)
                await target.send_all(data)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(arrive)
                async with give:
                    while data := await source.receive_some(_PIECE_BYTES):
                        give.send_nowait((trio.current_time() + self._delay, bytes(data)))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        line.cancel()
