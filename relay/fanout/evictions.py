"""Taking a channel away from those who may not receive it any more, wherever its events are on their way to them.

In: `Left` and `Redefined`, from the fan-out task, which has changed the audience before. Out: CLOSED for the
subscriptions that end, and purged queues. Both may check in on the way; when they return, nothing of the channel is
under way to anybody who has lost it.

Theory. An event of the channel that has not left yet stands in one of three places:

1. It will be matched by a subscription about the channel. Those end.
2. It is a stored event, and a global subscription that is still replaying will find it among its rows. All of those
   are known (`replaying`), and are told to leave the channel out.
3. Its frame waits in a connection, whose subscription may long be live, replaced or closed by its client. Every
   connection in which a frame waits is known (`Peers.backlogged`), and its queue is purged.

So no other connection has to be looked at, however many there are. The order matters: 1 and 2 make frames, and none may
come behind a purge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, cast

import trio

from relay import metrics
from relay.fanout.audiences import Audiences
from relay.fanout.index import Subscription, SubscriptionIndex
from relay.fanout.items import Left, LiveSubscription, Peer, Redefined, SubscriptionState
from relay.fanout.peers import Peers
from relay.nostr.messages import closed, ws_frame

__all__ = ["REVOKED", "Evictions"]

REVOKED: Final = "restricted: channel access revoked"

CHECKPOINT_EVICTIONS: Final = 256


class Evictions:
    """`replaying`: the global subscriptions that are still being sent stored events; kept by the hub."""

    def __init__(self, index: SubscriptionIndex, audiences: Audiences, peers: Peers) -> None:
        self._index = index
        self._audiences = audiences
        self._peers = peers
        self.replaying: dict[LiveSubscription, None] = {}

    async def evict_key(self, left: Left) -> None:
        """Ends what one key has of the channel."""
        channel_id, pubkey = left.channel_id, left.pubkey
        # Who leaves an open channel may read it all the same: his subscriptions there end, but nothing is a secret.
        readable = self._audiences.may_receive(channel_id, pubkey)
        ended = [found for peer in self._peers.of_key(pubkey) for found in self._index.about(peer, channel_id)]
        await self._revoke(channel_id, ended, lambda key: key == pubkey and not readable)

    async def evict_others(self, redefined: Redefined) -> None:
        """Ends what everybody has of the channel who is not in its new audience. Judged by the item, because
        `audiences` may still be loading what was before it."""
        channel_id, audience = redefined.channel_id, redefined.audience
        if audience is not None and audience.visibility == "open":
            return
        kept: frozenset[str] = frozenset() if audience is None else audience.members
        ended = [found for found in self._index.subscribers(channel_id) if _key(found.connection) not in kept]
        await self._revoke(channel_id, ended, lambda key: key not in kept)

    async def _revoke(self, channel_id: str, ended: Sequence[Subscription], lost: Callable[[str], bool]) -> None:
        for subscription in self.replaying:
            if lost(_key(subscription.connection)):
                subscription.revoked.add(channel_id)
        for number, found in enumerate(cast("Sequence[LiveSubscription]", ended), 1):
            if found.state is not SubscriptionState.CLOSED:  # its client may have done so at a checkpoint
                self._end(found, channel_id, lost)
            if number % CHECKPOINT_EVICTIONS == 0:
                await trio.lowlevel.checkpoint()
        for number, peer in enumerate(list(self._peers.backlogged), 1):
            if lost(_key(peer)):
                _purge(peer, channel_id)
            if number % CHECKPOINT_EVICTIONS == 0:
                await trio.lowlevel.checkpoint()

    def _end(self, subscription: LiveSubscription, channel_id: str, lost: Callable[[str], bool]) -> None:
        peer: Peer = subscription.connection
        self._index.remove(peer, subscription.sub_id)
        subscription.close()
        if lost(_key(peer)):
            _purge(peer, channel_id)  # before the CLOSED, which should find room
        peer.outbound.offer(ws_frame(closed(subscription.sub_id, REVOKED)))


def _key(peer: Peer) -> str:
    return "" if peer.caller is None else peer.caller.pubkey


def _purge(peer: Peer, channel_id: str) -> None:
    metrics.FANOUT_PURGED.inc(peer.outbound.purge(channel_id))
