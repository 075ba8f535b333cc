"""A proxy between the driver and a real server that can go deaf, cut the line, or hide one answer.

In the test's nursery, on a TCP port of 127.0.0.1, so that the network can be made to fail at the one moment that
matters.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Proxy:
    """`deaf`: nothing passes any more, the line stays up. The markers act on the client message that holds them."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self.port = 0
        self.deaf = False
        # Nothing more is read from the client: its writes block.
        self.stalled = False
        self.accepted = 0
        # The message is thrown away and the line cut.
        self.cut_before: bytes | None = None
        # The message is passed on, its answer awaited and thrown away, then the line is cut.
        self.cut_after: bytes | None = None
        # The message is passed on; its answer and all later ones are thrown away, the line stays up.
        self.deaf_after: bytes | None = None

    def dsn(self, database: str) -> str:
        return f"postgresql://relay@127.0.0.1:{self.port}/{database}?sslmode=disable"

    async def _serve(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        async with client, await trio.open_unix_socket(self.socket_path) as server, trio.open_nursery() as nursery:
            nursery.start_soon(self._to_server, client, server, nursery.cancel_scope)
            nursery.start_soon(self._to_client, server, client, nursery.cancel_scope)

    async def _to_server(self, client: trio.SocketStream, server: trio.SocketStream, line: trio.CancelScope) -> None:
        try:
            async for data in client:
                if self.stalled:
                    await trio.sleep_forever()
                if self.deaf:
                    continue
                if self.cut_before is not None and self.cut_before in data:
                    break
                if self.deaf_after is not None and self.deaf_after in data:
                    self.deaf = True
                hide = self.cut_after is not None and self.cut_after in data
                self._hiding = hide
                await server.send_all(data)
                if hide:
                    return
        except trio.BrokenResourceError:
            pass
        line.cancel()

    _hiding = False

    async def _to_client(self, server: trio.SocketStream, client: trio.SocketStream, line: trio.CancelScope) -> None:
        try:
            async for data in server:
                if self._hiding:
                    break
                if not self.deaf:
                    await client.send_all(data)
        except trio.BrokenResourceError:
            pass
        line.cancel()


@asynccontextmanager
async def open_proxy(socket_path: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(socket_path)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy._serve, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
