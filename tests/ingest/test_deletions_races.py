"""Deletions at once: with each other, with replies, with reactions."""

from __future__ import annotations

import pytest
import trio

from relay.nostr.event import Event
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Person, running_core
from tests.support.deleting import (
    HOLD_EVENT,
    HOLD_THREAD,
    at,
    audited,
    counts,
    publish,
    reactions,
    reply,
    say,
)
from tests.support.locks import held, waiting


async def test_of_several_deletions_of_one_event_one_deletes(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = await say(core, BOB, "root")
        message = await reply(core, BOB, "answer", root)
        tags = [["h", CHANNEL], ["e", message.id]]
        requests = [(BOB, 5, 0), (BOB, 5, 1), (BOB, 9005, 0), (ALICE, 9005, 0)]
        outcomes = []

        async def submit(person: Person, event: Event) -> None:
            outcomes.append((await core.submit(person, event)).message)

        async with trio.open_nursery() as nursery, held(core, HOLD_EVENT, bytes.fromhex(message.id)):
            for person, kind, offset in requests:
                nursery.start_soon(submit, person, person.sign(kind, tags=tags, at=at(offset)))
            await waiting(core, len(requests))
        told = await core.kinds("content LIKE '%message_deleted%'")
        by_group = await core.kinds("kind = 9005")
        assert len(told) == len(by_group) <= 1
        # Kind 5 is stored whoever was first; a 9005 that finds nothing to delete is refused.
        assert sorted(outcomes) == [""] * (2 + len(by_group)) + ["invalid: target event not found"] * (
            2 - len(by_group)
        )
        assert len(await audited(core)) == 1
        assert await counts(core, root) == (0, 0)


@pytest.mark.parametrize(("kind", "tag"), [(5, "e"), (5, "a"), (9005, "e")])
async def test_one_deletion_that_comes_several_times_at_once(migrated_dsn: str, kind: int, tag: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        target = await say(core, ALICE) if tag == "e" else await publish(core, ALICE, ALICE.sign(3, "contacts"))
        named = [tag, target.id if tag == "e" else f"3:{ALICE.pubkey}:"]
        deletion = ALICE.sign(kind, tags=[["h", CHANNEL], named])
        outcomes = []

        async def submit() -> None:
            outcomes.append((await core.submit(ALICE, deletion)).message)

        async with trio.open_nursery() as nursery, held(core, HOLD_EVENT, bytes.fromhex(target.id)):
            for _ in range(3):
                nursery.start_soon(submit)
            await waiting(core, 3)
        assert sorted(outcomes) == ["", "duplicate:", "duplicate:"]
        assert await audited(core) == [(deletion.id, {"target": target.id})]
        assert len(await core.kinds("content LIKE '%message_deleted%'")) == (kind == 9005)


async def test_replies_that_come_and_go_at_once_are_counted_right(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = await say(core, ALICE, "root")
        parent = await reply(core, ALICE, "parent", root)
        marks = [["e", root.id, "", "root"], ["e", parent.id, "", "reply"]]
        old = [await say(core, BOB, f"old {number}", *marks) for number in range(12)]
        new = [BOB.sign(9, f"new {number}", [["h", CHANNEL], *marks]) for number in range(7)]
        async with trio.open_nursery() as nursery:
            for number, message in enumerate(old):
                nursery.start_soon(core.submit, BOB, BOB.sign(5, tags=[["e", message.id]]))
                if number < len(new):
                    nursery.start_soon(core.submit, BOB, new[number])
        assert await counts(core, parent) == (7, 0)
        assert await counts(core, root) == (1, 8)
        # The parent goes while somebody answers it: the answer stays, and is counted where it hangs.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.submit, ALICE, ALICE.sign(5, tags=[["e", parent.id]]))
            nursery.start_soon(core.submit, BOB, BOB.sign(9, "late", [["h", CHANNEL], *marks]))
        answers = len(await core.kinds("kind = 9")) - 1
        assert await counts(core, root) == (0, answers)
        assert await counts(core, parent) == (answers, 0)


@pytest.mark.parametrize("kind", [5, 9005])
async def test_an_ephemeral_channel_is_locked_before_the_thread(migrated_dsn: str, kind: int) -> None:
    """A batch of replies locks the channel, whose time it prolongs, and then the threads. A deletion that began at the
    other end would meet it in the middle."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, ttl="3600")
        root = await say(core, ALICE, "root")
        answer = await reply(core, ALICE, "answer", root)
        deadline = await core.pool.fetchval("SELECT ttl_deadline FROM channels")
        tags = [["h", CHANNEL], ["e", answer.id]]
        hold = "SELECT id FROM channels FOR NO KEY UPDATE"
        async with trio.open_nursery() as nursery, held(core, hold) as con:
            nursery.start_soon(core.submit, ALICE, ALICE.sign(kind, tags=tags))
            await waiting(core, 1)
            assert await con.fetch(f"{HOLD_THREAD} NOWAIT", bytes.fromhex(root.id))
        assert await counts(core, root) == (0, 0)
        assert await core.pool.fetchval("SELECT ttl_deadline FROM channels") > deadline


async def test_nobody_reacts_to_what_is_being_deleted(migrated_dsn: str) -> None:
    """The deletion has marked its target and waits for the counts of the thread; the reaction must wait for it."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = await say(core, ALICE, "root")
        message = await reply(core, BOB, "answer", root)
        outcomes: dict[int, str] = {}

        async def submit(person: Person, event: Event) -> None:
            outcomes[event.kind] = (await core.submit(person, event)).message

        async with trio.open_nursery() as nursery, held(core, HOLD_THREAD, bytes.fromhex(root.id)):
            nursery.start_soon(submit, BOB, BOB.sign(5, tags=[["e", message.id]]))
            await waiting(core, 1)
            nursery.start_soon(submit, CAROL, CAROL.sign(7, "+", [["e", message.id]]))
            await waiting(core, 2)
        assert outcomes == {5: "", 7: "invalid: reaction target event not found"}
        assert await reactions(core) == 0
        assert 7 not in await core.kinds()


async def test_many_react_to_one_message_without_waiting_for_each_other(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = await say(core, ALICE)
        async with held(core, HOLD_EVENT.replace("UPDATE", "SHARE"), bytes.fromhex(message.id)):
            with trio.fail_after(30):
                await publish(core, BOB, BOB.sign(7, "+", [["e", message.id]]))
