"""Audit entries without a transaction of their own, while the database is away: recorded all the same, and counted."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from relay.access.directory import Directory
from relay.asyncpg_trio import Pool, connect
from relay.audit import outbox, spool_file
from relay.audit.entry import Action
from relay.audit.sink import PoolSink
from relay.audit.spool import Spool
from relay.audit.worker import AuditWorker
from relay.config import load
from relay.errors import StoreGone
from relay.fanout.hub import Hub
from relay.ingest.pipeline import Ingest
from relay.nostr.keys import SecretKey
from relay.store import members
from tests.audit.memory import entries

NOW_US = 1_800_000_000_000_000


class Parts:
    """An `Ingest` with its commit task, and the switch that takes the database from it."""

    def __init__(self, dsn, pool, path):
        loaded = load({"database_url": dsn, "effect_workers": 1})
        self.pool = pool
        self.away = False
        self.stuck = False
        self.spool = Spool(path, lambda: NOW_US)
        self.ingest = Ingest(
            loaded,
            pool=pool,
            connect=partial(self._connect, dsn),
            connect_commit=partial(self._connect, dsn),
            directory=Directory(pool, loaded),
            hub=Hub(partial(members.audiences, pool)),
            audit=AuditWorker(PoolSink(pool)),
            key=SecretKey.from_hex("77" * 32),
            now_us=lambda: NOW_US,
            spool=self.spool,
        )
        self.tasks = dict(self.ingest.tasks())

    async def _connect(self, dsn):
        if self.stuck:
            await trio.sleep_forever()
        if self.away:
            raise OSError("as if the server were away")
        return await connect(dsn)

    async def waiting(self):
        rows = await self.pool.fetch("SELECT uuid::text AS uuid FROM audit_outbox ORDER BY id")
        return [row["uuid"] for row in rows]

    @property
    def spooled(self):
        return spool_file.decode(self.spool.path.read_bytes()).entries if self.spool.path.exists() else ()


@pytest.fixture
async def parts(migrated_dsn, tmp_path, monkeypatch):
    monkeypatch.setattr("relay.ingest.pipeline.PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr("relay.store.outcome.PATIENCE_SECONDS", 0.02)
    async with Pool(migrated_dsn, size_max=3, size_min=1) as pool:
        yield Parts(migrated_dsn, pool, tmp_path / "spool.jsonl")


@asynccontextmanager
async def committing(parts):
    async with trio.open_nursery() as nursery:
        await nursery.start(parts.tasks["commit task"])
        yield nursery
        parts.ingest.finish()


def uuids(some):
    return [one.uuid for one in some]


async def test_while_the_store_takes_them_nothing_is_spooled(parts):
    async with committing(parts):
        await parts.ingest.record(entries(1, 2))
    assert parts.spooled == ()
    assert await parts.waiting() == uuids(entries(1, 2))


async def test_when_it_does_not_they_are_durable_all_the_same_and_follow(parts, monkeypatch):
    parts.away = True
    async with committing(parts) as nursery:
        await parts.ingest.record(entries(1, 2))
        assert list(parts.spooled) == entries(1, 2)
        parts.away = False
        await nursery.start(parts.ingest.run_notes)
        await parts.ingest.record(entries(3, 1))  # the store is back: so what is in the spool follows, at once
        with trio.fail_after(5):
            # Not `pending` alone: that is false from the beginning of a replay, and this one is cancelled below.
            while parts.spool.pending or len(await parts.waiting()) < 3:
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    assert sorted(await parts.waiting()) == uuids(entries(1, 3))
    assert parts.spooled == ()


async def test_a_spool_that_fails_too_is_said(parts):
    parts.away = True
    parts.spool.path.mkdir()
    async with committing(parts):
        with pytest.raises(StoreGone):
            await parts.ingest.record(entries(1, 1))
        parts.ingest.finish()
        with pytest.raises(StoreGone, match="cannot be used"):
            await parts.ingest.record(entries(1, 1))


async def test_after_the_end_they_are_spooled(parts):
    async with committing(parts):
        parts.ingest.finish()
        await parts.ingest.record(entries(1, 1))
    assert list(parts.spooled) == entries(1, 1)


async def test_the_last_counts_are_stored_at_the_end(parts):
    async with committing(parts):
        parts.ingest.note(Action.AUTH_FAILURE, "127.0.0.1", "bad")
    assert parts.spooled == ()
    assert len(await parts.waiting()) == 1


@pytest.mark.parametrize("how", ["away", "stuck"])
async def test_the_last_counts_of_a_relay_whose_database_is_gone_are_spooled(parts, how):
    """Also those that were queued when the deadline came: behind a commit that hangs there may be any number."""
    setattr(parts, how, True)
    async with committing(parts) as nursery:
        parts.ingest.note(Action.AUTH_FAILURE, "127.0.0.1", "first")
        parts.ingest._submit_counts()  # not due: its minute is not over
        parts.ingest._counts = entries(1, 2)
        parts.ingest._submit_counts()
        await trio.testing.wait_all_tasks_blocked()
        parts.ingest._counts = entries(3, 1)
        parts.ingest._submit_counts()
        parts.ingest.finish()
        if how == "stuck":
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()  # T + 5
    found = parts.spooled
    assert list(found[:3]) == entries(1, 3)
    assert [one.action for one in found[3:]] == ["auth_failure"]
    async with parts.pool.acquire() as con:
        assert (await parts.spool.replay(con)).added == 4
        assert await outbox.count(con) == 4


async def test_counts_for_which_there_is_no_room_wait_for_their_next_turn(parts):
    capacity = parts.ingest._settings.commit_queue
    for _ in range(capacity):
        parts.ingest._counts = entries(1, 1)
        parts.ingest._submit_counts()
    parts.ingest._counts = entries(7, 2)
    parts.ingest._submit_counts()
    assert parts.ingest._counts == entries(7, 2)
    assert parts.ingest._counts_due(everything=True) == entries(7, 2)
