"""The hub: the fan-out task and what it knows of connections and subscriptions.

In: batches of committed events and membership changes, in commit order, from the tasks that commit (`dispatcher`).
Out: frames, written straight to the sockets through each connection's `Outbound`. Sessions call the synchronous
methods to register and remove subscriptions. Nothing here waits for the database or for a client.

Rules:
* A pass takes whatever queued up while the previous one ran, and gives each connection all its frames in one write: at
  rest nothing changes, under load the system calls are shared.
* A membership change takes effect between the events before it and those after it, because both are items of one queue.
* A frame is built at the moment of its write, and only if its subscription is still the live one.
* A subscription that is still replaying stored events has its matches held back; `go_live` hands them over without a
  checkpoint in between, less those that the replay's snapshot has shown.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import trio

from relay import metrics
from relay.fanout.audiences import Audiences, Load
from relay.fanout.index import SubscriptionIndex
from relay.fanout.items import (
    AudienceLoaded,
    Batch,
    Item,
    Joined,
    Left,
    Live,
    LiveSubscription,
    Peer,
    SubscriptionState,
)
from relay.fanout.outbound import Frame
from relay.nostr.messages import closed, event_ws_frame, ws_frame
from relay.store.snapshot import Snapshot

__all__ = ["Batch", "Hub", "HubStatistics", "Joined", "Left", "Live", "LiveSubscription", "Peer", "SubscriptionState"]

PASS_EVENTS_MAX = 64
"""Events of one pass: enough to share the system calls, few enough to keep the first one's latency."""

CHECKPOINT_RECIPIENTS = 256

HELD_EVENTS_MAX = 1000
HELD_BYTES_MAX = 1 << 20
"""What may wait for EOSE on one subscription. A replay that falls so far behind would never catch up."""

REVOKED = "restricted: channel access revoked"

_Output = dict[Peer, list[tuple[LiveSubscription, Live]]]


@dataclass(frozen=True, slots=True)
class HubStatistics:
    connections: int
    subscriptions: int
    audiences: int
    batches_queued: int


class Hub:
    """See the module. Owner of the task: the root nursery."""

    def __init__(self, load: Load, *, queue: int = 64, audience_capacity: int = 20_000) -> None:
        self.index = SubscriptionIndex()
        self.audiences = Audiences(load, capacity=audience_capacity, in_use=self.index.has_channel)
        self._peers: dict[str, dict[Peer, None]] = {}
        self._batches_in, self._batches_out = trio.open_memory_channel[Batch](queue)

    # -- for sessions: synchronous unless said otherwise ---------------------------------------------------------

    def connect(self, peer: Peer) -> None:
        """From the moment its key is known: evictions find the connection by it."""
        assert peer.caller is not None
        self._peers.setdefault(peer.caller.pubkey, {})[peer] = None

    def disconnect(self, peer: Peer) -> None:
        """Removes the connection and all its subscriptions. Harmless where it never was connected."""
        for subscription in self._subscriptions(peer):
            subscription.state = SubscriptionState.CLOSED
        self.index.remove_connection(peer)
        self._count()
        if peer.caller is not None and (peers := self._peers.get(peer.caller.pubkey)) is not None:
            peers.pop(peer, None)
            if not peers:
                del self._peers[peer.caller.pubkey]

    async def watch(self, channel_ids: Sequence[str]) -> None:
        """Makes the audiences known. Check `may_receive` and subscribe after it, without a checkpoint between.

        Raises:
            StoreError: The store could not be asked.
        """
        await self.audiences.watch(channel_ids)

    def may_receive(self, peer: Peer, channel_id: str) -> bool:
        return peer.caller is not None and self.audiences.may_receive(channel_id, peer.caller.pubkey)

    def subscribe(self, subscription: LiveSubscription) -> None:
        """Registers in state REPLAYING; replaces a subscription of the same name on the same connection."""
        self.unsubscribe(subscription.connection, subscription.sub_id)
        self.index.add(subscription)
        self._count()

    def unsubscribe(self, peer: Peer, sub_id: str) -> bool:
        """Ends one subscription; False where there is none of this name."""
        removed = self.index.remove(peer, sub_id)
        if removed is None:
            return False
        assert isinstance(removed, LiveSubscription)
        removed.state = SubscriptionState.CLOSED
        removed.held.clear()
        self._count()
        return True

    def go_live(self, subscription: LiveSubscription, snapshot: Snapshot | None) -> list[Frame]:
        """The frames held back during the replay, each with its channel; from here on matches are sent as they come.

        So they must be on their way before the next checkpoint, or later events overtake them.
        """
        if subscription.state is not SubscriptionState.REPLAYING:
            return []
        if snapshot is not None:
            subscription.snapshot, subscription.boundary = snapshot, snapshot.xmax
        held, subscription.held = subscription.held, []
        subscription.state = SubscriptionState.LIVE
        return [
            (_frame(subscription, live), live.channel_id) for live in held if not subscription.already_replayed(live)
        ]

    def subscription_count(self, peer: Peer) -> int:
        return len(self.index.subs.get(peer, ()))

    def _subscriptions(self, peer: Peer) -> list[LiveSubscription]:
        return cast("list[LiveSubscription]", list(self.index.subs.get(peer, {}).values()))

    def statistics(self) -> HubStatistics:
        connections = sum(len(peers) for peers in self._peers.values())
        queued = self._batches_out.statistics().current_buffer_used
        return HubStatistics(connections, self.index.count, len(self.audiences), queued)

    def dispatcher(self) -> trio.MemorySendChannel[Batch]:
        """An end of the queue for one producer, which closes it when it has nothing more to send."""
        return self._batches_in.clone()

    def close(self) -> None:
        """No more dispatchers: the task ends when those that exist are closed and the queue is empty."""
        self._batches_in.close()

    # -- the tasks -----------------------------------------------------------------------------------------------

    async def run_loader(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Loads audiences. Owner: root nursery; ends by cancellation."""
        out = self.dispatcher()
        task_status.started()
        await self.audiences.run_loader(out)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The fan-out task. Owner: root nursery; ends when the queue's send ends are closed."""
        task_status.started()
        batches: list[Batch] = []
        try:
            async for first in self._batches_out:
                batches, events = [first], len(first.items)
                while events < PASS_EVENTS_MAX:
                    try:
                        batch = self._batches_out.receive_nowait()
                    except (trio.WouldBlock, trio.EndOfChannel):
                        break
                    batches.append(batch)
                    events += len(batch.items)
                await self._pass(batches)
        finally:
            self._end(batches)

    def _end(self, batches: list[Batch]) -> None:
        """However the task ends: nobody waits for it any longer, and nobody hands it anything. Where it died, nothing
        is delivered to anybody any more, so that who waits for an eviction may take it as passed."""
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                batches.append(self._batches_out.receive_nowait())
        for batch in batches:
            if batch.passed is not None:
                batch.passed.set()
        self._batches_out.close()

    async def _pass(self, batches: list[Batch]) -> None:
        started = time.perf_counter()
        output: _Output = {}
        matched = 0
        for batch in batches:
            for item in batch.items:
                if type(item) is Live:
                    matched += 1
                    self._match(item, output)
                    if matched % PASS_EVENTS_MAX == 0:
                        await self._write(output)
                else:
                    await self._write(output)
                    self._change(item, output)
            if batch.passed is not None:
                await self._write(output)
                batch.passed.set()
        await self._write(output)
        metrics.FANOUT_BATCH_EVENTS.observe(matched)
        metrics.FANOUT_SECONDS.observe(time.perf_counter() - started)

    def _change(self, item: Item, output: _Output) -> None:
        if isinstance(item, AudienceLoaded):
            for live in self.audiences.loaded(item):
                self._match(live, output)
        elif isinstance(item, Joined):
            self.audiences.change(item)
        elif isinstance(item, Left):
            self.audiences.change(item)
            self._evict(item)

    def _match(self, live: Live, output: _Output) -> None:
        channel_id = live.channel_id
        subscriptions = cast("list[LiveSubscription]", self.index.match(live.event, channel_id))
        if subscriptions and channel_id is not None and not self.audiences.is_known(channel_id):
            if not self.audiences.hold(live):
                for subscription in subscriptions:
                    subscription.connection.drop("the members of a channel could not be read")
            return
        recipients = 0
        for subscription in subscriptions:
            peer: Peer = subscription.connection
            if channel_id is not None and not self.may_receive(peer, channel_id):
                continue
            recipients += 1
            if subscription.state is SubscriptionState.REPLAYING:
                self._hold(subscription, live)
            elif subscription.boundary and subscription.already_replayed(live):
                continue
            elif (frames := output.get(peer)) is None:
                output[peer] = [(subscription, live)]
            else:
                frames.append((subscription, live))
        metrics.FANOUT_RECIPIENTS.observe(recipients)

    def _hold(self, subscription: LiveSubscription, live: Live) -> None:
        subscription.held.append(live)
        subscription.held_bytes += len(live.event.json)
        if len(subscription.held) > HELD_EVENTS_MAX or subscription.held_bytes > HELD_BYTES_MAX:
            subscription.connection.drop("live events overtook the stored ones")

    async def _write(self, output: _Output) -> None:
        """Gives each connection its frames; leaves `output` empty."""
        written = 0
        for number, (peer, matches) in enumerate(output.items(), 1):
            frames = [
                (_frame(subscription, live), live.channel_id)
                for subscription, live in matches
                if subscription.state is SubscriptionState.LIVE
            ]
            if len(frames) == 1:
                peer.outbound.offer(*frames[0])
            elif frames:
                peer.outbound.offer_many(frames)
            written += len(frames)
            if number % CHECKPOINT_RECIPIENTS == 0:
                await trio.lowlevel.checkpoint()
        output.clear()
        if written:
            metrics.DELIVERIES.inc(written)

    def _evict(self, left: Left) -> None:
        # Who leaves an open channel may read it all the same: his subscriptions there end, but nothing is a secret.
        lost = not self.audiences.may_receive(left.channel_id, left.pubkey)
        for peer in list(self._peers.get(left.pubkey, ())):
            for subscription in self._subscriptions(peer):
                # Stored events of the channel may still be on their way to a subscription that is not its own.
                if lost and subscription.state is SubscriptionState.REPLAYING:
                    subscription.revoked.add(left.channel_id)
                if subscription.channels is not None and left.channel_id in subscription.channels:
                    subscription.state = SubscriptionState.CLOSED
                    subscription.held.clear()
            if lost:
                metrics.FANOUT_PURGED.inc(peer.outbound.purge(left.channel_id))
            for sub_id in self.index.remove_channel_subscriptions(peer, left.channel_id):
                peer.outbound.offer(ws_frame(closed(sub_id, REVOKED)))
        self._count()

    def _count(self) -> None:
        metrics.SUBSCRIPTIONS_ACTIVE.set(self.index.count)


def _frame(subscription: LiveSubscription, live: Live) -> bytes:
    return event_ws_frame(subscription.prefix, live.event.json)
