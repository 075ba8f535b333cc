"""The hub: who gets an event, in which order, and what a connection leaves behind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
import trio
import trio.testing

from relay.fanout.hub import PASS_EVENTS_MAX, Batch, Hub, Joined, Left, Live, LiveSubscription
from relay.fanout.outbound import Outbound
from relay.fanout.round import HELD_EVENTS_MAX
from relay.nostr.event import Event
from relay.nostr.filter import Filter
from relay.nostr.messages import event_prefix, ws_frame
from relay.store.members import Audience
from relay.store.snapshot import Snapshot
from relay.websocket.limits import Gate
from relay.websocket.requests import _go_live
from tests.fanout.wire import Clock
from tests.fanout.world import OPEN, OTHER, private, running_hub
from tests.support.core import ALICE, BOB, CHANNEL


async def test_frames_are_whole_and_the_name_is_escaped() -> None:
    async with running_hub({}) as world:
        client = world.client(ALICE)
        await world.subscribe(client, 'a"\\b', kinds=[1])
        event = BOB.sign(1, "hello")
        await world.publish(event)
        assert await client.receive(1) == [["EVENT", 'a"\\b', orjson.loads(event.json)]]


async def test_private_channels_reach_members_only() -> None:
    async with running_hub({CHANNEL: private(ALICE)}) as world:
        member, stranger = world.client(ALICE), world.client(BOB)
        await world.subscribe(member, "x", CHANNEL)
        await world.subscribe(stranger, "x", CHANNEL)  # a session would refuse it; delivery refuses it again
        assert not world.hub.may_receive(stranger, CHANNEL)
        await world.publish(ALICE.sign(9, "secret"), channel=CHANNEL)
        assert await member.contents(1) == ["secret"]
        await stranger.receive_nothing()


async def test_membership_changes_act_between_the_events_around_them() -> None:
    async with running_hub({CHANNEL: private(ALICE)}) as world:
        bob = world.client(BOB)
        await world.subscribe(bob, "x", CHANNEL)
        events = [ALICE.sign(9, text) for text in ("before", "while", "after")]
        lives = [Live(event, CHANNEL, None) for event in events]
        await world.send(Batch([lives[0], Joined(CHANNEL, BOB.pubkey), lives[1], Left(CHANNEL, BOB.pubkey), lives[2]]))
        first, second = await bob.receive(2)
        assert first[2]["content"] == "while"
        assert second == ["CLOSED", "x", "restricted: channel access revoked"]
        await bob.receive_nothing()
        assert world.hub.subscription_count(bob) == 0


async def test_a_pass_gives_a_connection_its_frames_in_order() -> None:
    async with running_hub({}) as world:
        clients = [world.client(ALICE) for _ in range(3)]
        for client in clients:
            await world.subscribe(client, "x", kinds=[1])
        events = [ALICE.sign(1, str(number)) for number in range(200)]
        for start in range(0, 200, 5):
            await world.send(Batch([Live(event, None, None) for event in events[start : start + 5]]))
        for client in clients:
            assert await client.contents(200) == [str(number) for number in range(200)]


async def test_a_pass_is_written_before_it_has_passed_in_rounds_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where one batch has more events than a round, and others are queued behind it."""
    async with running_hub({}) as world:
        client = world.client(ALICE)
        await world.subscribe(client, "x", kinds=[1])
        written: list[int] = []
        passed: list[int] = []
        offer = Outbound.offer_joined

        def offer_joined(outbound: Outbound, joined: bytes, apart: Any, prefix: bytes) -> bool:
            written.append(len(apart(prefix)))
            return offer(outbound, joined, apart, prefix)

        def passed_by() -> Any:
            return SimpleNamespace(set=lambda: passed.append(sum(written)))

        monkeypatch.setattr(Outbound, "offer_joined", offer_joined)
        event = ALICE.sign(1, "x")
        for count in (2 * PASS_EVENTS_MAX + 2, 1, 3):
            await world.send(Batch([Live(event, None, None)] * count, passed_by()))
        await world.pass_items()
        assert passed == [2 * PASS_EVENTS_MAX + 2, 2 * PASS_EVENTS_MAX + 3, 2 * PASS_EVENTS_MAX + 6]
        assert written == [PASS_EVENTS_MAX, PASS_EVENTS_MAX, 2, 1, 3]


async def test_the_boundary_between_stored_and_live_neither_loses_nor_doubles() -> None:
    async with running_hub({}) as world:
        client = world.client(ALICE)
        subscription = await world.subscribe(client, "x", kinds=[1], live=False)
        events = {xid: ALICE.sign(1, str(xid)) for xid in range(100, 108)}
        for xid in (103, 100, 104, 101):
            await world.publish(events[xid], xid=xid)
        await client.receive_nothing()
        # 100 and 102 were in progress when the snapshot was taken, 104 had not begun.
        frames = world.hub.go_live(subscription, Snapshot(100, 104, frozenset({100, 102})))
        assert [orjson.loads(frame[4:])[2]["content"] for frame, _ in frames] == ["100", "104"]
        for xid in (102, 105):
            await world.publish(events[xid], xid=xid)
        # A commit that the snapshot has shown may still reach the fan-out late.
        await world.publish(ALICE.sign(1, "shown"), xid=103)
        await world.publish(ALICE.sign(20001, "x"), ALICE.sign(1, "ephemeral"), xid=None)
        assert await client.contents(3) == ["102", "105", "ephemeral"]


async def test_what_only_a_filter_without_stored_events_wants_was_not_replayed() -> None:
    """`limit` 0 asks for what comes from now on, also where another filter of the REQ asked the store."""
    async with running_hub({}) as world:
        client = world.client(ALICE)
        filters = (Filter(kinds=frozenset({1}), limit=0), Filter(kinds=frozenset({7})))
        subscription = LiveSubscription(client, "x", filters, None, event_prefix("x"))
        world.hub.subscribe(subscription)
        await world.publish(ALICE.sign(1, "news"), ALICE.sign(7, "replayed"), xid=50)
        frames = world.hub.go_live(subscription, Snapshot(100, 100, frozenset()))
        assert [orjson.loads(frame[4:])[2]["content"] for frame, _ in frames] == ["news"]
        await world.publish(ALICE.sign(7, "late"), ALICE.sign(1, "late news"), xid=51)
        assert await client.contents(1) == ["late news"]


async def test_what_waits_for_eose_is_bounded() -> None:
    async with running_hub({}) as world:
        client = world.client(ALICE)
        await world.subscribe(client, "x", kinds=[1], live=False)
        event = ALICE.sign(1, "x")
        await world.publish(*[event] * HELD_EVENTS_MAX)
        assert client.dropped == []
        await world.publish(event)
        assert client.dropped


async def test_replacing_a_subscription_ends_the_old_one() -> None:
    async with running_hub({}) as world:
        client = world.client(ALICE)
        await world.subscribe(client, "x", kinds=[1])
        await world.subscribe(client, "x", kinds=[3])
        await world.publish(ALICE.sign(1, "old"), ALICE.sign(3, "new"))
        assert await client.contents(1) == ["new"]
        await client.receive_nothing()


async def test_disconnect_forgets_everything() -> None:
    async with running_hub({CHANNEL: OPEN}) as world:
        client = world.client(ALICE)
        await world.subscribe(client, "x", CHANNEL)
        world.hub.disconnect(client)
        world.hub.disconnect(client)
        statistics = world.hub.statistics()
        assert (statistics.connections, statistics.subscriptions) == (0, 0)
        await world.publish(ALICE.sign(9, "x"), channel=CHANNEL)
        await client.receive_nothing()


async def test_what_was_held_back_still_belongs_to_its_channel() -> None:
    """It may wait for room behind the replay, where only its channel tells a removal what to take away."""
    async with running_hub({CHANNEL: private(BOB), OTHER: private(BOB)}) as world:
        bob = world.client(BOB)
        both = await world.subscribe(bob, "x", CHANNEL, OTHER, live=False)
        for channel in (CHANNEL, OTHER):
            await world.publish(ALICE.sign(9, channel), channel=channel)
        assert [channel for _, channel in world.hub.go_live(both, None)] == [CHANNEL, OTHER]


async def test_events_held_back_are_not_overtaken_by_later_ones() -> None:
    """A client that reads slowly during its replay: there is no room at EOSE, and live events go on."""
    async with running_hub({}) as world:
        client = world.client(ALICE)
        subscription = await world.subscribe(client, "x", kinds=[1], live=False)
        await world.publish(ALICE.sign(1, "held"))
        filler = ws_frame(b"[" + b" " * 60_000 + b"]")
        while not client.outbound.statistics().queued_bytes * 2 >= 1 << 20:
            client.outbound.offer(filler)
        out, services = client.outbound, SimpleNamespace(hub=world.hub)
        place = Gate(1, 1.0).place()
        session = cast("Any", SimpleNamespace(outbound=out, services=services, place=place, put_frames=out.put_many))
        found = cast("Any", SimpleNamespace(snapshot=None))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_go_live, session, subscription, found)
            await trio.testing.wait_all_tasks_blocked()
            await world.publish(ALICE.sign(1, "later"))
            contents: list[str] = []
            data = b""
            with trio.fail_after(3):
                while len(contents) < 2:
                    data += await client.far.receive_some(1 << 20)
                    contents = re.findall(rb'"content":"(\w+)"', data)
        assert contents == [b"held", b"later"]


def expiring(content: str, at: str) -> Event:
    return ALICE.sign(1, content, [["expiration"], ["expiration", "soon"], ["expiration", at]])


async def test_an_event_that_has_expired_meanwhile_is_not_delivered() -> None:
    clock = Clock()
    async with running_hub({}, now=clock) as world:
        client = world.client(BOB)
        await world.subscribe(client, "x", kinds=[1])
        await world.publish(*[expiring(at, at) for at in ("99", "100", "101", "never", "9" * 19)])
        assert await client.contents(3) == ["101", "never", "9" * 19]
        clock.now = 101
        await world.publish(expiring("101", "101"), expiring("102", "102"))
        assert await client.contents(1) == ["102"]


async def test_an_event_that_expires_while_it_is_held_back_is_not_delivered() -> None:
    clock, released = Clock(), trio.Event()

    async def load(wanted: Sequence[str]) -> dict[str, Audience]:
        await released.wait()
        return {CHANNEL: OPEN}

    async with running_hub({}, load, now=clock) as world:
        client = world.client(BOB)
        replaying = await world.subscribe(client, "x", kinds=[1], live=False)
        await world.subscribe(client, "c", CHANNEL, watch=False)
        for channel in (None, CHANNEL):
            await world.publish(expiring("short", "101"), expiring("long", "102"), channel=channel)
        clock.now = 101
        [(frame, _)] = world.hub.go_live(replaying, None)
        assert b'"content":"long"' in frame
        released.set()
        assert await client.contents(1) == ["long"]
        await client.receive_nothing()


async def test_who_dispatches_to_a_dead_fan_out_is_told() -> None:
    hub = Hub(lambda _: None, queue=1)  # type: ignore[arg-type]
    send = hub.dispatcher().send
    with trio.CancelScope() as scope:
        scope.cancel()
        await hub.run()
    with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
        await send(Batch([]))


async def test_nobody_waits_for_a_fan_out_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    async def die(batches: list[Batch]) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("died")

    hub = Hub(lambda _: None)  # type: ignore[arg-type]
    monkeypatch.setattr(hub, "_pass", die)
    dispatcher = hub.dispatcher()
    batches = [Batch([Left(CHANNEL, BOB.pubkey)] * 100, trio.Event()) for _ in range(3)]
    for batch in batches:
        dispatcher.send_nowait(batch)
    with pytest.raises(RuntimeError, match="died"):
        await hub.run()
    assert all(batch.passed.is_set() for batch in batches)
    with pytest.raises(trio.BrokenResourceError):
        dispatcher.send_nowait(batches[0])
