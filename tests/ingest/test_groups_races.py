"""Group changes at the same moment: each pair ends as one of its orders would, and is told in that order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from relay.asyncpg_trio.transaction import Transaction
from relay.ingest.types import Outcome
from relay.nostr.event import Event
from relay.store import members
from relay.store import outcome as outcomes
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Core, Person, running_core
from tests.support.groups import DAVE, edit, listening, people_in, settled

ROUNDS = 50


def channel_of(number: int) -> str:
    return f"{CHANNEL[:-4]}{number:04}"


async def both(core: Core, *submissions: tuple[Person, Event]) -> list[bool]:
    """Submits them in the same moment; whether each was accepted."""
    accepted: list[bool] = [False] * len(submissions)

    async def submit(place: int, person: Person, event: Event) -> None:
        accepted[place] = (await core.submit(person, event)).accepted

    async with trio.open_nursery() as nursery:
        for place, (person, event) in enumerate(submissions):
            nursery.start_soon(submit, place, person, event)
    return accepted


async def roles(core: Core, channel: str) -> dict[str, str]:
    return {member.pubkey: member.role for member in await members.active(core.pool, channel)}


async def audience_agrees(core: Core, channel: str) -> None:
    """What the fan-out believes of a private channel is what the table says."""
    await settled(core)
    stored = await roles(core, channel)
    for person in (ALICE, BOB, CAROL, DAVE):
        assert core.hub.audiences.may_receive(channel, person.pubkey) == (person.pubkey in stored)


async def test_of_two_owners_who_leave_at_once_one_stays(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        for number in range(ROUNDS):
            channel = channel_of(number)
            await core.create(ALICE, channel, "private")
            await core.add(ALICE, BOB, "owner", channel=channel)
            await core.hub.watch([channel])
            kinds = (9022, 9001) if number % 2 else (9022, 9022)
            pairs = [
                (person, person.sign(kind, tags=[["h", channel], ["p", person.pubkey]]))
                for person, kind in zip((ALICE, BOB), kinds, strict=True)
            ]
            assert sorted(await both(core, *pairs)) == [False, True]
            assert list((await roles(core, channel)).values()) == ["owner"]
            await audience_agrees(core, channel)


async def test_of_two_owners_who_demote_each_other_one_stays(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        for number in range(ROUNDS // 5):
            channel = channel_of(number)
            await core.create(ALICE, channel, "private")
            await core.add(ALICE, BOB, "owner", channel=channel)
            pairs = [
                (actor, actor.sign(9000, tags=[["h", channel], ["p", target.pubkey], ["role", "member"]]))
                for actor, target in ((ALICE, BOB), (BOB, ALICE))
            ]
            assert sorted(await both(core, *pairs)) == [False, True]
            assert sorted((await roles(core, channel)).values()) == ["member", "owner"]


async def test_removed_or_promoted_in_one_order_or_the_other(migrated_dsn: str) -> None:
    """Alice removes Carol while Bob makes her an admin: either she is gone, or she came back as what Bob said."""
    seen: set[tuple[str, ...]] = set()
    async with running_core(migrated_dsn) as core:
        for number in range(ROUNDS // 2):
            channel = channel_of(number)
            await core.create(ALICE, channel, "private")
            await core.add(ALICE, BOB, "admin", channel=channel)
            await core.add(ALICE, CAROL, channel=channel)
            await core.hub.watch([channel])
            await settled(core)
            start = await core.pool.fetchval("SELECT count(*) FROM audit_log")
            pair = [
                (ALICE, ALICE.sign(9001, tags=[["h", channel], ["p", CAROL.pubkey]])),
                (BOB, BOB.sign(9000, tags=[["h", channel], ["p", CAROL.pubkey], ["role", "admin"]])),
            ]
            assert await both(core, *(pair if number % 2 else reversed(pair))) == [True, True]
            await audience_agrees(core, channel)
            rows = await core.pool.fetch(
                "SELECT action FROM audit_log WHERE seq > $1 AND action LIKE 'member%' ORDER BY seq", start
            )
            order = tuple(row[0] for row in rows)
            expected = {"member_added": "admin", "member_removed": None}[order[-1]]
            assert (await roles(core, channel)).get(CAROL.pubkey) == expected
            seen.add(order)
    assert len(seen) == 2, "one of the two orders was never tried"


async def test_who_is_removed_while_promoting_another(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        for number in range(ROUNDS // 2):
            channel = channel_of(number)
            await core.create(ALICE, channel, "private")
            await core.add(ALICE, BOB, "admin", channel=channel)
            await core.add(ALICE, CAROL, channel=channel)
            removed, promoted = await both(
                core,
                (ALICE, ALICE.sign(9001, tags=[["h", channel], ["p", BOB.pubkey]])),
                (BOB, BOB.sign(9000, tags=[["h", channel], ["p", CAROL.pubkey], ["role", "admin"]])),
            )
            assert removed
            found = await roles(core, channel)
            assert BOB.pubkey not in found
            assert found[CAROL.pubkey] == ("admin" if promoted else "member")


async def test_visibility_and_members_change_at_once(migrated_dsn: str) -> None:
    """Whatever the order, what the fan-out believes afterwards is what the table says."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        await core.hub.watch([CHANNEL])

        async def toggle() -> None:
            for number in range(30):
                value = "private" if number % 2 == 0 else "open"
                assert (await edit(core, ALICE, ["visibility", value], content=str(number))).accepted

        async def come_and_go(person: Person) -> None:
            for number in range(15):
                added = ALICE.sign(9000, str(number), [["h", CHANNEL], ["p", person.pubkey]])
                assert (await core.submit(ALICE, added)).accepted
                gone = person.sign(9022, str(number), [["h", CHANNEL]])
                assert (await core.submit(person, gone)).accepted

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(toggle)
                for person in (BOB, CAROL, DAVE):
                    nursery.start_soon(come_and_go, person)
        assert (await edit(core, ALICE, ["visibility", "private"], content="at last")).accepted
        await audience_agrees(core, CHANNEL)


@asynccontextmanager
async def unanswered(monkeypatch: pytest.MonkeyPatch, slow: Callable[[], Awaitable[Outcome]]) -> AsyncIterator[None]:
    """The COMMIT of `slow` is done and not answered, and what became of it is asked after half a second: long enough
    for what the block does to overtake it. Leaves when both are over."""
    original, asked, broken = Transaction._commit, outcomes._status, trio.Event()

    async def commit(self: Transaction) -> None:
        if not broken.is_set():
            broken.set()
            con = self._connection
            await con.execute("COMMIT")
            con.terminate()
        await original(self)

    async def status(con: Any, xid: int) -> str | None:
        await trio.sleep(0.5)
        return await asked(con, xid)

    monkeypatch.setattr(Transaction, "_commit", commit)
    monkeypatch.setattr(outcomes, "_status", status)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow)
        with trio.fail_after(5):
            await broken.wait()
        yield


async def test_a_change_of_visibility_without_an_answer_keeps_its_place(
    migrated_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open, then private again, and nobody answers the first COMMIT: told to the fan-out in the wrong order, these two
    would leave a private channel open to everybody."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        await core.hub.watch([CHANNEL])
        await settled(core)
        async with unanswered(monkeypatch, partial(edit, core, ALICE, ["visibility", "open"])):
            assert (await edit(core, ALICE, ["visibility", "private"])).accepted
        await audience_agrees(core, CHANNEL)


async def test_an_end_without_an_answer_keeps_its_place(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Carol is added without an answer, then the group ends: neither the order nor the fan-out lets her in again."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        await core.hub.watch([CHANNEL])
        await settled(core)
        async with unanswered(monkeypatch, partial(core.add, ALICE, CAROL)):
            assert (await core.submit(ALICE, ALICE.sign(9008, tags=[["h", CHANNEL]]))).accepted
        await settled(core)
        for person in (ALICE, CAROL):
            assert not core.hub.audiences.may_receive(CHANNEL, person.pubkey)


async def test_a_beginning_without_an_answer_keeps_its_place(
    migrated_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who knows the id adds a member as soon as the group is there: it is told of as new, and then of its member."""
    async with (
        running_core(migrated_dsn) as core,
        unanswered(monkeypatch, partial(core.create, ALICE)),
        listening(core, ALICE) as listener,
    ):
        assert (await core.add(ALICE, CAROL)).accepted
        kinds = [message[2]["kind"] for message in await listener.read(10)]
        assert kinds == [9007, 40099, 39000, 39001, 39002, 9000, 40099, 39000, 39001, 39002]


@pytest.mark.parametrize(
    ("kind", "tags", "loser"),
    [
        (9001, [["p", CAROL.pubkey]], CAROL),
        (9002, [["visibility", "private"]], DAVE),
        (9008, [], CAROL),
    ],
)
async def test_the_ok_waits_for_a_fan_out_that_is_behind(
    migrated_dsn: str, monkeypatch: pytest.MonkeyPatch, kind: int, tags: list[list[str]], loser: Person
) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core, "open" if kind == 9002 else "private")
        await core.hub.watch([CHANNEL])
        await settled(core)
        passes = core.hub._pass

        async def slow(batches: Any) -> None:
            await trio.sleep(0.3)
            await passes(batches)

        monkeypatch.setattr(core.hub, "_pass", slow)
        assert core.hub.audiences.may_receive(CHANNEL, loser.pubkey)
        assert (await core.submit(ALICE, ALICE.sign(kind, tags=[["h", CHANNEL], *tags]))).accepted
        assert not core.hub.audiences.may_receive(CHANNEL, loser.pubkey)
