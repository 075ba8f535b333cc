"""A checkpoint as an event: stored, audited and delivered once, and nobody but the relay may submit one."""

from __future__ import annotations

import pytest

from relay.asyncpg_trio import connect
from relay.audit import note
from relay.audit.checkpointer import event_of
from relay.ingest import own_events
from relay.ingest.types import Door
from relay.nostr.kinds import AUDIT_CHECKPOINT
from relay.store import migrate
from tests.support.core import ALICE, running_core


@pytest.fixture
async def core(empty_dsn):
    con = await connect(empty_dsn)
    await migrate.up(con)
    await con.close()
    async with running_core(empty_dsn) as core:
        yield core


async def test_published_once_and_audited_once(core):
    checkpoint = note.sign(note.origin_of(core.key.public_hex), 7, b"r" * 32, core.key)
    event = event_of(core.key, checkpoint, 1_767_225_600_000_000)
    assert await own_events.publish(core.ingest, event)
    assert await own_events.publish(core.ingest, event)  # as after a crash between publishing and noting it
    assert await core.kinds() == [AUDIT_CHECKPOINT]
    entries = await core.pool.fetch(
        "SELECT action, actor, event_id, kind FROM (SELECT action, actor, event_id, kind FROM audit_outbox "
        "UNION ALL SELECT action, actor, event_id, kind FROM audit_log) AS every"
    )
    assert [tuple(row) for row in entries] == [("event_created", core.key.public_hex, event.id, AUDIT_CHECKPOINT)]


@pytest.mark.parametrize("door", [Door.WEBSOCKET, Door.HTTP])
async def test_nobody_else_may_submit_one(core, door):
    checkpoint = note.sign(note.origin_of(ALICE.pubkey), 7, b"r" * 32, ALICE.key)
    outcome = await core.submit(ALICE, ALICE.sign(AUDIT_CHECKPOINT, checkpoint.note), door)
    assert not outcome.accepted
    stolen = event_of(core.key, note.sign("x", 1, b"r" * 32, core.key), 1_767_225_600_000_000)
    assert not (await core.submit(ALICE, stolen, door)).accepted
    assert await core.kinds() == []


async def test_a_relay_that_stops_says_no_and_the_next_start_publishes(core):
    checkpoint = note.sign(note.origin_of(core.key.public_hex), 7, b"r" * 32, core.key)
    core.ingest.close()
    assert not await own_events.publish(core.ingest, event_of(core.key, checkpoint, 1_767_225_600_000_000))
