"""Which live subscriptions an event belongs to, without looking at those it cannot belong to.

Flows in: subscriptions and the events to deliver, each with the channel that it was filed under. Flows out: the
subscriptions that match. One fan-out task owns the index; nothing here waits, so a look-up and a change never overlap.
Not done here: who may see an event (the fan-out task asks that for each match), frames, delivery.

Rules
-----
1. Isolation, both ways: an event of a channel reaches only subscriptions of that channel, an event of no channel only
   global ones. It holds by construction: the two families of indexes share no key.
2. A subscription stands under each kind of its filters' union, or once as a wildcard if a filter names no kinds, or
   if they are too many; in each of its channels. So an event, which has one kind and at most one channel, meets it at
   most once.
3. The indexes only narrow: every candidate is checked against its whole filters.
4. A key without subscriptions does not exist. Closing a subscription costs the keys that it has, however many others
   stand under them (hence dicts as ordered sets, where a list would be searched).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from relay.nostr.event import Event
from relay.nostr.filter import Filter, matches_any

__all__ = ["KEYS_MAX", "IndexStatistics", "Subscription", "SubscriptionIndex"]

# Kinds times channels of one subscription. Without a bound one message that names a hundred channels and 18 000 kinds
# would hold up the loop for two seconds and take 600 MB.
KEYS_MAX: Final = 1024


@dataclass(slots=True, eq=False)
class Subscription:
    """One REQ that is live; two of them are equal only if they are the same object.

    `connection`: its owner, any hashable. `channels`: the channels that it is about, None for a global one.
    `prefix`: the bytes before the event in its frames, `["EVENT",<sub id as JSON>,`. `cost`: what it holds in memory,
    in values of its filters and entries of the index (about 200 bytes each)."""

    connection: Any
    sub_id: str
    filters: tuple[Filter, ...]
    channels: frozenset[str] | None
    prefix: bytes
    cost: int = field(init=False)

    def __post_init__(self) -> None:
        values = 0
        for wanted in self.filters:
            values += len(wanted.ids or ()) + len(wanted.authors or ()) + len(wanted.kinds or ())
            values += sum([len(texts) for texts in wanted.tags.values()])
        scopes = 1 if self.channels is None else len(self.channels)
        self.cost = 1 + values + scopes * len(self.indexed_kinds() or (None,))

    def kinds(self) -> frozenset[int] | None:
        """The union over the filters, None if one of them takes every kind. Empty: nothing can match."""
        union: set[int] = set()
        for wanted in self.filters:
            if wanted.kinds is None:
                return None
            union |= wanted.kinds
        return frozenset(union)

    def indexed_kinds(self) -> frozenset[int] | None:
        """The kinds under which it stands in the index, None for a wildcard."""
        kinds = self.kinds()
        scopes = 1 if self.channels is None else len(self.channels)
        return None if kinds is None or len(kinds) * scopes > KEYS_MAX else kinds


@dataclass(frozen=True, slots=True)
class IndexStatistics:
    """`examined` and `matched` count candidates since the start: their ratio says how well the indexes narrow."""

    subscriptions: int
    connections: int
    channels: int
    index_keys: int
    examined: int
    matched: int


_Key = TypeVar("_Key", bound=Hashable)
_Entries = dict[Subscription, None]


def _enter(index: dict[_Key, _Entries], key: _Key, sub: Subscription) -> None:
    index.setdefault(key, {})[sub] = None


def _leave(index: dict[_Key, _Entries], key: _Key, sub: Subscription) -> None:
    entries = index[key]
    del entries[sub]
    if not entries:
        del index[key]


class SubscriptionIndex:
    """Every live subscription of the process, by connection and by what it can match."""

    __slots__ = (
        "_by_channel",
        "_examined",
        "_matched",
        "channel_kind_index",
        "channel_wildcard_index",
        "count",
        "global_kind_index",
        "global_wildcard_index",
        "subs",
    )

    def __init__(self) -> None:
        self.subs: dict[Any, dict[str, Subscription]] = {}
        self.channel_kind_index: dict[tuple[str, int], _Entries] = {}
        self.channel_wildcard_index: dict[str, _Entries] = {}
        self.global_kind_index: dict[int, _Entries] = {}
        self.global_wildcard_index: _Entries = {}
        self._by_channel: dict[str, _Entries] = {}  # also those that no event can match: they end with the channel too
        self.count = 0
        self._examined = 0
        self._matched = 0

    # ---- change

    def add(self, sub: Subscription) -> Subscription | None:
        """Make `sub` live; the subscription of the same connection and id that it replaced, if any."""
        replaced = self.remove(sub.connection, sub.sub_id)
        self.subs.setdefault(sub.connection, {})[sub.sub_id] = sub
        self.count += 1
        kinds = sub.indexed_kinds()
        if sub.channels is None:
            if kinds is None:
                self.global_wildcard_index[sub] = None
            for kind in kinds or ():
                _enter(self.global_kind_index, kind, sub)
        for channel in sub.channels or ():
            _enter(self._by_channel, channel, sub)
            if kinds is None:
                _enter(self.channel_wildcard_index, channel, sub)
            for kind in kinds or ():
                _enter(self.channel_kind_index, (channel, kind), sub)
        return replaced

    def remove(self, connection: Any, sub_id: str) -> Subscription | None:
        """End one subscription; None if there is no such."""
        own = self.subs.get(connection)
        sub = own.pop(sub_id, None) if own is not None else None
        if sub is None:
            return None
        if not own:
            del self.subs[connection]
        self.count -= 1
        kinds = sub.indexed_kinds()
        if sub.channels is None:
            if kinds is None:
                del self.global_wildcard_index[sub]
            for kind in kinds or ():
                _leave(self.global_kind_index, kind, sub)
        for channel in sub.channels or ():
            _leave(self._by_channel, channel, sub)
            if kinds is None:
                _leave(self.channel_wildcard_index, channel, sub)
            for kind in kinds or ():
                _leave(self.channel_kind_index, (channel, kind), sub)
        return sub

    def remove_connection(self, connection: Any) -> int:
        """End all subscriptions of a connection; how many they were."""
        sub_ids = list(self.subs.get(connection, ()))
        for sub_id in sub_ids:
            self.remove(connection, sub_id)
        return len(sub_ids)

    def remove_channel_subscriptions(self, connection: Any, channel: str) -> list[str]:
        """End the connection's subscriptions that are about `channel`; their ids, oldest first.

        One that is about further channels ends whole: a client that got part of it closed would not know which part."""
        own = self.subs.get(connection, {})
        evicted = [sub_id for sub_id, sub in own.items() if sub.channels is not None and channel in sub.channels]
        for sub_id in evicted:
            self.remove(connection, sub_id)
        return evicted

    # ---- look up

    def match(self, event: Event, channel_id: str | None) -> list[Subscription]:
        """The subscriptions that get the event, each once, those that asked for its kind first.

        `channel_id`: where the relay filed the event, None for no channel."""
        candidates = list(self.candidates(event.kind, channel_id))
        matched = [sub for sub in candidates if matches_any(sub.filters, event, channel_id)]
        self._examined += len(candidates)
        self._matched += len(matched)
        return matched

    def candidates(self, kind: int, channel_id: str | None) -> Iterator[Subscription]:
        """Everything that `match` examines. Do not change the index while iterating."""
        if channel_id is None:
            yield from self.global_kind_index.get(kind, ())
            yield from self.global_wildcard_index
        else:
            yield from self.channel_kind_index.get((channel_id, kind), ())
            yield from self.channel_wildcard_index.get(channel_id, ())

    def cost(self, connection: Any) -> int:
        """The sum over the connection's subscriptions."""
        return sum([sub.cost for sub in self.subs.get(connection, {}).values()])

    def get(self, connection: Any, sub_id: str) -> Subscription | None:
        own = self.subs.get(connection)
        return own.get(sub_id) if own is not None else None

    def get_filters(self, connection: Any, sub_id: str) -> tuple[Filter, ...] | None:
        sub = self.get(connection, sub_id)
        return sub.filters if sub is not None else None

    def subscribers(self, channel: str) -> list[Subscription]:
        """All subscriptions about the channel, oldest first, whether or not an event could match them."""
        return list(self._by_channel.get(channel, ()))

    def has_channel(self, channel: str) -> bool:
        return channel in self._by_channel

    def statistics(self) -> IndexStatistics:
        return IndexStatistics(
            subscriptions=self.count,
            connections=len(self.subs),
            channels=len(self._by_channel),
            index_keys=len(self.channel_kind_index) + len(self.channel_wildcard_index) + len(self.global_kind_index),
            examined=self._examined,
            matched=self._matched,
        )
