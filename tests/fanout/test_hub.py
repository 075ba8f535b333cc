"""The hub: who gets an event, in which order, and what happens to those who may no longer have it."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
import trio
import trio.testing

from relay.access.identity import Caller
from relay.errors import StoreError
from relay.fanout.audiences import Audiences
from relay.fanout.hub import HELD_EVENTS_MAX, Batch, Hub, Joined, Left, Live, LiveSubscription, SubscriptionState
from relay.fanout.items import AudienceLoaded
from relay.fanout.outbound import Outbound
from relay.nostr.event import Event
from relay.nostr.filter import parse_filter
from relay.nostr.messages import event_prefix, ws_frame
from relay.store.members import Audience
from relay.store.snapshot import Snapshot
from relay.websocket.requests import _go_live
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Person

OTHER = "22222222-2222-4222-8222-222222222222"


class Client:
    """One connection: a peer for the hub, and the far end of its socket."""

    def __init__(self, person: Person, near: trio.SocketStream, far: trio.SocketStream, nursery: trio.Nursery) -> None:
        self.caller: Caller | None = person.caller
        self.outbound = Outbound(near, nursery, on_close=lambda _: None)
        self.far = far
        self.dropped: list[str] = []

    def drop(self, reason: str) -> None:
        self.dropped.append(reason)

    async def receive(self, count: int) -> list[Any]:
        """The next frames' JSON; frames here are shorter than 64 KiB."""
        data = b""
        messages: list[Any] = []
        with trio.fail_after(3):
            while len(messages) < count:
                data += await self.far.receive_some(65536)
                while len(data) >= 4:
                    length, start = (data[1], 2) if data[1] < 126 else (int.from_bytes(data[2:4], "big"), 4)
                    if len(data) < start + length:
                        break
                    messages.append(orjson.loads(data[start : start + length]))
                    data = data[start + length :]
        assert not data
        return messages

    async def contents(self, count: int) -> list[str]:
        return [message[2]["content"] for message in await self.receive(count)]

    async def receive_nothing(self) -> None:
        with trio.move_on_after(0.05):
            raise AssertionError(await self.far.receive_some(1000))


class World:
    def __init__(self, hub: Hub, nursery: trio.Nursery) -> None:
        self.hub = hub
        self.nursery = nursery
        self.send = hub.dispatcher().send
        self.clients: list[Client] = []

    def client(self, person: Person) -> Client:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        streams = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (near, far)]
        client = Client(person, *streams, self.nursery)
        self.hub.connect(client)
        self.clients.append(client)
        return client

    async def subscribe(
        self, client: Client, name: str, *channels: str, live: bool = True, **wanted: Any
    ) -> LiveSubscription:
        await self.hub.watch(channels)
        subscription = LiveSubscription(
            client, name, (parse_filter(wanted),), frozenset(channels) or None, event_prefix(name)
        )
        self.hub.subscribe(subscription)
        if live:
            assert self.hub.go_live(subscription, None) == []
        return subscription

    async def publish(self, *events: Event, channel: str | None = None, xid: int | None = None) -> None:
        passed = trio.Event()
        await self.send(Batch([Live(event, channel, xid) for event in events], passed))
        with trio.fail_after(3):
            await passed.wait()


@asynccontextmanager
async def running_hub(audiences: dict[str, Audience], load: Any = None) -> AsyncIterator[World]:
    async def from_dict(wanted: Sequence[str]) -> Mapping[str, Audience]:
        await trio.lowlevel.checkpoint()
        return {channel: audiences[channel] for channel in wanted if channel in audiences}

    hub = Hub(load or from_dict)
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        await nursery.start(hub.run_loader)
        world = World(hub, nursery)
        try:
            yield world
        finally:
            for client in world.clients:
                client.outbound._stream.socket.close()
                client.far.socket.close()
        nursery.cancel_scope.cancel()


def private(*people: Person) -> Audience:
    return Audience("private", frozenset(person.pubkey for person in people))


OPEN = Audience("open", frozenset())


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


async def test_removal_leaves_other_channels_and_global_subscriptions() -> None:
    async with running_hub({CHANNEL: private(BOB), OTHER: private(BOB)}) as world:
        bob = world.client(BOB)
        await world.subscribe(bob, "lost", CHANNEL)
        await world.subscribe(bob, "kept", OTHER)
        await world.subscribe(bob, "both", OTHER, CHANNEL)
        await world.subscribe(bob, "global", kinds=[1])
        await world.send(Batch([Left(CHANNEL, BOB.pubkey)]))
        assert [message[1] for message in await bob.receive(2)] == ["lost", "both"]
        await world.publish(ALICE.sign(9, "x"), channel=OTHER)
        await world.publish(ALICE.sign(1, "y"))
        assert [message[1] for message in await bob.receive(2)] == ["kept", "global"]


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


async def test_what_waits_for_eose_is_bounded() -> None:
    async with running_hub({}) as world:
        client = world.client(ALICE)
        await world.subscribe(client, "x", kinds=[1], live=False)
        event = ALICE.sign(1, "x")
        await world.publish(*[event] * HELD_EVENTS_MAX)
        assert client.dropped == []
        await world.publish(event)
        assert client.dropped


async def test_closing_while_replaying_drops_what_is_held() -> None:
    async with running_hub({CHANNEL: private(BOB)}) as world:
        bob = world.client(BOB)
        mine = await world.subscribe(bob, "x", CHANNEL, live=False)
        everything = await world.subscribe(bob, "g", kinds=[1], live=False)
        await world.publish(ALICE.sign(9, "secret"), channel=CHANNEL)
        await world.send(Batch([Left(CHANNEL, BOB.pubkey)]))
        assert (await bob.receive(1))[0][0] == "CLOSED"
        assert world.hub.go_live(mine, None) == []
        assert everything.revoked == {CHANNEL}
        assert world.hub.unsubscribe(bob, "g")
        assert not world.hub.unsubscribe(bob, "g")


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


async def test_unknown_channels_are_delivered_to_nobody_until_loaded() -> None:
    """An event that meets a reload waits for it and is then judged by what was loaded and changed meanwhile."""
    released = trio.Event()
    loads = 0

    async def load(wanted: Sequence[str]) -> Mapping[str, Audience]:
        nonlocal loads
        loads += 1
        if loads > 1:
            await released.wait()
        return {CHANNEL: private(ALICE, BOB)}

    async with running_hub({}, load) as world:
        alice, bob, carol = (world.client(person) for person in (ALICE, BOB, CAROL))
        for client in (alice, bob, carol):
            await world.subscribe(client, "x", CHANNEL)
        world.hub.audiences.reload(CHANNEL)
        await world.publish(ALICE.sign(9, "waits"), channel=CHANNEL)
        await world.send(Batch([Left(CHANNEL, BOB.pubkey), Joined(CHANNEL, CAROL.pubkey)]))
        assert (await bob.receive(1))[0][0] == "CLOSED"
        await alice.receive_nothing()
        released.set()
        assert await alice.contents(1) == ["waits"]
        assert await carol.contents(1) == ["waits"]
        await bob.receive_nothing()


def failing_once(found: Mapping[str, Audience]) -> Any:
    """A load that fails the first time and finds this the second."""
    answers: list[Any] = [StoreError("away"), found]

    async def load(wanted: Sequence[str]) -> Mapping[str, Audience]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return load


async def test_a_store_that_cannot_be_asked_is_an_error_and_then_forgotten(autojump_clock: Any) -> None:
    out, batches = trio.open_memory_channel[Batch](10)
    audiences = Audiences(failing_once({CHANNEL: OPEN}), capacity=10, in_use=lambda _: False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audiences.run_loader, out)
        with pytest.raises(StoreError):
            await audiences.watch([CHANNEL])

        async def apply() -> None:
            for item in (await batches.receive()).items:
                assert isinstance(item, AudienceLoaded)
                audiences.loaded(item)

        nursery.start_soon(apply)
        await audiences.watch([CHANNEL])
        assert audiences.may_receive(CHANNEL, CAROL.pubkey)
        nursery.cancel_scope.cancel()


async def test_channels_without_subscriptions_are_let_go() -> None:
    audiences = Audiences(lambda _: None, capacity=2, in_use=lambda channel: channel == "used")  # type: ignore[arg-type]
    for channel in ("used", "a", "b", "c"):
        audiences._want(channel)
        audiences.loaded(AudienceLoaded(channel, OPEN))
    assert audiences.is_known("used")
    assert len(audiences) <= 3
    assert not audiences.is_known("a")


async def test_what_was_held_back_still_belongs_to_its_channel() -> None:
    """It may wait for room behind the replay, where only its channel tells a removal what to take away."""
    async with running_hub({CHANNEL: private(BOB), OTHER: private(BOB)}) as world:
        bob = world.client(BOB)
        both = await world.subscribe(bob, "x", CHANNEL, OTHER, live=False)
        for channel in (CHANNEL, OTHER):
            await world.publish(ALICE.sign(9, channel), channel=channel)
        assert [channel for _, channel in world.hub.go_live(both, None)] == [CHANNEL, OTHER]


async def test_leaving_an_open_channel_ends_its_subscriptions_and_hides_nothing() -> None:
    async with running_hub({CHANNEL: OPEN}) as world:
        bob = world.client(BOB)
        await world.subscribe(bob, "x", CHANNEL)
        everything = await world.subscribe(bob, "g", kinds=[1], live=False)
        bob.outbound._start_flushing()  # as if the kernel were full: what is offered waits in the queue
        bob.outbound.offer(ws_frame(b'["EVENT","g","stored"]'), CHANNEL)
        await world.send(Batch([Left(CHANNEL, BOB.pubkey)]))
        assert await bob.receive(2) == [["EVENT", "g", "stored"], ["CLOSED", "x", "restricted: channel access revoked"]]
        assert everything.revoked == set()
        again = await world.subscribe(bob, "x", CHANNEL)
        assert world.hub.may_receive(bob, CHANNEL)
        assert again.state is SubscriptionState.LIVE


async def test_events_held_back_are_not_overtaken_by_later_ones() -> None:
    """A client that reads slowly during its replay: there is no room at EOSE, and live events go on."""
    async with running_hub({}) as world:
        client = world.client(ALICE)
        subscription = await world.subscribe(client, "x", kinds=[1], live=False)
        await world.publish(ALICE.sign(1, "held"))
        filler = ws_frame(b"[" + b" " * 60_000 + b"]")
        while not client.outbound.statistics().queued_bytes * 2 >= 1 << 20:
            client.outbound.offer(filler)
        session = cast("Any", SimpleNamespace(outbound=client.outbound, services=SimpleNamespace(hub=world.hub)))
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


async def test_a_reload_during_a_load_keeps_what_waits_and_believes_the_later_answer() -> None:
    answers = [private(ALICE, BOB), private(ALICE)]
    out, batches = trio.open_memory_channel[Batch](10)
    started, go_on = trio.Event(), trio.Event()

    async def load(wanted: Sequence[str]) -> Mapping[str, Audience]:
        answer = answers.pop(0)
        if answers:
            started.set()
            await go_on.wait()
        return {CHANNEL: answer}

    audiences = Audiences(load, capacity=10, in_use=lambda _: True)
    known = trio.Event()

    async def watch() -> None:
        await audiences.watch([CHANNEL])
        known.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(audiences.run_loader, out)
        nursery.start_soon(watch)
        await started.wait()
        live = Live(ALICE.sign(9, "x"), CHANNEL, None)
        assert audiences.hold(live)
        audiences.reload(CHANNEL)
        go_on.set()
        returned: list[Live] = []
        with trio.fail_after(2):
            for _ in range(2):
                for item in (await batches.receive()).items:
                    assert isinstance(item, AudienceLoaded)
                    returned += audiences.loaded(item)
            await known.wait()
        assert returned == [live]
        assert not audiences.may_receive(CHANNEL, BOB.pubkey)
        nursery.cancel_scope.cancel()


async def test_a_load_that_failed_once_is_no_error_when_it_succeeds(autojump_clock: Any) -> None:
    """A channel that is in use is loaded again; whoever asks meanwhile gets the second answer."""
    out, batches = trio.open_memory_channel[Batch](10)
    audiences = Audiences(failing_once({CHANNEL: OPEN}), capacity=10, in_use=lambda _: True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audiences.run_loader, out)
        with pytest.raises(StoreError):
            await audiences.watch([CHANNEL])
        nursery.start_soon(audiences.watch, [CHANNEL])
        await trio.testing.wait_all_tasks_blocked()
        for item in (await batches.receive()).items:
            assert isinstance(item, AudienceLoaded)
            audiences.loaded(item)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_all_watched_channels_are_known_at_the_same_time() -> None:
    """One that is let go while another is waited for would silently be missing from the subscription."""
    out, batches = trio.open_memory_channel[Batch](10)

    async def load(wanted: Sequence[str]) -> Mapping[str, Audience]:
        await trio.lowlevel.checkpoint()
        return dict.fromkeys(wanted, OPEN)

    audiences = Audiences(load, capacity=2, in_use=lambda _: False)
    audiences._want(CHANNEL)
    audiences.loaded(AudienceLoaded(CHANNEL, OPEN))
    audiences._wanted.clear()

    async def apply() -> None:
        async for batch in batches:
            for item in batch.items:
                assert isinstance(item, AudienceLoaded)
                if item.channel_id == OTHER and audiences.is_known(CHANNEL):
                    del audiences._records[CHANNEL]  # as `_trim` would
                audiences.loaded(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(audiences.run_loader, out)
        nursery.start_soon(apply)
        with trio.fail_after(2):
            await audiences.watch([CHANNEL, OTHER])
        assert audiences.is_known(CHANNEL)
        assert audiences.is_known(OTHER)
        nursery.cancel_scope.cancel()


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
