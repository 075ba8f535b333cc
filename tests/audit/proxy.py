"""A Unix-socket proxy in front of PostgreSQL that loses a COMMIT or its answer, or goes deaf, when told to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import trio


class Proxy:
    def __init__(self, server: str) -> None:
        self.server = server
        # "before": the connection dies with COMMIT on its way; "after": with its answer. Once, then back to None.
        self.cut_commit: str | None = None
        self.deaf = trio.Event()  # set: nothing passes any more, and nothing is closed

    async def serve(self, client: trio.SocketStream) -> None:
        async with await trio.open_unix_socket(self.server) as server, client, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_on, server, client, nursery.cancel_scope)
            await self._requests(client, server)
            nursery.cancel_scope.cancel()

    async def _requests(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        try:
            async for data in client:
                await self._hang_if_deaf()
                if self.cut_commit is not None and b"COMMIT\0" in data:
                    if self.cut_commit == "after":
                        self._swallowed = trio.Event()
                        await server.send_all(data)
                        await self._swallowed.wait()
                    self.cut_commit = None
                    return
                await server.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _pass_on(self, server: trio.SocketStream, client: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            async for data in server:
                await self._hang_if_deaf()
                if self.cut_commit == "after" and b"COMMIT\0" in data:  # the tag of CommandComplete
                    self._swallowed.set()
                    return
                await client.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    async def _hang_if_deaf(self) -> None:
        if self.deaf.is_set():
            await trio.sleep_forever()


@asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Yields the proxy and the address that leads through it."""
    host = parse_qs(urlsplit(dsn).query)["host"][0]
    proxy = Proxy(f"{host}/.s.PGSQL.5432")
    with tempfile.TemporaryDirectory(prefix="relay-proxy-") as directory:
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(os.path.join(directory, ".s.PGSQL.5432"))
        listener.listen(16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, proxy.serve, [trio.SocketListener(listener)])
            yield proxy, dsn.replace(host, directory)
            nursery.cancel_scope.cancel()
