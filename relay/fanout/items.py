"""What travels to the fan-out task, in commit order, and the live subscriptions that it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

import trio

from relay.access.identity import Caller
from relay.fanout.index import Subscription
from relay.fanout.outbound import Outbound
from relay.nostr.event import Event
from relay.nostr.filter import matches_any
from relay.store.members import Audience
from relay.store.snapshot import Snapshot


class Peer(Protocol):
    """A connection as the fan-out sees it. Hashable by identity."""

    caller: Caller | None
    outbound: Outbound

    def drop(self, reason: str) -> None:
        """Ends the connection because it does not keep up; called from the fan-out task, must not block."""


class SubscriptionState(Enum):
    """REPLAYING: live matches wait in `held`. LIVE: they are sent. CLOSED: nothing more is sent."""

    REPLAYING = auto()
    LIVE = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Live:
    """An event on its way out. `xid` is the transaction that stored it; None = ephemeral, in no snapshot."""

    event: Event
    channel_id: str | None
    xid: int | None


@dataclass(frozen=True, slots=True)
class Joined:
    """The key may now receive the channel."""

    channel_id: str
    pubkey: str


@dataclass(frozen=True, slots=True)
class Left:
    """The key has lost the channel: its subscriptions there end, its queued frames go."""

    channel_id: str
    pubkey: str


@dataclass(frozen=True, slots=True)
class Redefined:
    """From here on the channel has exactly this audience, as its transaction saw it under the channel's lock: after a
    change of visibility. None: the channel was deleted. Whoever may not receive it any more loses it as by `Left`."""

    channel_id: str
    audience: Audience | None


@dataclass(frozen=True, slots=True)
class AudienceLoaded:
    """What the store says of a channel; None = there is no such channel (any more)."""

    channel_id: str
    audience: Audience | None


Item = Live | Joined | Left | Redefined | AudienceLoaded


@dataclass(frozen=True, slots=True)
class Batch:
    """Items of one commit. `passed` is set when the fan-out task has gone past the last of them."""

    items: Sequence[Item]
    passed: trio.Event | None = None


@dataclass(eq=False, slots=True)
class LiveSubscription(Subscription):
    """A subscription with what the boundary between stored and live events needs.

    Attributes:
        revoked: Channels lost while stored events are still being sent: their rows must be left out.
        held: Live matches that wait for EOSE.
    """

    state: SubscriptionState = SubscriptionState.REPLAYING
    revoked: set[str] = field(default_factory=set)
    held: list[Live] = field(default_factory=list)
    held_bytes: int = 0
    snapshot: Snapshot | None = None
    # xmax of the snapshot: from there on nothing can have been replayed, and one comparison decides.
    boundary: int = 0

    def close(self) -> None:
        """Nothing more is sent to it."""
        self.state = SubscriptionState.CLOSED
        self.held.clear()

    def already_replayed(self, live: Live) -> bool:
        """Whether the stored part of this subscription has covered the event."""
        return (
            live.xid is not None
            and live.xid < self.boundary
            and self.snapshot is not None
            and self.snapshot.shows(live.xid)
            # Last, because it is seldom asked: a filter with `limit` 0 has shown nothing of what it matches.
            and matches_any([each for each in self.filters if each.limit != 0], live.event, live.channel_id)
        )
