"""The reaper: ephemeral channels whose time is over, events that expired, channels without their state events."""

from __future__ import annotations

import time
from functools import partial

import pytest
import trio
import trio.testing

from relay.asyncpg_trio import connect
from relay.errors import SHUTTING_DOWN, StoreGone
from relay.ingest import reaper as reapers
from relay.ingest.reaper import archive_expired, complete_state
from relay.ingest.types import Outcome
from relay.metrics import REGISTRY
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Core, running_core
from tests.support.groups import OTHER, STATE, Told, edit, listening, people_in, settled, since

ARCHIVED = "SELECT archived_at IS NOT NULL FROM channels WHERE id = $1"
OVER = "UPDATE channels SET ttl_deadline = now() - interval '1 second' WHERE id = $1"


async def look(core: Core) -> Told:
    """One look, and all that followed from it."""
    await settled(core)
    seq = await core.pool.fetchval("SELECT count(*) FROM audit_log")
    await core.ingest.reaper().look()
    return await since(core, seq, Outcome(True, ""))


def reaped(what: str) -> float:
    return REGISTRY.get_sample_value("sprout_reaped_total", {"what": what}) or 0.0


async def test_a_channel_whose_time_is_over_is_archived_and_says_so(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core, "private", ttl="600")
        await core.create(ALICE, OTHER, ttl="600")
        await core.pool.execute(OVER, CHANNEL)
        before = reaped("channel")
        async with listening(core, CAROL) as member:
            seen = await look(core)
            assert [message[2]["kind"] for message in await member.read(4)] == [40099, *STATE]
        assert seen.actions == ["channel_updated", "40099", "39000", "39001", "39002"]
        assert seen.messages == [{"type": "channel_auto_archived"}]
        assert {entry[2] for entry in seen.entries} == {core.key.public_hex}
        assert seen.entries[0][3] == {"changed": "archived", "reason": "ttl"}
        assert ["archived", "true"] in seen.event(39000).tags
        assert await core.pool.fetchval(ARCHIVED, CHANNEL)
        assert not await core.pool.fetchval(ARCHIVED, OTHER)
        assert reaped("channel") == before + 1
        # The caches know it too.
        assert (await core.say(CAROL, "hello")).message == "invalid: channel is archived"
        # Done is done.
        assert (await look(core)).entries == []


async def test_unarchived_it_lives_its_whole_time(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, ttl="600")
        await core.pool.execute(OVER, CHANNEL)
        await look(core)
        assert (await edit(core, ALICE, ["archived", "false"])).accepted
        assert (await look(core)).entries == []
        assert not await core.pool.fetchval(ARCHIVED, CHANNEL)


@pytest.mark.parametrize(
    "change", ["ttl_deadline = now() + interval '1 hour'", "deleted_at = now()", "archived_at = now()"]
)
async def test_it_looks_again_under_the_lock(migrated_dsn: str, change: str) -> None:
    """Between the look and the transaction an event gave the channel its time back, or somebody was quicker."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, ttl="600")
        await core.pool.execute(OVER, CHANNEL)
        await settled(core)
        entries = await core.pool.fetchval("SELECT count(*) FROM audit_log")
        other = await connect(migrated_dsn)
        outcomes: list[Outcome] = []

        async def archive() -> None:
            apply = partial(archive_expired, channel_id=CHANNEL)
            outcomes.append(await core.ingest._run(apply, core.key.public_hex, time.time_ns() // 1000))

        async with trio.open_nursery() as nursery, other.transaction():
            await other.execute(f"UPDATE channels SET {change}")
            nursery.start_soon(archive)
            with trio.fail_after(5):  # it waits for the row
                while not await core.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await trio.sleep(0.01)
        other.terminate()
        assert outcomes == [Outcome(True, "nothing to do")]
        await settled(core)
        assert await core.pool.fetchval("SELECT count(*) FROM audit_log") == entries


async def test_two_relays_archive_once(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as first, running_core(migrated_dsn) as second:
        channels = [f"{CHANNEL[:-2]}{number:02}" for number in range(12)]
        for channel in channels:
            await first.create(ALICE, channel, ttl="600")
        await first.pool.execute("UPDATE channels SET ttl_deadline = now() - interval '1 second'")
        async with trio.open_nursery() as nursery:
            for core in (first, second):
                nursery.start_soon(core.ingest.reaper().look)
        content = """{"type":"channel_auto_archived"}"""
        rows = await first.pool.fetch(
            "SELECT channel_id::text, count(*) FROM events WHERE content = $1 GROUP BY 1", content
        )
        assert sorted(map(tuple, rows)) == [(channel, 1) for channel in channels]
        assert await first.pool.fetchval("SELECT count(*) FROM channels WHERE archived_at IS NULL") == 0


async def test_more_than_a_page_is_archived_in_one_look(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reapers, "PAGE", 2)
    async with running_core(migrated_dsn) as core:
        for number in range(5):
            await core.create(ALICE, f"{CHANNEL[:-1]}{number}", ttl="600")
        await core.pool.execute("UPDATE channels SET ttl_deadline = now() - interval '1 second'")
        await look(core)
        assert await core.pool.fetchval("SELECT count(*) FROM channels WHERE archived_at IS NULL") == 0


async def test_expired_events_are_swept_until_none_is_left(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.ingest.expiry.EVENTS_MAX", 2)
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        soon = str(int(time.time()) + 600)
        for number in range(5):
            event = CAROL.sign(9, str(number), [["h", CHANNEL], ["expiration", soon]])
            assert (await core.submit(CAROL, event)).accepted
        assert (await look(core)).entries == []
        await core.pool.execute("UPDATE events SET expires_at = $1 WHERE expires_at IS NOT NULL", int(time.time()) - 1)
        before = reaped("event")
        seen = await look(core)
        assert seen.actions == 5 * ["event_deleted"]
        assert {(entry[2], entry[3]["reason"]) for entry in seen.entries} == {(core.key.public_hex, "expired")}
        assert await core.kinds("kind = 9") == []
        assert reaped("event") == before + 5


async def test_the_first_look_completes_what_has_no_state(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reapers, "PAGE", 2)
    channels = [f"{CHANNEL[:-1]}{number}" for number in range(5)]
    async with running_core(migrated_dsn) as core:
        for channel in channels:
            await core.create(ALICE, channel)
        await core.submit(ALICE, ALICE.sign(9008, tags=[["h", channels[4]]]))
        await edit(core, ALICE, ["archived", "true"], channel=channels[3])
        # One lacks all, one lacks one, one lacks none; an archived one lacks all too.
        gone = "UPDATE events SET deleted_at = now() WHERE kind = ANY($1::int[]) AND channel_id = $2"
        await core.pool.execute(gone, STATE, channels[0])
        await core.pool.execute(gone, [39001], channels[1])
        await core.pool.execute(gone, STATE, channels[3])
        await settled(core)
        seq = await core.pool.fetchval("SELECT count(*) FROM audit_log")
        await core.ingest.reaper().reconcile()
        seen = await since(core, seq, Outcome(True, ""))
        named = [(event.kind, event.first_tag("d")) for event in seen.events]
        assert named == [(kind, channels[number]) for number in (0, 1, 3) for kind in STATE]
        for channel in channels[:4]:
            assert await core.kinds(f"kind BETWEEN 39000 AND 39002 AND channel_id = '{channel}'") == STATE
        await core.ingest.reaper().reconcile()
        assert (await since(core, seq, Outcome(True, ""))).entries == seen.entries


async def test_the_timer_looks_at_once_and_then_again(migrated_dsn: str) -> None:
    """The period is short here; how long it is, is the setting's business."""
    async with running_core(migrated_dsn, reaper_seconds=0.02) as core:
        for channel in (CHANNEL, OTHER):
            await core.create(ALICE, channel, ttl="600")
        await core.pool.execute("UPDATE events SET deleted_at = now() WHERE kind = 39000")
        await core.pool.execute(OVER, CHANNEL)
        async with trio.open_nursery() as nursery:
            await nursery.start(core.ingest.run_reaper)
            with trio.fail_after(5):
                while not await core.pool.fetchval(ARCHIVED, CHANNEL):
                    await trio.sleep(0.01)
                assert await core.kinds(f"kind = 39000 AND channel_id = '{OTHER}'") == [39000]
                await core.pool.execute(OVER, OTHER)
                while not await core.pool.fetchval(ARCHIVED, OTHER):
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_store_that_is_away_ends_neither_the_timer_nor_the_first_look(autojump_clock: object) -> None:
    """What the table answers is played here: a real server that is away is another test's matter."""

    class Away:
        looks = 0

        async def fetch(self, *_: object) -> list[object]:
            await trio.lowlevel.checkpoint()
            self.looks += 1
            if self.looks <= 2:
                raise StoreGone("away")
            return []

    async def submit(_: object) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Outcome.refused(SHUTTING_DOWN)

    away = Away()
    reaper = reapers.Reaper(submit, away, pubkey=BOB.pubkey, seconds=60)  # type: ignore[arg-type]
    began = trio.current_time()
    with trio.move_on_after(200):
        await reaper.run()
    # Twice nothing, then the state and the channels, then the channels every time.
    assert away.looks == 2 + 2 + 1
    assert trio.current_time() - began == 200


async def test_a_relay_that_is_stopping_begins_nothing(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, ttl="600")
        await core.pool.execute(OVER, CHANNEL)
        core.ingest.close()
        assert (await look(core)).entries == []
        assert not await core.pool.fetchval(ARCHIVED, CHANNEL)


async def test_state_is_completed_only_where_it_is_still_missing(migrated_dsn: str) -> None:
    """Between the look and the transaction the channel was changed, and so has its state; or it was deleted."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        apply = partial(complete_state, channel_id=CHANNEL)
        for _ in range(2):
            outcome = await core.ingest._run(apply, core.key.public_hex, time.time_ns() // 1000)
            assert outcome == Outcome(True, "nothing to do")
            await core.submit(ALICE, ALICE.sign(9008, tags=[["h", CHANNEL]]))
        assert await core.kinds("kind BETWEEN 39000 AND 39002") == []
