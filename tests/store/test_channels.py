"""Rows of channels: in which order they are locked."""

from __future__ import annotations

import trio

from relay.asyncpg_trio import Connection, connect
from relay.store import channels
from tests.support.core import ALICE, CHANNEL

LOWER = CHANNEL[:-1] + "0"
HOLD = "SELECT id FROM channels WHERE id = $1 FOR UPDATE"
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def test_channels_are_touched_in_the_order_of_their_ids(con: Connection, migrated_dsn: str) -> None:
    """Whatever order they stand in, or two relays with the same two channels would wait for each other."""
    for channel_id in (CHANNEL, LOWER):
        await channels.create(
            con,
            channel_id=channel_id,
            name="x",
            channel_type="stream",
            visibility="open",
            description=None,
            created_by=ALICE.pubkey,
            ttl_seconds=60,
        )
    other = await connect(migrated_dsn)
    async with trio.open_nursery() as nursery, con.transaction():
        await con.execute(HOLD, LOWER)
        nursery.start_soon(channels.touch_ttl, other, [CHANNEL, LOWER])
        with trio.fail_after(10):
            while not await con.fetchval(_WAITING):
                await trio.sleep(0.005)
        assert await con.fetch(f"{HOLD} NOWAIT", CHANNEL)
    other.terminate()
    deadlines = await con.fetch("SELECT DISTINCT ttl_deadline FROM channels")
    assert len(deadlines) == 1
