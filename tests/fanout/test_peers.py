"""Connections by their token, and by what waits in them."""

from __future__ import annotations

import trio
import trio.testing

from relay.fanout.outbound import Outbound
from relay.fanout.peers import Peers
from relay.nostr.messages import ws_frame
from tests.fanout.wire import pair
from tests.fanout.world import Client, running_hub
from tests.support.core import ALICE, BOB, Person

PHONE, LAPTOP = (Person.number(1, token_id=token) for token in ("phone", "laptop"))


async def test_connections_are_found_by_their_token() -> None:
    async with running_hub({}) as world:
        hub = world.hub
        phones = [world.client(PHONE), world.client(PHONE)]
        laptop, none = world.client(LAPTOP), world.client(ALICE)
        assert hub.token_ids() == {"phone", "laptop"}
        assert hub.peers_with_token("phone") == phones
        assert hub.peers_with_token("laptop") == [laptop]
        assert hub.peers_with_token("other") == []
        hub.disconnect(phones[0])
        assert hub.peers_with_token("phone") == phones[1:]
        hub.disconnect(phones[1])
        hub.disconnect(none)
        assert hub.token_ids() == {"laptop"}
        assert hub.statistics().connections == 1


async def test_a_connection_leaves_as_the_caller_as_whom_it_came() -> None:
    async with running_hub({}) as world:
        client = world.client(PHONE)
        client.caller = None
        world.hub.disconnect(client)
        assert world.hub.token_ids() == set()
        assert world.hub.statistics().connections == 0


async def test_a_connection_that_comes_again_stands_under_its_new_caller() -> None:
    async with running_hub({}) as world:
        client = world.client(PHONE)
        client.caller = BOB.caller
        world.hub.connect(client)
        assert world.hub.token_ids() == set()
        assert world.hub.statistics().connections == 1


class Owner:
    """A peer around an `Outbound` that already is."""

    def __init__(self, outbound: Outbound) -> None:
        self.caller = ALICE.caller
        self.outbound = outbound

    drop = Client.drop


async def test_a_connection_is_backlogged_exactly_while_a_frame_waits() -> None:
    async with pair() as p:
        peers, peer = Peers(), Owner(p.outbound)
        peers.connect(peer)
        p.outbound.offer(ws_frame(b"x"))
        assert peers.backlogged == set()
        accepted = p.fill()
        assert peers.backlogged == {peer}
        peers.disconnect(peer)  # its frames still leave, and are still to be found
        assert peers.backlogged == {peer}
        await p.read_frames(1 + accepted)
        await trio.testing.wait_all_tasks_blocked()
        assert peers.backlogged == set()


async def test_a_connection_that_logs_in_with_frames_waiting_is_backlogged() -> None:
    async with pair() as p:
        peers, peer = Peers(), Owner(p.outbound)
        p.fill()
        peers.connect(peer)
        assert peers.backlogged == {peer}
        await p.outbound.aclose()
        assert peers.backlogged == set()


async def test_a_connection_that_breaks_with_frames_waiting_is_forgotten() -> None:
    async with pair() as p:
        peers, peer = Peers(), Owner(p.outbound)
        peers.connect(peer)
        p.fill()
        assert peers.backlogged == {peer}
        await p.client.aclose()
        await p.closed.wait()
        assert peers.backlogged == set()
