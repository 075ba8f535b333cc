"""A round of delivery: the events between which nothing changes, who gets which of them, and the writes.

Flows in: events (`add`), from the fan-out task. Flows out: each connection's frames in one write (`deliver`), in the
order of the events; matches of subscriptions that are still replaying go to their `held`. Owned by the fan-out task.
Not done here: taking items from the queue, membership changes, events whose audience is unknown (all `hub`).

Rules
-----
1. Between the first `add` and `deliver` there is no checkpoint, and neither the index nor an audience changes. So what
   was found out for one event holds for the others: which connections may receive the channel, and who gets every
   event of this channel and kind, are asked once in a round and not once for each delivery.
2. `deliver` checks in between connections, so it asks each subscription again whether it is still live.
3. No check is left out: an event that the shared answer does not cover (it names other channels than its own) is
   compared with each subscription, and a subscription that it does not cover (its time, or the snapshot that it was
   shown, cuts into the round) with each event. So each of them costs only itself.

What a subscription gets is a set of events, kept as the bits of a number. Subscriptions with the same bits share their
frames, whatever their filters are.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import cast

import trio

from relay import metrics
from relay.fanout.audiences import Audiences
from relay.fanout.backlog import Frame
from relay.fanout.index import SubscriptionIndex, is_plain
from relay.fanout.items import Live, LiveSubscription, Peer, SubscriptionState
from relay.fanout.shared_frames import SharedFrames
from relay.nostr.event import UINT64_MAX
from relay.nostr.messages import event_ws_frame

__all__ = ["HELD_BYTES_MAX", "HELD_EVENTS_MAX", "Round"]

CHECKPOINT_RECIPIENTS = 256

HELD_EVENTS_MAX = 1000
HELD_BYTES_MAX = 1 << 20
"""What may wait for EOSE on one subscription. A replay that falls so far behind would never catch up."""

NO_XID = UINT64_MAX
"""Beyond those of all transactions."""

# A subscription and the events that it gets: bit n stands for the n-th of the round.
_Share = tuple[LiveSubscription, int]

# Read for every recipient: a module's name is found faster than an enum's member.
_LIVE = SubscriptionState.LIVE
_REPLAYING = SubscriptionState.REPLAYING


class _Group:
    """The subscriptions that get every plain event of one channel (or of none) and kind, and these events: their bits,
    the range of their times and the first transaction among those that stored them."""

    __slots__ = ("bits", "earliest", "first_xid", "latest", "live", "replaying")

    def __init__(self, subscriptions: list[LiveSubscription]) -> None:
        self.live = [each for each in subscriptions if each.state is not _REPLAYING]
        self.replaying = [each for each in subscriptions if each.state is _REPLAYING]
        self.bits = 0
        self.earliest, self.latest = UINT64_MAX, 0
        self.first_xid = NO_XID

    def add(self, live: Live, bit: int) -> int:
        """How many subscriptions it is for, if it is of the time of all that are live."""
        created_at, xid = live.event.created_at, live.xid
        self.bits |= bit
        self.earliest = min(self.earliest, created_at)
        self.latest = max(self.latest, created_at)
        if xid is not None and xid < self.first_xid:
            self.first_xid = xid
        count = len(self.live)
        for subscription in self.replaying:
            if subscription.since <= created_at <= subscription.until:
                count += 1
                _hold(subscription, live)
        return count


class Round:
    """Empty again after `deliver`."""

    def __init__(self, index: SubscriptionIndex, audiences: Audiences) -> None:
        self._index = index
        self._audiences = audiences
        self._lives: list[Live] = []
        self._recipients: list[int] = []  # of each event
        self._groups: dict[tuple[str | None, int], _Group] = {}
        self._bits: dict[LiveSubscription, int] = {}  # of subscriptions that are compared with each event

    def __len__(self) -> int:
        """Events added."""
        return len(self._lives)

    def add(self, live: Live) -> None:
        """Takes an event whose audience is known."""
        event, channel_id = live.event, live.channel_id
        bit = 1 << len(self._lives)
        if is_plain(event, channel_id):
            group = self._groups.get((channel_id, event.kind))
            if group is None:
                found = self._permitted(channel_id, self._index.exact(event.kind, channel_id))
                group = self._groups[channel_id, event.kind] = _Group(found)
            recipients = group.add(live, bit)
            compared = self._index.match_closely(event, channel_id)
        else:
            recipients = 0
            compared = self._index.match(event, channel_id)
        if compared:
            recipients += self._give_each(self._permitted(channel_id, compared), live, bit)
        self._lives.append(live)
        self._recipients.append(recipients)

    def _permitted(self, channel_id: str | None, matched: Iterable[object]) -> list[LiveSubscription]:
        found = cast("Iterable[LiveSubscription]", matched)
        return list(found) if channel_id is None else self._audiences.permitted(channel_id, found)

    def _give_each(self, subscriptions: list[LiveSubscription], live: Live, bit: int) -> int:
        for subscription in subscriptions:
            if subscription.state is _REPLAYING:
                _hold(subscription, live)
            elif not (subscription.boundary and subscription.already_replayed(live)):
                self._bits[subscription] = self._bits.get(subscription, 0) | bit
        return len(subscriptions)

    async def deliver(self) -> None:
        """Gives each connection its frames; the round is empty afterwards.

        Cancellation: what is not written yet is lost with the fan-out task."""
        if not self._lives:
            return
        shares = self._by_peer()
        for recipients in self._recipients:
            metrics.FANOUT_RECIPIENTS.observe(recipients)
        lives, self._lives = self._lives, []
        self._recipients.clear()
        self._groups.clear()
        self._bits.clear()
        written = 0
        shared: dict[int, SharedFrames] = {}
        for number, (peer, share) in enumerate(shares.items(), 1):
            if type(share) is list:
                written += _write_several(peer, share, lives)
            else:
                subscription, bits = cast("_Share", share)
                if subscription.state is _LIVE:
                    frames = shared.get(bits)
                    if frames is None:
                        frames = shared[bits] = SharedFrames([lives[n] for n in _numbers(bits)])
                    prefix = subscription.prefix
                    peer.outbound.offer_joined(frames.joined(prefix), frames.apart, prefix)
                    written += frames.count
            if number % CHECKPOINT_RECIPIENTS == 0:
                await trio.lowlevel.checkpoint()
        if written:
            metrics.DELIVERIES.inc(written)

    def _by_peer(self) -> dict[Peer, _Share | list[_Share]]:
        """One share for nearly every connection; a list where several of its subscriptions get something."""
        shares: dict[Peer, _Share | list[_Share]] = {}
        for group in self._groups.values():
            earliest, latest, first_xid = group.earliest, group.latest, group.first_xid
            for subscription in group.live:
                bits = group.bits
                # Asked once for all the events: whose own time or snapshot cuts into them is looked at event by event.
                if subscription.since > earliest or subscription.until < latest or subscription.boundary > first_xid:
                    bits = self._part(subscription, bits)
                if bits:
                    _enter(shares, subscription, bits)
        for subscription, bits in self._bits.items():
            _enter(shares, subscription, bits)
        return shares

    def _part(self, subscription: LiveSubscription, bits: int) -> int:
        """Those of a group's events that this subscription of the group gets."""
        part = 0
        for number in _numbers(bits):
            live = self._lives[number]
            if not subscription.since <= live.event.created_at <= subscription.until:
                self._recipients[number] -= 1
            elif not subscription.already_replayed(live):
                part |= 1 << number
        return part


def _enter(shares: dict[Peer, _Share | list[_Share]], subscription: LiveSubscription, bits: int) -> None:
    share = (subscription, bits)
    there = shares.setdefault(subscription.connection, share)
    if there is share:
        return
    if type(there) is list:
        there.append(share)
    else:
        shares[subscription.connection] = [cast("_Share", there), share]


def _write_several(peer: Peer, shares: list[_Share], lives: list[Live]) -> int:
    """The frames of several subscriptions, in the order of the events; how many they were."""
    pairs = [
        (number, subscription)
        for subscription, bits in shares
        if subscription.state is _LIVE
        for number in _numbers(bits)
    ]
    pairs.sort(key=itemgetter(0))
    frames: list[Frame] = [
        (event_ws_frame(subscription.prefix, lives[number].event.json), lives[number].channel_id)
        for number, subscription in pairs
    ]
    if frames:
        peer.outbound.offer_many(frames)
    return len(frames)


def _hold(subscription: LiveSubscription, live: Live) -> None:
    subscription.held.append(live)
    subscription.held_bytes += len(live.event.json)
    if len(subscription.held) > HELD_EVENTS_MAX or subscription.held_bytes > HELD_BYTES_MAX:
        subscription.connection.drop("live events overtook the stored ones")


def _numbers(bits: int) -> list[int]:
    return [number for number in range(bits.bit_length()) if bits >> number & 1]
