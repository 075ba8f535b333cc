"""The relay without its doors: store, caches, ingest, fan-out and audit on a real database, with real tasks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from relay.access.directory import Directory
from relay.access.identity import KNOWN_SCOPES, AuthMethod, Caller
from relay.asyncpg_trio import Pool, connect
from relay.audit.sink import PoolSink
from relay.audit.worker import AuditWorker
from relay.config import Settings, load
from relay.fanout.hub import Hub
from relay.ingest import batch
from relay.ingest.pipeline import Ingest
from relay.ingest.types import Door, Outcome
from relay.nostr.event import Event, sign_event
from relay.nostr.keys import SecretKey
from relay.store import members


@dataclass
class Person:
    """A key and the caller that it is after logging in."""

    key: SecretKey
    caller: Caller

    @classmethod
    def number(cls, number: int, **caller: Any) -> Person:
        key = SecretKey.from_hex(f"{number:064x}")
        rights = {"scopes": KNOWN_SCOPES, "method": AuthMethod.PUBKEY} | caller
        return cls(key, Caller(key.public_hex, **rights))

    @property
    def pubkey(self) -> str:
        return self.caller.pubkey

    def sign(self, kind: int, content: str = "", tags: list[list[str]] | None = None, at: int | None = None) -> Event:
        return sign_event(
            self.key, created_at=int(time.time()) if at is None else at, kind=kind, tags=tags or [], content=content
        )


ALICE, BOB, CAROL = Person.number(1), Person.number(2), Person.number(3)
CHANNEL = "11111111-1111-4111-8111-111111111111"


@dataclass
class Core:
    settings: Settings
    dsn: str
    pool: Pool
    directory: Directory
    hub: Hub
    audit: AuditWorker
    ingest: Ingest
    key: SecretKey
    nursery: trio.Nursery
    finished: list[str] = field(default_factory=list)

    async def submit(self, person: Person, event: Event, door: Door = Door.WEBSOCKET) -> Outcome:
        return await self.ingest.submit(event, person.caller, door)

    async def create(self, person: Person, channel: str = CHANNEL, visibility: str = "open", **tags: str) -> Outcome:
        listed = [["h", channel], ["name", "general"], ["visibility", visibility], *([k, v] for k, v in tags.items())]
        return await self.submit(person, person.sign(9007, tags=listed))

    async def say(self, person: Person, text: str, channel: str = CHANNEL) -> Outcome:
        return await self.submit(person, person.sign(9, text, [["h", channel]]))

    async def add(self, actor: Person, target: Person, *role: str, channel: str = CHANNEL) -> Outcome:
        tags = [["h", channel], ["p", target.pubkey], *(["role", name] for name in role)]
        return await self.submit(actor, actor.sign(9000, tags=tags))

    async def kinds(self, where: str = "true") -> list[int]:
        rows = await self.pool.fetch(f"SELECT kind FROM events WHERE deleted_at IS NULL AND {where} ORDER BY kind")
        return [row[0] for row in rows]


@asynccontextmanager
async def running_core(dsn: str, **settings: Any) -> AsyncIterator[Core]:
    """Everything started as the supervisor starts it, and stopped by closing queues in their order."""
    loaded = load({"database_url": dsn, **settings})
    async with (
        Pool(dsn, size_max=loaded.pool_size_max, size_min=1) as pool,
        Pool(dsn, size_max=2, size_min=0, name="audit") as audit_pool,
        _running_on(loaded, dsn, pool, audit_pool) as core,
    ):
        yield core


@asynccontextmanager
async def _running_on(loaded: Settings, dsn: str, pool: Pool, audit_pool: Pool) -> AsyncIterator[Core]:
    key = SecretKey.from_hex("77" * 32)
    directory = Directory(pool, loaded)
    hub = Hub(partial(members.audiences, pool))
    audit = AuditWorker(PoolSink(audit_pool), capacity=loaded.audit_queue)
    ingest = Ingest(
        loaded,
        pool=pool,
        connect=partial(connect, dsn),
        connect_commit=partial(connect, dsn, server_settings=batch.SESSION),
        directory=directory,
        hub=hub,
        audit=audit,
        key=key,
        now_us=lambda: time.time_ns() // 1000,
    )
    async with trio.open_nursery() as audit_nursery:
        await audit_nursery.start(audit.run)
        async with trio.open_nursery() as root:
            async with trio.open_nursery() as workers:
                for _, task in ingest.tasks():
                    await workers.start(task)
                await root.start(hub.run)
                loader_scope = await root.start(_cancellable, hub.run_loader)
                yield Core(loaded, dsn, pool, directory, hub, audit, ingest, key, root)
                ingest.close()
                ingest.finish()
            loader_scope.cancel()
            hub.close()
        audit.begin_drain(trio.current_time() + 5)


async def _cancellable(task: Any, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await task()
