"""Replies (NIP-10), from the event to the counters."""

from __future__ import annotations

import random

import pytest
import trio

from relay import metrics
from relay.ingest.types import Admission, Door
from relay.nostr.event import Event
from relay.store import events
from relay.store.threads import DEPTH_MAX
from tests.support.core import ALICE, BOB, CHANNEL, Core, Person, running_core

OTHER = "22222222-2222-4222-8222-222222222222"
OTHER_ROOT = "invalid: root tag does not match thread ancestry"


def marked(event: Event, marker: str) -> list[str]:
    return ["e", event.id, "", marker]


def message(name: str, *tags: list[str], person: Person = ALICE, channel: str = CHANNEL) -> Event:
    return person.sign(9, name, [["h", channel], *tags])


def reply(name: str, parent: Event, root: Event | None = None, person: Person = ALICE) -> Event:
    tags = [] if root is None else [marked(root, "root")]
    return message(name, *tags, marked(parent, "reply"), person=person)


async def say(core: Core, event: Event, person: Person = ALICE) -> Event:
    assert (await core.submit(person, event)).message == ""
    return event


async def text(core: Core, event: Event) -> str:
    return (await core.submit(ALICE, event)).message


async def places(core: Core) -> dict[str, tuple[object, ...]]:
    """(parent, root, depth, replies, descendants) by id."""
    rows = await core.pool.fetch(
        "SELECT encode(event_id, 'hex'), encode(parent_event_id, 'hex'), encode(root_event_id, 'hex'), depth, "
        "reply_count, descendant_count FROM thread_metadata"
    )
    return {row[0]: tuple(row.values())[1:] for row in rows}


async def test_a_message_that_answers_nothing_has_no_row(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = await say(core, message("root"))
        await say(core, message("about", marked(root, "root"), ["e", root.id], marked(root, "mention")))
        assert await places(core) == {}


async def test_a_thread_grows(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = await say(core, message("root"))
        first = await say(core, reply("first", root))
        second = await say(core, reply("second", root, root))
        deep = await say(core, reply("deep", first, root))
        assert await places(core) == {
            root.id: (None, None, 0, 2, 3),
            first.id: (root.id, root.id, 1, 1, 0),
            second.id: (root.id, root.id, 1, 0, 0),
            deep.id: (first.id, root.id, 2, 0, 0),
        }
        # The root that a reply names is the one that its parent has.
        for wrong in (reply("x", deep), reply("x", deep, deep), reply("x", deep, first), reply("x", root, first)):
            assert await text(core, wrong) == OTHER_ROOT
        assert (await core.submit(ALICE, deep)).message == "duplicate:"
        assert (await places(core))[root.id] == (None, None, 0, 2, 3)


async def test_an_event_from_before_the_threads_belongs_where_its_own_tags_say(migrated_dsn: str) -> None:
    """Stored without a row: a client reads the thread from its tags, and answers accordingly."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = await say(core, message("root"))
        by_root = await say(core, message("root alone", marked(root, "root")))
        by_reply = reply("no row", root)
        async with core.pool.acquire() as con:
            await events.insert_one(con, by_reply, CHANNEL)
        for number, parent in enumerate((by_root, by_reply, by_root, by_reply)):
            assert await text(core, reply(f"{number} x", parent)) == OTHER_ROOT
            answer = await say(core, reply(f"{number}", parent, root))
            assert (await places(core))[answer.id] == (parent.id, root.id, 2, 0, 0)
        found = await places(core)
        # A stub says nothing of where the event stands, and is not counted where it is not known to have been.
        assert (found[by_root.id], found[by_reply.id]) == ((None, None, 0, 2, 0), (None, None, 0, 2, 0))
        assert found[root.id] == (None, None, 0, 0, 4)


async def test_no_thread_crosses_the_border_of_a_channel(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        await core.create(BOB, OTHER, "private")
        secret = await say(core, message("secret", person=BOB, channel=OTHER), BOB)
        assert await text(core, reply("x", secret)) == "invalid: parent event belongs to a different channel"
        # A mere mark is no reply and is accepted; but what answers it does not become part of the other thread.
        about = await say(core, message("about", marked(secret, "root")))
        assert await text(core, reply("x", about, secret)) == OTHER_ROOT
        answer = await say(core, reply("answer", about))
        assert set(await places(core)) == {about.id, answer.id}


async def test_a_thread_is_a_hundred_deep(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = parent = await say(core, message("root"))
        for depth in range(1, DEPTH_MAX + 1):
            parent = await say(core, reply(str(depth), parent, root))
        assert (await places(core))[parent.id][2] == 100
        assert await text(core, reply("101", parent, root)) == "invalid: thread depth limit exceeded"
        assert (await places(core))[root.id] == (None, None, 0, 1, 100)


async def test_what_was_deleted_cannot_be_answered_and_is_counted_no_more(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = await say(core, message("root"))
        first = await say(core, reply("first", root))
        second = await say(core, reply("second", first, root))
        for deletion in (5, 9005):
            victim = first if deletion == 5 else second
            await say(core, ALICE.sign(deletion, tags=[["h", CHANNEL], ["e", victim.id]]))
            assert await text(core, reply("x", victim, root)) == "invalid: reply parent not found"
        found = await places(core)
        assert (found[root.id][3:], found[first.id][3:]) == ((0, 0), (0, 0))


async def test_a_reply_that_lost_its_access_is_not_counted(migrated_dsn: str) -> None:
    """It was admitted by a cache, and its row's insert knew better."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        await core.add(ALICE, BOB)
        root = await say(core, message("root"))
        admission = await core.ingest.admit(reply("x", root, person=BOB), BOB.caller, Door.HTTP)
        assert isinstance(admission, Admission)
        assert admission.thread is not None
        await core.pool.execute("UPDATE channel_members SET removed_at = now() WHERE role = 'member'")
        assert (await core.ingest.perform(admission)).message == "restricted: not a channel member"
        assert await places(core) == {}


async def test_the_client_hears_nothing_of_the_database(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = await say(core, message("root"))
        await core.pool.execute("ALTER TABLE thread_metadata RENAME TO elsewhere")
        assert await text(core, reply("x", root)) == "error: internal server error"
        await core.pool.execute("ALTER TABLE elsewhere RENAME TO thread_metadata")
        await say(core, reply("x", root))


def retries() -> float:
    return metrics.REGISTRY.get_sample_value("sprout_commit_retries_total", {"why": "server"}) or 0


@pytest.mark.parametrize("life", [{}, {"ttl": "600"}], ids=["channel", "ephemeral channel"])
async def test_counters_are_exact_when_all_answer_and_delete_at_once(migrated_dsn: str, life: dict[str, str]) -> None:
    """Fifty who answer one message again and again, and delete every second answer as soon as it is there. The locks
    are taken in one order (the channel's, then those of the thread), so nobody has to try again."""
    dice = random.Random(7)
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, **life)
        root = await say(core, message("root"))
        parent = await say(core, reply("parent", root))
        live: dict[str, str] = {parent.id: root.id}
        before = retries()

        async def answer(name: int) -> None:
            for number in range(6):
                target = dice.choice([root, parent, parent])
                event = await say(core, reply(f"{name} {number}", target, root))
                if number % 2:
                    await say(core, ALICE.sign(5, f"{name} {number}", [["e", event.id]]))
                else:
                    live[event.id] = target.id

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for name in range(50):
                    nursery.start_soon(answer, name)
        found = await places(core)
        assert len(found) == 2 + 50 * 6
        assert found[root.id][3:] == (sum(target == root.id for target in live.values()), len(live))
        assert found[parent.id][3:] == (sum(target == parent.id for target in live.values()), 0)
        assert retries() == before
