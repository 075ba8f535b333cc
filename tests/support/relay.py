"""A whole relay inside the test's event loop, on a real TCP port, without Hypercorn: real sockets, a real PostgreSQL.

`serving(dsn)` starts the hub, ingest, the audit worker and the WebSocket endpoint in one nursery; `Client` is a NIP-01
client that keeps every frame it got. The front door (peek, HTTP) is somebody else's test.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from relay.access.authenticate import Authenticator
from relay.nostr.event import Event
from relay.websocket.endpoint import WebSocketEndpoint
from relay.websocket.head import parse_head
from relay.websocket.opening import read_head
from tests.support.core import Core, Person, running_core

RELAY_URL = "ws://localhost:3000"
SECONDS = 15
"""Far more than any answer takes, so that a fault is a failure and not a hang."""


@dataclass
class RelayUnderTest:
    core: Core
    endpoint: WebSocketEndpoint
    port: int
    nursery: trio.Nursery
    # The server's side of every connection, in order of arrival.
    accepted: list[trio.SocketStream] = field(default_factory=list)
    streams: list[trio.SocketStream] = field(default_factory=list)

    async def connect(self, person: Person | None = None, *, receive_buffer: int | None = None) -> Client:
        """A connection, logged in if there is a person. `receive_buffer`: bytes that the client's kernel may hold."""
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", self.port))
        stream = trio.SocketStream(sock)
        self.streams.append(stream)
        websocket = await wrap_client_stream(self.nursery, stream, "localhost", "/", max_message_size=8 << 20)
        client = Client(websocket, stream)
        client.challenge = (await client.expect("AUTH"))[1]
        if person is not None:
            assert (await client.log_in(person))[2:] == [True, ""]
        return client

    async def channel(self, owner: Person, *others: Person, visibility: str = "private") -> str:
        """A channel straight in the store: without the events that creating one makes, and nothing cached of it."""
        channel_id: str = await self.core.pool.fetchval(
            "INSERT INTO channels (name, visibility, created_by) VALUES ('c', $1::channel_visibility, $2)"
            " RETURNING id::text",
            visibility,
            bytes.fromhex(owner.pubkey),
        )
        for person, role in ((owner, "owner"), *((other, "member") for other in others)):
            await self.core.pool.execute(
                "INSERT INTO channel_members (channel_id, pubkey, role) VALUES ($1, $2, $3::member_role)",
                channel_id,
                bytes.fromhex(person.pubkey),
                role,
            )
        self.core.directory.clear()
        return channel_id


class Client:
    """One connection as a client sees it. `frames` holds what was received and not yet expected."""

    def __init__(self, websocket: WebSocketConnection, stream: trio.SocketStream) -> None:
        self.websocket = websocket
        self.stream = stream
        self.frames: list[list[Any]] = []
        self.challenge = ""

    async def send(self, *message: Any) -> None:
        await self.send_text(orjson.dumps(message).decode())

    async def send_text(self, text: str | bytes) -> None:
        await self.websocket.send_message(text)

    async def receive(self) -> list[Any]:
        """The next frame. Raises ConnectionClosed when there is none any more."""
        if self.frames:
            return self.frames.pop(0)
        with trio.fail_after(SECONDS):
            return orjson.loads(await self.websocket.get_message())

    async def expect(self, *beginning: Any) -> list[Any]:
        """The next frame, which must begin so."""
        frame = await self.receive()
        assert frame[: len(beginning)] == list(beginning), frame
        return frame

    async def until(self, *beginning: Any) -> list[list[Any]]:
        """All frames before the first that begins so, which is dropped."""
        before = []
        while (frame := await self.receive())[: len(beginning)] != list(beginning):
            before.append(frame)
        return before

    async def closed(self) -> tuple[int, str | None]:
        """Code and reason of the Close that ends the connection; what came before it is kept in `frames`."""
        with trio.fail_after(SECONDS), suppress(ConnectionClosed):
            while True:
                self.frames.append(orjson.loads(await self.websocket.get_message()))
        reason = self.websocket.closed
        assert reason is not None
        return reason.code, reason.reason

    async def log_in(self, person: Person, **overrides: Any) -> list[Any]:
        await self.send("AUTH", fields(auth_event(person, self.challenge, **overrides)))
        return await self.expect("OK")

    async def publish(self, event: Event) -> list[Any]:
        await self.send("EVENT", fields(event))
        return await self.expect("OK", event.id)

    async def request(self, sub_id: str, *filters: dict[str, Any]) -> list[dict[str, Any]]:
        """The stored events of a REQ, to its EOSE."""
        await self.send("REQ", sub_id, *filters)
        return [frame[2] for frame in await self.until("EOSE", sub_id)]


def fields(event: Event) -> dict[str, Any]:
    """The event as parsed JSON."""
    found: dict[str, Any] = orjson.loads(event.json)
    return found


def auth_event(
    person: Person, challenge: str, *, relay: str = RELAY_URL, tags: list[list[str]] | None = None, kind: int = 22242
) -> Event:
    return person.sign(kind, tags=[["relay", relay], ["challenge", challenge], *(tags or [])])


def message(person: Person, channel_id: str, content: str, *, at: int | None = None) -> Event:
    """A kind 9 in a channel."""
    return person.sign(9, content, [["h", channel_id]], at)


def now() -> int:
    return int(time.time())


@asynccontextmanager
async def serving(
    dsn: str, *, prepare: Callable[[trio.SocketStream], None] | None = None, **settings: Any
) -> AsyncIterator[RelayUnderTest]:
    """The relay; ends with the block. `prepare` gets every accepted stream, for what a test wants of its socket."""
    async with running_core(dsn, relay_url=RELAY_URL, **settings) as core, trio.open_nursery() as nursery:
        authenticator = Authenticator(core.pool, core.settings, core.settings.relay_url)
        endpoint = WebSocketEndpoint(core.settings, core.hub, core.ingest, authenticator, core.directory, core.pool)
        relay = RelayUnderTest(core, endpoint, 0, nursery)

        async def serve(stream: trio.SocketStream) -> None:
            relay.accepted.append(stream)
            if prepare is not None:
                prepare(stream)
            first = await read_head(stream.socket, bytes_max=16 << 10, seconds=SECONDS, stopping=lambda: False)
            if first is not None and endpoint.admission():
                head = parse_head(first[0])
                assert head is not None
                await endpoint.serve(stream, head, "127.0.0.1", first[1])

        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        relay.port = listeners[0].socket.getsockname()[1]
        try:
            yield relay
        finally:
            for stream in relay.streams:
                stream.socket.close()
            nursery.cancel_scope.cancel()
