"""The door that all events share: what it says when the store has too much to do, and where presence goes."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio

from relay.asyncpg_trio import connect
from relay.asyncpg_trio.errors import PoolClosed, PoolTimeout, PostgresError
from relay.errors import INTERNAL_ERROR, TOO_BUSY, RefusalClass, StoreBusy, StoreGone
from relay.ingest.types import Door
from tests.support.core import ALICE, CHANNEL, running_core
from tests.support.groups import listening


async def test_a_pool_without_a_free_connection_is_too_busy(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_core(migrated_dsn, pool_size_max=2) as core:
        await core.create(ALICE)
        core.directory.clear()
        monkeypatch.setattr(core.pool, "_acquire_seconds", 0.05)
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(core.pool.acquire())
            outcome = await core.say(ALICE, "hello")
        assert (outcome.accepted, outcome.message) == (False, "rate-limited: too many concurrent requests")
        assert outcome.refusal is not None
        assert outcome.refusal.kind is RefusalClass.UNAVAILABLE
        assert (await core.say(ALICE, "hello")).accepted


async def test_a_lock_that_does_not_come_is_too_busy(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn, pool_size_max=1, pool_size_min=1) as core:
        await core.create(ALICE)
        core.directory.clear()
        async with core.pool.acquire() as con:
            await con.execute("SET lock_timeout = '20ms'")
        # Nothing less keeps a reader waiting.
        other = await connect(migrated_dsn)
        async with other.transaction():
            await other.execute("LOCK TABLE channels")
            outcome = await core.say(ALICE, "hello")
        other.terminate()
        assert outcome.refusal is TOO_BUSY


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (PoolTimeout("full"), TOO_BUSY),
        (StoreBusy("busy"), TOO_BUSY),
        (PoolClosed("closed"), INTERNAL_ERROR),
        (StoreGone("gone"), INTERNAL_ERROR),
        (PostgresError("something else"), INTERNAL_ERROR),
    ],
)
async def test_no_failure_of_the_store_is_an_exception(
    migrated_dsn: str, monkeypatch: pytest.MonkeyPatch, error: Exception, refusal: object
) -> None:
    async with running_core(migrated_dsn) as core:

        async def fail(*_: object) -> object:
            await trio.lowlevel.checkpoint()
            raise error

        monkeypatch.setattr(core.directory, "channel", fail)
        assert (await core.say(ALICE, "hello")).refusal is refusal


async def test_presence_is_kept_for_the_caller_and_delivered_as_it_is(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        event = ALICE.sign(20001, '{"status":"away"}', [["h", CHANNEL]])
        async with listening(core, ALICE) as reader:
            assert (await core.submit(ALICE, event)).accepted
            await reader.read_nothing()  # it belongs to no channel, whatever its tags say
            assert core.hub.presence.status([ALICE.pubkey]) == {ALICE.pubkey: "away"}
        assert core.hub.presence.status([ALICE.pubkey]) == {}  # with the last connection of the key
        await core.submit(ALICE, ALICE.sign(20001, "online"))
        assert core.hub.presence.status([ALICE.pubkey]) == {ALICE.pubkey: "online"}
        assert (await core.submit(ALICE, ALICE.sign(20001, "offline"))).accepted
        assert core.hub.presence.status([ALICE.pubkey]) == {}
        assert await core.kinds("kind BETWEEN 20000 AND 29999") == []
        over_http = await core.submit(ALICE, event, Door.HTTP)
        assert over_http.message == "invalid: kind 20001 is only accepted via WebSocket"
