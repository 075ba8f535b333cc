"""The sweep of expired events (NIP-40): what it takes, what it puts right, and what it leaves to others."""

from __future__ import annotations

import time

import orjson
import pytest
import trio

from relay.asyncpg_trio import connect
from relay.audit import outbox
from relay.ingest import expiry
from relay.ingest.effects import Effect
from relay.ingest.turns import Turns
from relay.nostr.event import Event
from tests.support.core import ALICE, BOB, CHANNEL, Core, Person, running_core
from tests.support.locks import held, waiting


async def sweep(core: Core, *, after: int = 0) -> int:
    """One sweep in a transaction of its own, as an effect worker runs it, that many seconds from now."""
    con = await connect(core.dsn)
    try:
        async with con.transaction():
            now_us = time.time_ns() // 1000 + after * 1_000_000
            effect = Effect(con, core.key, core.key.public_hex, now_us, 0, Turns().turn())
            outcome = await expiry.sweep(effect)
            assert outcome.accepted
            assert effect.items == []
            await outbox.insert(con, effect.entries)
        return int(outcome.message)
    finally:
        con.terminate()


async def submit(core: Core, person: Person, kind: int, content: str, *tags: list[str], ends: int | None = 60) -> Event:
    """Stores an event that ends so many seconds from now."""
    expiration = [] if ends is None else [["expiration", str(int(time.time()) + ends)]]
    event = person.sign(kind, content, [*tags, *expiration])
    assert (await core.submit(person, event)).message == ""
    return event


async def live(core: Core) -> set[str]:
    return {row[0] for row in await core.pool.fetch("SELECT encode(id, 'hex') FROM events WHERE deleted_at IS NULL")}


async def test_what_has_expired_is_deleted_and_audited(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        early = await submit(core, ALICE, 1, "early", ends=30)
        late = await submit(core, ALICE, 1, "late", ends=90)
        lasting = await submit(core, ALICE, 1, "lasting", ends=None)
        assert await sweep(core) == 0
        assert await sweep(core, after=60) == 1
        assert await live(core) == {late.id, lasting.id}
        assert await sweep(core, after=60) == 0
        rows = await core.pool.fetch(
            "SELECT event_id, kind, actor, metadata FROM audit_outbox WHERE action = 'event_deleted' "
            "UNION ALL SELECT event_id, kind, actor, metadata FROM audit_log WHERE action = 'event_deleted'"
        )
        assert [tuple(row.values())[:3] for row in rows] == [(early.id, 1, core.key.public_hex)]
        assert orjson.loads(rows[0]["metadata"]) == {"reason": "expired"}
        assert (await core.submit(ALICE, early)).message == "duplicate:"


async def test_the_very_second_counts(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        event = await submit(core, ALICE, 1, "x")
        now = int(time.time())
        await core.pool.execute("UPDATE events SET expires_at = $1", now + 1000)
        assert await sweep(core, after=990) == 0
        assert await live(core) == {event.id}
        await core.pool.execute("UPDATE events SET expires_at = $1", now)
        assert await sweep(core) == 1


async def test_threads_reactions_and_profiles_are_put_right(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        here = ["h", CHANNEL]
        root = await submit(core, ALICE, 9, "root", here, ends=None)
        mark = ["e", root.id, "", "reply"]
        for number in range(3):
            await submit(core, BOB, 9, f"answer {number}", here, mark)
        stays = await submit(core, BOB, 9, "stays", here, mark, ends=None)
        await submit(core, BOB, 7, "+", ["e", root.id])
        await submit(core, ALICE, 7, "+", ["e", root.id], ends=None)
        await submit(core, BOB, 0, '{"name":"bob"}')
        await submit(core, ALICE, 0, '{"name":"alice"}', ends=None)
        assert await sweep(core, after=120) == 5
        row = await core.pool.fetchrow(
            "SELECT reply_count, descendant_count FROM thread_metadata WHERE event_id = $1", bytes.fromhex(root.id)
        )
        assert tuple(row.values()) == (1, 1)
        assert {root.id, stays.id} <= await live(core)
        reacted = await core.pool.fetch("SELECT encode(pubkey, 'hex') FROM reactions WHERE removed_at IS NULL")
        assert [row[0] for row in reacted] == [ALICE.pubkey]
        names = await core.pool.fetch("SELECT display_name FROM users WHERE display_name IS NOT NULL")
        assert [row[0] for row in names] == ["alice"]


async def test_a_sweep_takes_so_many_and_the_oldest_first(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "EVENTS_MAX", 2)
    async with running_core(migrated_dsn) as core:
        events = [await submit(core, ALICE, 1, str(ends), ends=ends) for ends in (50, 30, 40)]
        assert await sweep(core, after=60) == 2
        assert await live(core) == {events[0].id}
        assert await sweep(core, after=60) == 1


async def test_sweeps_and_deletions_at_once_delete_each_event_once(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = await submit(core, ALICE, 9, "root", ["h", CHANNEL], ends=None)
        tags = [["h", CHANNEL], ["e", root.id, "", "reply"]]
        answers = [await submit(core, BOB, 9, f"answer {number}", *tags) for number in range(20)]
        await submit(core, BOB, 9, "stays", *tags, ends=None)
        swept = []

        async def one_sweep() -> None:
            swept.append(await sweep(core, after=120))

        async with trio.open_nursery() as nursery:
            for answer in answers[:8]:
                nursery.start_soon(core.submit, BOB, BOB.sign(5, tags=[["e", answer.id]]))
            for _ in range(3):
                nursery.start_soon(one_sweep)
        swept.append(await sweep(core, after=120))
        audited = await core.pool.fetchval(
            "SELECT (SELECT count(*) FROM audit_outbox WHERE action = 'event_deleted') "
            "+ (SELECT count(*) FROM audit_log WHERE action = 'event_deleted')"
        )
        assert sum(swept) >= len(answers) - 8
        assert audited == len(answers)
        assert await core.pool.fetchval("SELECT reply_count FROM thread_metadata WHERE reply_count > 0") == 1


async def test_a_sweep_waits_for_nobody_who_deletes(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        first, second = [await submit(core, ALICE, 1, text) for text in "ab"]
        hold = "SELECT id FROM events WHERE id = $1 FOR UPDATE"
        async with held(core, hold, bytes.fromhex(first.id)):
            with trio.fail_after(30):
                assert await sweep(core, after=120) == 1
        assert await live(core) == {first.id}
        assert second.id not in await live(core)


async def test_the_rows_of_threads_are_locked_in_their_order(migrated_dsn: str) -> None:
    """A batch of new replies locks them by id. A sweep that took the second first would wait for that batch for ever,
    and the batch for the sweep."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        here = ["h", CHANNEL]
        roots = [await submit(core, ALICE, 9, f"root {number}", here, ends=None) for number in range(2)]
        low, high = sorted(roots, key=lambda event: event.id)
        to_high = await submit(core, BOB, 9, "to the higher", here, ["e", high.id, "", "reply"])
        # The reply that would come first is the one whose root comes last.
        for number in range(100_000):  # some of all ids are higher than nearly all others
            tags = [here, ["e", low.id, "", "reply"], ["expiration", str(int(time.time()) + 60)]]
            to_low = BOB.sign(9, f"to the lower {number}", tags)
            if to_low.id > to_high.id:
                break
        assert to_low.id > to_high.id
        assert (await core.submit(BOB, to_low)).message == ""
        hold = "SELECT event_id FROM thread_metadata WHERE event_id = $1 FOR UPDATE"
        async with trio.open_nursery() as nursery, held(core, hold, bytes.fromhex(low.id)) as con:
            nursery.start_soon(lambda: sweep(core, after=120))
            await waiting(core, 1)
            assert await con.fetch(f"{hold} NOWAIT", bytes.fromhex(high.id))
        assert await core.pool.fetchval("SELECT sum(reply_count) FROM thread_metadata") == 0


async def test_a_newer_profile_survives_the_end_of_the_older_one(migrated_dsn: str) -> None:
    """The sweep has taken the old version; the new one waits for it and is then what the users' table shows."""
    async with running_core(migrated_dsn) as core:
        await submit(core, ALICE, 0, '{"name":"old"}')
        newer = ALICE.sign(0, '{"name":"new"}', at=int(time.time()) + 5)
        hold = "SELECT pubkey FROM users WHERE pubkey = $1 FOR UPDATE"
        async with trio.open_nursery() as nursery, held(core, hold, bytes.fromhex(ALICE.pubkey)):
            nursery.start_soon(lambda: sweep(core, after=120))
            await waiting(core, 1)
            nursery.start_soon(core.submit, ALICE, newer)
            await waiting(core, 2)
        assert await core.pool.fetchval("SELECT display_name FROM users") == "new"
        assert await live(core) == {newer.id}
