"""The hub: the fan-out task and what it knows of connections and subscriptions.

In: batches of committed events and membership changes, in commit order, from the tasks that commit (`dispatcher`).
Out: frames, written straight to the sockets through each connection's `Outbound`. Sessions call the synchronous
methods to register and remove subscriptions. Nothing here waits for the database or for a client.

Rules:
* A pass takes whatever queued up while the previous one ran, and gives each connection all its frames in one write: at
  rest nothing changes, under load the system calls are shared.
* A change of who may receive a channel takes effect between the events before it and those after it, because all are
  items of one queue.
* A frame is built at the moment of its write, and only if its subscription is still the live one.
* A subscription that is still replaying stored events has its matches held back; `go_live` hands them over without a
  checkpoint in between, less those that the replay's snapshot has shown.
* Who loses a channel loses what is on its way to him too, wherever it stands (`evictions`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import trio

from relay import metrics
from relay.fanout.audiences import Audiences, Load
from relay.fanout.evictions import Evictions
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
    Redefined,
    SubscriptionState,
)
from relay.fanout.outbound import Frame
from relay.fanout.peers import Peers
from relay.fanout.presence import Presence
from relay.fanout.round import Round
from relay.nostr.event import Event
from relay.nostr.messages import event_ws_frame
from relay.nostr.nip40 import expires_at
from relay.store.snapshot import Snapshot

__all__ = [
    "Batch",
    "Hub",
    "HubStatistics",
    "Joined",
    "Left",
    "Live",
    "LiveSubscription",
    "Peer",
    "Redefined",
    "SubscriptionState",
]

PASS_EVENTS_MAX = 64
"""Events of one pass: enough to share the system calls, few enough to keep the first one's latency."""

PRESENCE_SECONDS = 90
"""Where nobody says otherwise: three heartbeats of a client."""


@dataclass(frozen=True, slots=True)
class HubStatistics:
    connections: int
    subscriptions: int
    audiences: int
    batches_queued: int


class Hub:
    """See the module. Owner of the task: the root nursery."""

    def __init__(
        self,
        load: Load,
        *,
        queue: int = 64,
        audience_capacity: int = 20_000,
        presence: Presence | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`now` gives seconds since the epoch; `presence` is forgotten for a key with its last connection."""
        self.index = SubscriptionIndex()
        self.audiences = Audiences(load, capacity=audience_capacity, in_use=self.index.has_channel)
        self.presence = presence if presence is not None else Presence(PRESENCE_SECONDS, time.monotonic)
        self._now = now
        self._peers = Peers()
        self._evictions = Evictions(self.index, self.audiences, self._peers)
        self._round = Round(self.index, self.audiences)
        self._batches_in, self._batches_out = trio.open_memory_channel[Batch](queue)

    # -- for sessions: synchronous unless said otherwise ---------------------------------------------------------

    def connect(self, peer: Peer) -> None:
        """From the moment its key is known: evictions find the connection by it."""
        self._peers.connect(peer)

    def disconnect(self, peer: Peer) -> None:
        """Removes the connection and all its subscriptions. Harmless where it never was connected."""
        for subscription in self._subscriptions(peer):
            self._close(subscription)
        self.index.remove_connection(peer)
        self._count()
        gone = self._peers.disconnect(peer)
        if gone is not None:
            self.presence.clear(gone)

    def peers_with_token(self, token_id: str) -> list[Peer]:
        """The connections that came with this API token."""
        return self._peers.with_token(token_id)

    def token_ids(self) -> set[str]:
        """The API tokens of all connections."""
        return self._peers.token_ids()

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
        if subscription.channels is None:
            self._evictions.replaying[subscription] = None
        self._count()

    def unsubscribe(self, peer: Peer, sub_id: str) -> bool:
        """Ends one subscription; False where there is none of this name."""
        removed = self.index.remove(peer, sub_id)
        if removed is None:
            return False
        assert isinstance(removed, LiveSubscription)
        self._close(removed)
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
        self._evictions.replaying.pop(subscription, None)
        return [
            (_frame(subscription, live), live.channel_id)
            for live in held
            if not subscription.already_replayed(live) and not self._expired(live.event)
        ]

    def subscription_count(self, peer: Peer) -> int:
        return len(self.index.subs.get(peer, ()))

    def _subscriptions(self, peer: Peer) -> list[LiveSubscription]:
        return cast("list[LiveSubscription]", list(self.index.subs.get(peer, {}).values()))

    def _close(self, subscription: LiveSubscription) -> None:
        subscription.close()
        self._evictions.replaying.pop(subscription, None)

    def statistics(self) -> HubStatistics:
        queued = self._batches_out.statistics().current_buffer_used
        return HubStatistics(len(self._peers), self.index.count, len(self.audiences), queued)

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
        matched = 0
        for batch in batches:
            for item in batch.items:
                if type(item) is Live:
                    matched += 1
                    self._match(item)
                    if len(self._round) >= PASS_EVENTS_MAX:
                        await self._round.deliver()
                else:
                    await self._round.deliver()
                    await self._change(item)
            if batch.passed is not None:
                await self._round.deliver()
                batch.passed.set()
        await self._round.deliver()
        metrics.FANOUT_BATCH_EVENTS.observe(matched)
        metrics.FANOUT_SECONDS.observe(time.perf_counter() - started)

    async def _change(self, item: Item) -> None:
        if isinstance(item, AudienceLoaded):
            for live in self.audiences.loaded(item):
                self._match(live)
        elif not isinstance(item, Live):
            self.audiences.change(item)
            if isinstance(item, Left):
                await self._evictions.evict_key(item)
            elif isinstance(item, Redefined):
                await self._evictions.evict_others(item)
            self._count()

    def _match(self, live: Live) -> None:
        if self._expired(live.event):
            return
        channel_id = live.channel_id
        if channel_id is None or self.audiences.is_known(channel_id):
            self._round.add(live)
            return
        subscriptions = self.index.match(live.event, channel_id)
        if not subscriptions:
            metrics.FANOUT_RECIPIENTS.observe(0)
        elif not self.audiences.hold(live):
            for subscription in subscriptions:
                subscription.connection.drop("the members of a channel could not be read")

    def _expired(self, event: Event) -> bool:
        end = expires_at(event)
        return end is not None and end <= self._now()

    def _count(self) -> None:
        metrics.SUBSCRIPTIONS_ACTIVE.set(self.index.count)


def _frame(subscription: LiveSubscription, live: Live) -> bytes:
    return event_ws_frame(subscription.prefix, live.event.json)
