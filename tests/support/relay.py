"""A whole relay inside the test's event loop, on a real TCP port, without Hypercorn: real sockets, a real PostgreSQL.

`serving(dsn)` starts the hub, ingest, the audit worker and the WebSocket endpoint in one nursery; `Client` is a NIP-01
client that keeps every frame it got. The front door (peek, HTTP) is somebody else's test.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, connect_websocket

from relay.access.authenticate import Authenticator
from relay.access.directory import Directory
from relay.asyncpg_trio import Pool, connect
from relay.audit.sink import PoolSink
from relay.audit.worker import AuditWorker
from relay.config import Settings
from relay.fanout.hub import Hub
from relay.ingest.pipeline import Ingest
from relay.nostr.event import Event, sign_event
from relay.nostr.keys import SecretKey
from relay.store import members
from relay.websocket.endpoint import WebSocketEndpoint
from relay.websocket.head import RequestHead

RELAY_URL = "ws://localhost:3000"
SECONDS = 10
"""Far more than any answer takes, so that a fault is a failure and not a hang."""


@dataclass
class RelayUnderTest:
    settings: Settings
    pool: Pool
    hub: Hub
    directory: Directory
    ingest: Ingest
    endpoint: WebSocketEndpoint
    port: int
    nursery: trio.Nursery
    key: SecretKey
    errors: list[BaseException] = field(default_factory=list)

    async def connect(self, key: SecretKey | None = None, **options: Any) -> Client:
        """A connection, logged in if there is a key."""
        websocket = await connect_websocket(
            self.nursery, "127.0.0.1", self.port, "/", use_ssl=False, **{"max_message_size": 8 << 20, **options}
        )
        client = Client(websocket)
        client.challenge = (await client.expect("AUTH"))[1]
        if key is not None:
            assert (await client.log_in(key))[2:] == [True, ""]
        return client

    async def channel(self, owner: SecretKey, *others: SecretKey, visibility: str = "private") -> str:
        """A channel straight in the store, before anything could have cached it."""
        channel_id: str = await self.pool.fetchval(
            "INSERT INTO channels (name, visibility, created_by) VALUES ('c', $1::channel_visibility, $2)"
            " RETURNING id::text",
            visibility,
            bytes.fromhex(owner.public_hex),
        )
        for key, role in ((owner, "owner"), *((other, "member") for other in others)):
            await self.pool.execute(
                "INSERT INTO channel_members (channel_id, pubkey, role) VALUES ($1, $2, $3::member_role)",
                channel_id,
                bytes.fromhex(key.public_hex),
                role,
            )
        self.directory.clear()
        return channel_id


class Client:
    """One connection as a client sees it. `frames` holds what was received and not yet expected."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self.websocket = websocket
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
        with trio.fail_after(SECONDS):
            try:
                while True:
                    self.frames.append(orjson.loads(await self.websocket.get_message()))
            except ConnectionClosed as end:
                assert end.reason is not None
                return end.reason.code, end.reason.reason

    async def log_in(self, key: SecretKey, **overrides: Any) -> list[Any]:
        await self.send("AUTH", fields(auth_event(key, self.challenge, **overrides)))
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


def auth_event(key: SecretKey, challenge: str, *, relay: str = RELAY_URL, tags: list[list[str]] | None = None) -> Event:
    own = [["relay", relay], ["challenge", challenge], *(tags or [])]
    return sign_event(key, created_at=int(time.time()), kind=22242, tags=own, content="")


def message(key: SecretKey, channel_id: str, content: str, *, created_at: int | None = None) -> Event:
    """A kind 9 in a channel."""
    return sign_event(key, created_at=created_at or int(time.time()), kind=9, tags=[["h", channel_id]], content=content)


def note(key: SecretKey, content: str, *, created_at: int | None = None) -> Event:
    """A kind 1, which belongs to no channel."""
    return sign_event(key, created_at=created_at or int(time.time()), kind=1, tags=[], content=content)


def secret(number: int) -> SecretKey:
    """The same key for the same number."""
    return SecretKey(number.to_bytes(32, "big"))


@asynccontextmanager
async def serving(
    dsn: str, *, wrap: Callable[[trio.SocketStream], trio.SocketStream] | None = None, **overrides: Any
) -> AsyncIterator[RelayUnderTest]:
    """The relay; ends with the block. `wrap` gets every accepted stream, for what a test wants of its socket."""
    settings = Settings(**{"relay_url": RELAY_URL, "effect_workers": 2, **overrides})
    key = secret(999)
    async with Pool(dsn) as pool, trio.open_nursery() as nursery:
        hub = Hub(partial(members.audiences, pool), queue=settings.fanout_queue)
        directory = Directory(pool, settings)
        audit = AuditWorker(PoolSink(pool), capacity=settings.audit_queue)
        ingest = Ingest(
            settings,
            pool=pool,
            connect=partial(connect, dsn),
            directory=directory,
            hub=hub,
            audit=audit,
            key=key,
            now_us=lambda: time.time_ns() // 1000,
        )
        authenticator = Authenticator(pool, settings, settings.relay_url)
        endpoint = WebSocketEndpoint(settings, hub, ingest, authenticator, directory, pool)
        tasks = ingest.tasks()
        await nursery.start(audit.run)
        await nursery.start(hub.run)
        await nursery.start(hub.run_loader)
        for _, task in tasks:
            await nursery.start(task)

        async def serve(stream: trio.SocketStream) -> None:
            stream = stream if wrap is None else wrap(stream)
            head = RequestHead("/", "", {})
            await endpoint.serve(stream, head, "127.0.0.1")

        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        try:
            yield RelayUnderTest(settings, pool, hub, directory, ingest, endpoint, port, nursery, key)
        finally:
            audit.begin_drain(0.2)
            nursery.cancel_scope.cancel()
