"""A round of delivery against the plain way: each event, each subscription, every check, one frame after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay import metrics
from relay.fanout.audiences import Audiences
from relay.fanout.backlog import Frame
from relay.fanout.index import SubscriptionIndex
from relay.fanout.items import AudienceLoaded, Live, LiveSubscription, SubscriptionState
from relay.fanout.round import HELD_BYTES_MAX, HELD_EVENTS_MAX, Round
from relay.nostr.filter import Filter, matches_any
from relay.nostr.messages import event_prefix, event_ws_frame
from relay.store.members import Audience
from relay.store.snapshot import Snapshot
from tests.fanout.indexing import AUTHORS, X, Y, event, kinds, tagged
from tests.support.core import ALICE, BOB, CAROL

OPEN, PRIVATE, UNKNOWN = X, Y, "33333333-3333-4333-8333-333333333333"
AUDIENCES = {OPEN: Audience("open", frozenset()), PRIVATE: Audience("private", frozenset([ALICE.pubkey]))}
CALLERS = [ALICE.caller, ALICE.caller, BOB.caller, CAROL.caller, None]


@dataclass(eq=False)
class Peer:
    """A connection that writes down what it is given."""

    caller: Any
    frames: list[Frame] = field(default_factory=list)
    joined: list[bytes] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def outbound(self) -> Any:
        return self

    def offer_joined(self, joined: bytes, apart: Any, prefix: bytes) -> bool:
        frames = list(apart(prefix))
        assert joined == b"".join(frame for frame, _ in frames)
        self.frames += frames
        self.joined.append(joined)
        return True

    def offer_many(self, frames: Iterable[Frame]) -> bool:
        self.frames += frames
        return True

    def drop(self, reason: str) -> None:
        self.dropped.append(reason)


class Side:
    """An index, audiences and connections; the subscriptions are described by values, so that it can be made twice."""

    def __init__(self, wanted: Iterable[Wanted]) -> None:
        self.index = SubscriptionIndex()
        self.audiences = Audiences(cast("Any", None), capacity=10, in_use=self.index.has_channel)
        for channel, audience in AUDIENCES.items():
            self.audiences._want(channel)
            self.audiences.loaded(AudienceLoaded(channel, audience))
        self.peers = [Peer(caller) for caller in CALLERS]
        self.subscriptions = [self._subscribe(number, each) for number, each in enumerate(wanted)]

    def _subscribe(self, number: int, wanted: Wanted) -> LiveSubscription:
        name = wanted.name or f"sub{number}"
        subscription = LiveSubscription(
            self.peers[wanted.peer], name, wanted.filters, wanted.channels, event_prefix(name)
        )
        subscription.state = wanted.state
        if wanted.snapshot is not None:
            subscription.snapshot, subscription.boundary = wanted.snapshot, wanted.snapshot.xmax
        self.index.add(subscription)
        return subscription


@dataclass(frozen=True)
class Wanted:
    peer: int
    name: str | None
    filters: tuple[Filter, ...]
    channels: frozenset[str] | None
    state: SubscriptionState = SubscriptionState.LIVE
    snapshot: Snapshot | None = None


def plainly(side: Side, lives: Iterable[Live]) -> list[int]:
    """The slow way of a round; the recipients of each event."""
    recipients = []
    for live in lives:
        count = 0
        for subscription in side.index.match(live.event, live.channel_id):
            assert isinstance(subscription, LiveSubscription)
            peer = subscription.connection
            if live.channel_id is not None and (
                peer.caller is None or not side.audiences.may_receive(live.channel_id, peer.caller.pubkey)
            ):
                continue
            count += 1
            if subscription.state is SubscriptionState.REPLAYING:
                subscription.held.append(live)
            elif not subscription.already_replayed(live):
                peer.frames.append((event_ws_frame(subscription.prefix, live.event.json), live.channel_id))
        recipients.append(count)
    return recipients


def by_event(frames: list[Frame]) -> list[list[Frame]]:
    """Frames in order, those of one event as a set: in which order subscriptions get an event is open."""
    parts: list[tuple[bytes, list[Frame]]] = []
    for frame in frames:
        sent = frame[0][frame[0].index(b"{") :]
        if not parts or parts[-1][0] != sent:
            parts.append((sent, []))
        parts[-1][1].append(frame)
    return [sorted(part) for _, part in parts]


filters = st.builds(
    Filter,
    kinds=st.sampled_from([None, frozenset([1]), frozenset([1, 2]), frozenset([2])]),
    authors=st.sampled_from([None, None, None, frozenset(AUTHORS[:1])]),
    since=st.sampled_from([None, None, 0, 2]),
    until=st.sampled_from([None, None, 3, 1]),
    limit=st.sampled_from([None, None, 0]),
    tags=st.sampled_from([{}, {"h": frozenset([X])}, {"h": frozenset([Y])}, {"p": frozenset("a")}]),
)
snapshots = st.sampled_from(
    [None, Snapshot(10, 10, frozenset()), Snapshot(3, 8, frozenset([3, 5])), Snapshot(9, 20, frozenset([9]))]
)


@st.composite
def subscriptions(draw: Any) -> Wanted:
    channels = draw(st.sampled_from([None, frozenset([X]), frozenset([Y]), frozenset([X, Y])]))
    listed = draw(st.lists(filters, min_size=1, max_size=2))
    if channels is not None and draw(st.booleans()):  # what most clients ask for
        listed = [Filter(kinds=frozenset([1, 2]), since=listed[0].since, tags={"h": channels})]
    state = draw(st.sampled_from([SubscriptionState.LIVE] * 3 + [SubscriptionState.REPLAYING]))
    name = draw(st.sampled_from([None, None, "s", "other", "l" * 60]))
    snapshot = draw(snapshots) if state is SubscriptionState.LIVE else None
    return Wanted(draw(st.integers(0, 4)), name, tuple(listed), channels, state, snapshot)


@st.composite
def lives(draw: Any) -> Live:
    channel = draw(st.sampled_from([None, X, Y]))
    tags = draw(st.sampled_from([[], [["p", "a"]], [["h", X]], [["h", Y], ["p", "a"]], [["h", X], ["h", Y]]]))
    made = event(
        draw(st.integers(1, 2)), *tags, author=draw(st.sampled_from(AUTHORS)), created_at=draw(st.integers(0, 4))
    )
    made.content = draw(st.sampled_from(["", "x" * 200]))
    return Live(made, channel, draw(st.sampled_from([None, 2, 4, 5, 9, 30])))


@settings(max_examples=200, deadline=None)
@given(wanted=st.lists(subscriptions(), max_size=12), sent=st.lists(lives(), max_size=12), cut=st.integers(0, 12))
@example(  # one of many names a time or was shown a part: the others are not to notice
    wanted=[
        Wanted(0, "s", (Filter(kinds=frozenset([1]), since=3),), None),
        Wanted(1, "s", (kinds(1),), None, snapshot=Snapshot(3, 8, frozenset([3, 5]))),
        Wanted(2, "s", (kinds(1),), None),
    ],
    sent=[Live(event(1, created_at=at), None, xid) for at, xid in ((2, 2), (3, 4), (4, 5), (4, None), (3, 9))],
    cut=5,
)
def test_everybody_gets_what_the_plain_way_gives(wanted: list[Wanted], sent: list[Live], cut: int) -> None:
    quick, slow = Side(wanted), Side(wanted)
    observed: list[int] = []
    counted: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "FANOUT_RECIPIENTS", SimpleNamespace(observe=observed.append))
        patch.setattr(metrics, "DELIVERIES", SimpleNamespace(inc=counted.append))

        async def deliver() -> None:
            round_ = Round(quick.index, quick.audiences)
            for part in (sent[:cut], sent[cut:]):
                for live in part:
                    round_.add(live)
                assert len(round_) == len(part)
                await round_.deliver()
                assert len(round_) == 0

        trio.run(deliver)
    assert observed == plainly(slow, sent)
    assert sum(counted) == sum(len(peer.frames) for peer in quick.peers)
    for mine, theirs in zip(quick.peers, slow.peers, strict=True):
        assert by_event(mine.frames) == by_event(theirs.frames)
    for ours, model in zip(quick.subscriptions, slow.subscriptions, strict=True):
        assert ours.held == model.held
        for live in ours.held:
            assert matches_any(ours.filters, live.event, live.channel_id)


# ---- one check after the other, so that each is seen to be missed


def contents(peer: Peer) -> list[int]:
    """The created_at of what came, in order."""
    return [int(frame.partition(b'"created_at":')[2].partition(b",")[0]) for frame, _ in peer.frames]


async def deliver(side: Side, *sent: Live) -> list[list[int]]:
    round_ = Round(side.index, side.audiences)
    for live in sent:
        round_.add(live)
    await round_.deliver()
    return [contents(peer) for peer in side.peers]


def at(second: int, *, kind: int = 1, channel: str | None = None, xid: int | None = None, h: str | None = None) -> Live:
    return Live(event(kind, channel=h or channel, created_at=second), channel, xid)


ABOUT = {channel: (kinds(1, channel=channel),) for channel in (OPEN, PRIVATE, UNKNOWN)}
COMPARED = {channel: (replace(kinds(1, channel=channel), authors=frozenset(AUTHORS)),) for channel in ABOUT}


@pytest.mark.parametrize("asked", [ABOUT, COMPARED], ids=["shared", "compared"])
async def test_only_those_who_may_receive_the_channel_get_it(asked: dict[str, tuple[Filter, ...]]) -> None:
    side = Side(Wanted(peer, channel, asked[channel], frozenset([channel])) for channel in asked for peer in range(5))
    got = await deliver(side, *[at(n, channel=channel) for n, channel in enumerate(asked)])
    assert got == [[0, 1], [0, 1], [0], [0], []]


@pytest.mark.parametrize("asked", [ABOUT, COMPARED], ids=["shared", "compared"])
async def test_an_event_that_names_another_channel_is_compared(asked: dict[str, tuple[Filter, ...]]) -> None:
    side = Side([Wanted(0, "s", asked[OPEN], frozenset([OPEN]))])
    got = await deliver(side, at(1, channel=OPEN), at(2, channel=OPEN, h=PRIVATE), at(3, channel=OPEN))
    assert got[0] == [1, 3]


async def test_times_kinds_and_places_are_kept_apart() -> None:
    asked = [(kinds(1), None), (kinds(2), None), (Filter(kinds=frozenset([1]), since=2, until=3), None)]
    side = Side([Wanted(n, "s", (wanted,), channels) for n, (wanted, channels) in enumerate(asked)])
    sent = [*[at(n) for n in range(5)], at(5, kind=2), at(6, channel=OPEN)]
    assert (await deliver(side, *sent))[:3] == [[0, 1, 2, 3, 4], [5], [2, 3]]


async def test_what_is_held_back_is_of_its_time_too() -> None:
    asked = Filter(kinds=frozenset([1]), since=2, until=3)
    side = Side([Wanted(0, "s", (asked,), None, SubscriptionState.REPLAYING), Wanted(1, "s", (kinds(1),), None)])
    assert (await deliver(side, *[at(n) for n in range(5)]))[1] == [0, 1, 2, 3, 4]
    assert [live.event.created_at for live in side.subscriptions[0].held] == [2, 3]
    assert side.subscriptions[0].held_bytes == sum(len(live.event.json) for live in side.subscriptions[0].held)


async def test_a_snapshot_hides_what_it_has_shown_from_its_own_subscription_only() -> None:
    shown = Snapshot(3, 8, frozenset([5]))
    side = Side([Wanted(0, "s", (kinds(1),), None, snapshot=shown), Wanted(1, "s", (kinds(1),), None)])
    sent = [at(n, xid=xid) for n, xid in enumerate((2, 5, 7, 8, None))]
    assert (await deliver(side, *sent))[:2] == [[1, 3, 4], [0, 1, 2, 3, 4]]


async def test_several_subscriptions_of_a_connection_get_their_frames_in_the_order_of_the_events() -> None:
    asked = [(kinds(1),), (kinds(1, 2),), (Filter(authors=frozenset(AUTHORS)),), (tagged(p="nobody"),)]
    side = Side([Wanted(0, None, filters_, None) for filters_ in asked])
    got = await deliver(side, at(0), at(1, kind=2), at(2), at(3, kind=7))
    assert got[0] == [0, 0, 0, 1, 1, 2, 2, 2, 3]


async def test_what_is_closed_while_the_round_writes_gets_nothing_more() -> None:
    """One connection's write may end others, and so may whoever runs while the round checks in."""
    side = Side([Wanted(peer, name, (kinds(1),), None) for peer, name in ((0, "s"), (1, "s"), (2, "s"), (2, "t"))])

    class Ending(list[bytes]):
        def append(self, joined: bytes) -> None:
            super().append(joined)
            for subscription in side.subscriptions[1:]:
                subscription.close()

    side.peers[0].joined = Ending()
    assert (await deliver(side, at(1)))[:3] == [[1], [], []]


async def test_the_next_round_asks_again() -> None:
    side = Side([Wanted(peer, "s", (kinds(1),), None) for peer in range(2)])
    round_ = Round(side.index, side.audiences)
    for second in (1, 2):
        round_.add(at(second))
        await round_.deliver()
        side.index.remove(side.peers[1], "s")
    assert [contents(peer) for peer in side.peers[:2]] == [[1, 2], [1]]


@pytest.mark.parametrize("asked", [kinds(1), Filter(authors=frozenset(AUTHORS))], ids=["shared", "compared"])
@pytest.mark.parametrize("size", [0, 60_000])
async def test_what_waits_for_eose_is_bounded_by_number_and_bytes(asked: Filter, size: int) -> None:
    side = Side([Wanted(0, "s", (asked,), None, SubscriptionState.REPLAYING)])
    big = at(1)
    big.event.content = "x" * size
    fits = HELD_EVENTS_MAX if not size else HELD_BYTES_MAX // len(big.event.json)
    await deliver(side, *[big] * fits)
    assert side.peers[0].dropped == []
    await deliver(side, big)
    assert side.peers[0].dropped
    assert side.peers[0].frames == []


async def test_subscriptions_that_get_the_same_share_the_bytes() -> None:
    """Whatever their filters are: what would be a thousand copies is one."""
    side = Side([Wanted(n, "s", (wanted,), None) for n, wanted in enumerate((kinds(1), kinds(1, 2), Filter()))])
    await deliver(side, at(1), at(2))
    first, *others = [peer.joined for peer in side.peers[:3]]
    assert len(first) == 1
    assert all(joined[0] is first[0] for joined in others)
