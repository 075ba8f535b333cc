"""Losing a channel: whose subscriptions end, and that nothing of it is under way to them any more."""

from __future__ import annotations

import pytest
import trio

from relay.fanout.hub import Batch, Joined, Left, Redefined, SubscriptionState
from relay.fanout.outbound import OutboundLimits
from relay.store.members import Audience
from tests.fanout.world import OPEN, OTHER, Client, World, private, running_hub
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Person

CLOSED = "restricted: channel access revoked"


# ---- one key leaves


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


async def test_leaving_an_open_channel_ends_its_subscriptions_and_hides_nothing() -> None:
    async with running_hub({CHANNEL: OPEN}) as world:
        bob = world.client(BOB)
        await world.subscribe(bob, "x", CHANNEL)
        everything = await world.subscribe(bob, "g", kinds=[1], live=False)
        world.queue(bob, "g", CHANNEL)
        await world.pass_items(Left(CHANNEL, BOB.pubkey))
        assert await bob.receive_queued() == [["EVENT", "g", "stored"], ["CLOSED", "x", CLOSED]]
        assert everything.revoked == set()
        again = await world.subscribe(bob, "x", CHANNEL)
        assert world.hub.may_receive(bob, CHANNEL)
        assert again.state is SubscriptionState.LIVE


# ---- the audience is another one


def closed(*names: str) -> list[list[str]]:
    return [["CLOSED", name, CLOSED] for name in names]


async def test_going_private_ends_what_outsiders_have_of_the_channel() -> None:
    async with running_hub({CHANNEL: OPEN, OTHER: OPEN}) as world:
        alice, bob, bob_too = world.client(ALICE), world.client(BOB), world.client(BOB)
        for client in (alice, bob, bob_too):
            await world.subscribe(client, "x", CHANNEL)
        await world.subscribe(bob, "both", OTHER, CHANNEL)
        await world.subscribe(bob, "other", OTHER)
        await world.subscribe(bob, "global", kinds=[1])
        await world.publish(ALICE.sign(9, "before"), channel=CHANNEL)
        assert [len(client.receive_all()) for client in (alice, bob, bob_too)] == [1, 2, 1]
        await world.pass_items(Redefined(CHANNEL, private(ALICE)))
        assert bob.receive_all() == closed("x", "both")
        assert bob_too.receive_all() == closed("x")
        assert alice.receive_all() == []
        assert not world.hub.may_receive(bob, CHANNEL)
        assert world.hub.may_receive(alice, CHANNEL)
        await world.publish(ALICE.sign(9, "after"), channel=CHANNEL)
        await world.publish(ALICE.sign(9, "there"), channel=OTHER)
        await world.publish(ALICE.sign(1, "note"))
        assert await alice.contents(1) == ["after"]
        assert [message[1] for message in bob.receive_all()] == ["other", "global"]
        assert bob_too.receive_all() == []
        assert world.hub.statistics().subscriptions == 3


async def test_going_open_ends_nothing_and_lets_everybody_in() -> None:
    async with running_hub({CHANNEL: private(ALICE)}) as world:
        alice, bob = world.client(ALICE), world.client(BOB)
        await world.subscribe(alice, "x", CHANNEL)
        assert not world.hub.may_receive(bob, CHANNEL)
        await world.pass_items(Redefined(CHANNEL, Audience("open", frozenset())))
        assert world.hub.may_receive(bob, CHANNEL)
        await world.subscribe(bob, "x", CHANNEL)
        await world.publish(CAROL.sign(9, "hello"), channel=CHANNEL)
        assert await alice.contents(1) == await bob.contents(1) == ["hello"]


@pytest.mark.parametrize("before", [OPEN, private(ALICE, BOB)], ids=["open", "private"])
async def test_a_deleted_channel_is_nobodys_and_its_last_events_come_before_the_end(before: Audience) -> None:
    async with running_hub({CHANNEL: before}) as world:
        owner, bob = world.client(ALICE), world.client(BOB)
        for client in (owner, bob):
            await world.subscribe(client, "x", CHANNEL)
        everything = await world.subscribe(bob, "g", kinds=[1], live=False)
        passed = trio.Event()
        batch = [world.live("deleted", CHANNEL), Redefined(CHANNEL, None), Joined(CHANNEL, CAROL.pubkey)]
        await world.send(Batch([*batch, world.live("too late", CHANNEL)], passed))
        await passed.wait()
        for client in (owner, bob):
            event, end = client.receive_all()
            assert event[2]["content"] == "deleted"
            assert [end] == closed("x")
        assert everything.revoked == {CHANNEL}
        for person in (ALICE, BOB, CAROL):
            assert not world.hub.audiences.may_receive(CHANNEL, person.pubkey)


async def test_an_audience_that_is_not_in_memory_is_replaced_all_the_same() -> None:
    """Nobody is subscribed, so the channel is unknown; yet stored events of it may be on their way."""
    async with running_hub({}) as world:
        bob = world.client(BOB)
        everything = await world.subscribe(bob, "g", kinds=[1], live=False)
        world.queue(bob, "g", CHANNEL)
        await world.pass_items(Redefined(CHANNEL, private(ALICE)))
        assert everything.revoked == {CHANNEL}
        assert bob.outbound.statistics().purged_frames == 1


async def test_only_global_subscriptions_that_still_replay_are_told() -> None:
    async with running_hub({CHANNEL: OPEN, OTHER: OPEN}) as world:
        bob, alice = world.client(BOB), world.client(ALICE)
        replaying = await world.subscribe(bob, "g", kinds=[1], live=False)
        done = await world.subscribe(bob, "done", kinds=[1])
        closed_by_client = await world.subscribe(bob, "closed", kinds=[1], live=False)
        world.hub.unsubscribe(bob, "closed")
        elsewhere = await world.subscribe(bob, "other", OTHER, live=False)
        members = await world.subscribe(alice, "g", kinds=[1], live=False)
        await world.pass_items(Redefined(CHANNEL, private(ALICE)))
        assert replaying.revoked == {CHANNEL}
        assert done.revoked == closed_by_client.revoked == elsewhere.revoked == members.revoked == set()
        world.hub.disconnect(alice)
        await world.pass_items(Redefined(CHANNEL, None))
        assert members.revoked == set()
        assert world.hub._evictions.replaying == {replaying: None}


async def queued(world: World, person: Person) -> Client:
    """A connection in which frames of both channels and of none wait."""
    client = world.client(person)
    for name, channel in (("1", CHANNEL), ("2", OTHER), ("3", None), ("4", CHANNEL)):
        world.queue(client, name, channel)
    return client


@pytest.mark.parametrize("holder", ["live global", "closed by its client", "a search", "on its way out"])
async def test_frames_that_wait_are_found_wherever_they_come_from(holder: str) -> None:
    async with running_hub({CHANNEL: OPEN}) as world:
        bob = await queued(world, BOB)
        if holder == "live global":
            await world.subscribe(bob, "g", kinds=[1])
        elif holder == "closed by its client":
            await world.subscribe(bob, "x", CHANNEL)
            world.hub.unsubscribe(bob, "x")
        elif holder == "on its way out":
            world.hub.disconnect(bob)
        await world.pass_items(Redefined(CHANNEL, private(ALICE)))
        assert [message[1] for message in await bob.receive_queued()] == ["2", "3"]


async def test_a_queue_that_is_full_of_what_is_lost_has_room_for_the_end() -> None:
    async with running_hub({CHANNEL: OPEN}) as world:
        bob = world.client(BOB)
        await world.subscribe(bob, "x", CHANNEL)
        while bob.outbound.statistics().queued_frames < OutboundLimits().slots:
            world.queue(bob, "x", CHANNEL)
        await world.pass_items(Redefined(CHANNEL, private(ALICE)))
        assert await bob.receive_queued() == closed("x")
        assert bob.outbound.statistics().limit is None


async def test_frames_that_wait_for_a_member_stay() -> None:
    async with running_hub({CHANNEL: OPEN}) as world:
        alice = await queued(world, ALICE)
        await world.pass_items(Redefined(CHANNEL, private(ALICE)), Left(CHANNEL, BOB.pubkey))
        assert [message[1] for message in await alice.receive_queued()] == ["1", "2", "3", "4"]


async def test_a_key_that_leaves_is_purged_on_its_way_out_too() -> None:
    async with running_hub({CHANNEL: private(BOB)}) as world:
        await world.hub.watch([CHANNEL])
        bob = await queued(world, BOB)
        world.hub.disconnect(bob)
        await world.pass_items(Left(CHANNEL, BOB.pubkey))
        assert [message[1] for message in await bob.receive_queued()] == ["2", "3"]


async def test_many_are_evicted_without_holding_up_the_others() -> None:
    """Somebody who closes his subscription meanwhile hears of that and of nothing else; nobody comes back in."""
    async with running_hub({CHANNEL: OPEN}) as world:
        clients = [world.client(BOB if number % 2 else CAROL) for number in range(600)]
        subscriptions = [await world.subscribe(client, "x", CHANNEL) for client in clients]
        turns = 0

        async def somebody_else() -> None:
            nonlocal turns
            while subscriptions[-1].state is not SubscriptionState.CLOSED:
                turns += 1
                if subscriptions[0].state is SubscriptionState.CLOSED:
                    assert not world.hub.may_receive(clients[0], CHANNEL)
                    world.hub.unsubscribe(clients[-2], "x")
                await trio.lowlevel.checkpoint()

        world.nursery.start_soon(somebody_else)
        await world.pass_items(Redefined(CHANNEL, private(ALICE)))
        assert turns >= 2
        assert clients[-2].receive_all() == []
        del clients[-2]
        assert all(client.receive_all() == closed("x") for client in clients)
        assert world.hub.statistics().subscriptions == 0
        assert not world.hub.index.has_channel(CHANNEL)
