"""A relay's parts behind its HTTP app, all of them real: pool, caches, ingest with its tasks, fan-out, audit worker."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson
import trio
from quart_trio import QuartTrio

from relay.access.authenticate import Authenticator
from relay.access.directory import Directory
from relay.asyncpg_trio import Connection, Pool, connect
from relay.audit.sink import PoolSink
from relay.audit.worker import AuditWorker
from relay.config import Settings
from relay.fanout.hub import Hub
from relay.http.app import create_app
from relay.http.services import Readiness, Services
from relay.ingest.pipeline import Ingest
from relay.nostr.event import Event, sign_event
from relay.nostr.keys import SecretKey
from relay.store import members, tokens, users
from relay.websocket.guests import Guests
from relay.websocket.limits import Limits
from relay.websocket.shares import Shares
from tests.support.contract import contract

LOOPBACK = {"client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 3000)}


def new_key() -> SecretKey:
    return SecretKey.from_bytes(secrets.token_bytes(32))


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Rig:
    """`statements` grows with every Execute of the main pool. Every answer is held against the OpenAPI document."""

    services: Services
    app: QuartTrio
    con: Connection
    statements: list[str] = field(default_factory=list)
    stopping: bool = False
    refusing: bool = False
    ready: Readiness = field(default_factory=lambda: Readiness(postgres=True, audit=True))

    async def request(
        self,
        method: str,
        path: str,
        *,
        key: SecretKey | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        data: bytes | None = None,
        scope: Mapping[str, Any] = LOOPBACK,
        app: QuartTrio | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        if key is not None:
            sent["X-Pubkey"] = key.public_hex
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if json is not None:
            sent.setdefault("Content-Type", "application/json")
            data = orjson.dumps(json)
        client = (app or self.app).test_client(use_cookies=False)
        response = await client.open(path, method=method, headers=sent, data=data, scope_base=dict(scope))
        body = await response.get_data()
        contract().check(method, path, response.status_code, response.headers.get("Content-Type"), body)
        return Answer(response.status_code, response.headers, body)

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.request("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        return await self.request("POST", path, **options)

    async def submit(self, key: SecretKey, kind: int, tags: list[list[str]], content: str = "") -> Answer:
        return await self.post("/api/events", key=key, data=signed(key, kind, tags, content).json)

    async def mint(
        self,
        owner: SecretKey,
        scopes: list[str],
        channel_ids: list[str] | None = None,
        expires_days: int | None = None,
    ) -> str:
        text = tokens.new_text()
        await users.ensure(self.con, [owner.public_hex])
        await tokens.mint(
            self.con,
            text=text,
            owner=owner.public_hex,
            name="test",
            scopes=scopes,
            channel_ids=channel_ids,
            expires_days=expires_days,
        )
        return text

    async def dms(self, owner: SecretKey, number: int) -> None:
        """So many direct messages of three, written straight into the tables."""
        key = bytes.fromhex(owner.public_hex)
        await self.con.execute(
            "WITH made AS (INSERT INTO channels (name, channel_type, visibility, created_by) "
            "SELECT 'DM', 'dm', 'private', $1 FROM generate_series(1, $2::int) RETURNING id) "
            "INSERT INTO channel_members (channel_id, pubkey) SELECT id, key FROM made, unnest($3::bytea[]) AS key",
            key,
            number,
            [key, bytes(32), bytes([1]) * 32],
        )

    async def channel(
        self,
        owner: SecretKey,
        name: str = "general",
        *,
        channel_type: str = "stream",
        visibility: str = "open",
        others: tuple[str, ...] = (),
    ) -> str:
        """A channel written straight into the tables."""
        channel_id = str(uuid.uuid4())
        await self.con.execute(
            "INSERT INTO channels (id, name, channel_type, visibility, created_by) "
            "VALUES ($1, $2, $3::text::channel_type, $4::text::channel_visibility, $5)",
            channel_id,
            name,
            channel_type,
            visibility,
            bytes.fromhex(owner.public_hex),
        )
        for pubkey in (owner.public_hex, *others):
            await members.put(self.con, channel_id, pubkey, "member", None)
        return channel_id

    async def message(self, channel_id: str, author: SecretKey, created_at: int) -> Event:
        """A stored message with a time of its own choosing."""
        event = signed(author, 9, [["h", channel_id]], secrets.token_hex(4), created_at)
        await self.con.execute(
            "INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json) "
            "VALUES ($1, $2, $3, 9, '[]', $4, $5, $6, $7)",
            bytes.fromhex(event.id),
            bytes.fromhex(event.pubkey),
            created_at,
            event.content,
            bytes.fromhex(event.sig),
            channel_id,
            event.json,
        )
        return event

    def with_settings(self, **changes: Any) -> QuartTrio:
        """Another app over the same parts with other settings, validated or not."""
        settings = self.services.settings.model_copy(update=changes)
        return create_app(replace(self.services, settings=settings))


def signed(key: SecretKey, kind: int, tags: list[list[str]], content: str = "", created_at: int | None = None) -> Event:
    now = int(time.time()) if created_at is None else created_at
    return sign_event(key, created_at=now, kind=kind, tags=tags, content=content)


@asynccontextmanager
async def running(dsn: str, **changes: Any) -> AsyncIterator[Rig]:
    settings = Settings(dev_x_pubkey=True, pool_size_min=1, effect_workers=2, **changes)
    statements: list[str] = []
    con = await connect(dsn)
    pool = Pool(dsn, size_max=8, size_min=1, on_statement=statements.append)
    audit_pool = Pool(dsn, size_max=2, size_min=1, name="audit")
    async with pool, audit_pool, trio.open_nursery() as nursery:
        directory = Directory(pool, settings)
        hub = Hub(partial(_audiences, pool))
        audit = AuditWorker(PoolSink(audit_pool))
        ingest = Ingest(
            settings,
            pool=pool,
            connect=partial(connect, dsn),
            connect_commit=partial(connect, dsn),
            directory=directory,
            hub=hub,
            audit=audit,
            key=new_key(),
            now_us=lambda: time.time_ns() // 1000,
        )

        async def readiness() -> Readiness:
            await trio.lowlevel.checkpoint()
            return rig.ready

        limits = Limits(settings, ingest.note)
        guests = Guests(limits, Shares(settings.pool_size_max, settings.pool_acquire_seconds))
        services = Services(
            settings=settings,
            pool=pool,
            directory=directory,
            ingest=ingest,
            hub=hub,
            audit=audit,
            authenticator=Authenticator(pool, settings, settings.relay_url),
            relay_key=new_key(),
            readiness=readiness,
            shutting_down=lambda: rig.stopping,
            writes_refused=lambda: rig.refusing,
            uptime=lambda: 12.75,
            other_pools=(audit_pool,),
            refuse_event=limits.refuse_event,
            handling=guests.handling,
            asking=guests.asking,
        )
        rig = Rig(services, create_app(services), con, statements)
        await nursery.start(audit.run)
        await nursery.start(hub.run)
        for _, task in ingest.tasks():
            await nursery.start(task)
        try:
            yield rig
        finally:
            ingest.close()
            ingest.finish()
            audit.begin_drain(trio.current_time() + 1)
            con.terminate()
            nursery.cancel_scope.cancel()


async def _audiences(pool: Pool, channel_ids: Any) -> Any:
    return await members.audiences(pool, list(channel_ids))
