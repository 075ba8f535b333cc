"""The door that all events share: what it says when the store has too much to do, and where presence goes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio

from relay.asyncpg_trio import connect
from relay.asyncpg_trio.errors import PoolClosed, PoolTimeout, PostgresError
from relay.audit.entry import Action
from relay.errors import (
    INTERNAL_ERROR,
    SHUTTING_DOWN,
    STORE_UNAVAILABLE,
    TOO_BUSY,
    RefusalClass,
    StoreBusy,
    StoreGone,
)
from relay.ingest.effects import Effect, refuse
from relay.ingest.types import STORED, Door, Outcome
from relay.store import users
from tests.support.core import ALICE, BOB, CHANNEL, running_core
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
        (PoolClosed("closed"), STORE_UNAVAILABLE),
        (StoreGone("gone"), STORE_UNAVAILABLE),
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


# Wherever the audit worker has got to.
_ENTRY = "SELECT action, actor, event_id, metadata FROM"
AUDITED = f"({_ENTRY} audit_outbox UNION ALL {_ENTRY} audit_log) AS entry"


async def _add_bob(effect: Effect) -> Outcome:
    await users.ensure(effect.con, [BOB.pubkey])
    effect.audit(Action.SETTINGS_CHANGED, None, None, metadata={"what": "bob"})
    return STORED


async def test_a_transaction_of_its_own_is_committed_with_its_audit_entry(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        assert await core.ingest.transact(_add_bob, actor=ALICE.pubkey) == STORED
        row = await core.pool.fetchrow(f"SELECT action, actor, event_id, metadata FROM {AUDITED}")
        assert row is not None
        assert tuple(row) == ("settings_changed", ALICE.pubkey, None, '{"what":"bob"}')
        assert await core.pool.fetchval("SELECT encode(pubkey, 'hex') FROM users") == BOB.pubkey


async def test_a_transaction_that_is_refused_leaves_neither_rows_nor_entries(migrated_dsn: str) -> None:
    async def change_the_mind(effect: Effect) -> Outcome:
        await _add_bob(effect)
        raise refuse("not today")

    async with running_core(migrated_dsn) as core:
        outcome = await core.ingest.transact(change_the_mind, actor=ALICE.pubkey)
        assert (outcome.accepted, outcome.message) == (False, "invalid: not today")
        assert await core.pool.fetchval("SELECT count(*) FROM users") == 0
        assert await core.pool.fetchval(f"SELECT count(*) FROM {AUDITED}") == 0


async def test_a_transaction_is_not_undone_when_nobody_waits_for_it_any_more(migrated_dsn: str) -> None:
    begun, waiting = trio.Event(), trio.Event()

    async def slow(effect: Effect) -> Outcome:
        begun.set()
        await waiting.wait()
        return await _add_bob(effect)

    async with running_core(migrated_dsn) as core:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(core.ingest.transact, slow, actor=ALICE.pubkey))
            await begun.wait()
            nursery.cancel_scope.cancel()
        waiting.set()
    con = await connect(migrated_dsn)
    try:
        assert await con.fetchval(f"SELECT count(*) FROM {AUDITED}") == 1
    finally:
        con.terminate()


async def test_no_transaction_begins_once_the_door_is_closed(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        core.ingest.close()
        outcome = await core.ingest.transact(_add_bob, actor=ALICE.pubkey)
        assert outcome.refusal is SHUTTING_DOWN
        assert await core.pool.fetchval("SELECT count(*) FROM users") == 0
