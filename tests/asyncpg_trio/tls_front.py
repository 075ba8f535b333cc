"""TLS in front of a server that was built without it: what `ssl=on` does at the start of a session."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trustme

from tests.asyncpg_trio.proxy import Proxy

_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


class TLSFront(Proxy):
    """`plain` and `encrypted` count sessions. `tls_only` refuses plain ones, like `hostnossl … reject`."""

    def __init__(self, socket_path: str) -> None:
        super().__init__(socket_path)
        self.authority = trustme.CA()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.set_alpn_protocols(["postgresql"])
        self.authority.issue_cert("localhost").configure_cert(self.context)
        self.tls_only = False
        self.plain = 0
        self.encrypted = 0

    def dsn(self, database: str, options: str = "") -> str:
        return f"postgresql://relay@localhost:{self.port}/{database}?{options}"

    async def _serve(self, client: trio.SocketStream) -> None:
        try:
            await self._greet(client)
        except trio.BrokenResourceError:
            await client.aclose()

    async def _greet(self, client: trio.SocketStream) -> None:
        first = await client.receive_some(8)
        if first == _SSL_REQUEST:
            await client.send_all(b"S")
            stream: trio.abc.Stream = trio.SSLStream(client, self.context, server_side=True)
        elif first[:1] == b"\x16":
            stream = trio.SSLStream(_Unread(client, first), self.context, server_side=True)
        elif self.tls_only:
            self.plain += 1
            fields = b"SFATAL\0C28000\0Mno encryption\0\0"
            await client.send_all(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
            return await client.aclose()
        else:
            self.plain += 1
            return await self._forward(_Unread(client, first))
        await stream.do_handshake()
        self.encrypted += 1
        await self._forward(stream)
        return None

    async def _forward(self, client: trio.abc.Stream) -> None:
        async with client, await trio.open_unix_socket(self.socket_path) as server, trio.open_nursery() as nursery:
            nursery.start_soon(self._to_server, client, server, nursery.cancel_scope)
            nursery.start_soon(self._to_client, server, client, nursery.cancel_scope)


class _Unread(trio.abc.Stream):
    """A stream some of whose bytes have been read already."""

    def __init__(self, stream: trio.SocketStream, first: bytes) -> None:
        self._stream = stream
        self._first = first

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def open_tls_front(socket_path: str) -> AsyncIterator[TLSFront]:
    front = TLSFront(socket_path)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        front.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, front._serve, listeners)
        yield front
        nursery.cancel_scope.cancel()
