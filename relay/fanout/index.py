"""Which live subscriptions an event belongs to, without looking at those it cannot belong to.

Flows in: subscriptions and the events to deliver, each with the channel that it was filed under. Flows out: the
subscriptions that match. One fan-out task owns the index; nothing here waits, so a look-up and a change never overlap.
Not done here: who may see an event (the fan-out task asks that for each match), frames, delivery.

Rules
-----
1. Isolation, both ways: an event of a channel reaches only subscriptions of that channel, an event of no channel only
   global ones. It holds by construction: each channel is a family with tables of its own, and so is "no channel".
2. Each filter stands under ONE of its fields, in each family of its subscription: the one that the fewest events are
   likely to share. An event looks up only its own id, author, tag values and kind, so ten thousand subscriptions to
   other authors or other threads cost it nothing.
3. A field is passed over for the next one when the subscription would come to stand under more than `KEYS_MAX` keys.
4. The tables only narrow: every candidate is checked against its whole filters, and once, however many of its filters
   and keys the event has met.
5. A subscription that asks for kinds of its channels, and at most for a time, stands apart from those that have to be
   compared: it gets every event of these kinds, so whoever delivers many events finds such subscriptions once.
6. A key without subscriptions does not exist. Closing a subscription costs the keys that it has, however many others
   stand under them (hence dicts as ordered sets, where a list would be searched).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from relay.nostr.event import UINT64_MAX, Event
from relay.nostr.filter import Filter, matches_any

__all__ = ["KEYS_MAX", "IndexStatistics", "Subscription", "SubscriptionIndex", "is_plain"]

# Keys times families of one subscription. Without a bound one message that names a hundred channels and 18 000 kinds
# would hold up the loop for two seconds and take 600 MB.
KEYS_MAX: Final = 1024

# The tables of a family; that of a tag is called by its letter, so none of these has one character.
IDS: Final = "ids"
AUTHORS: Final = "authors"
KINDS: Final = "kinds"
ANYTHING: Final = "anything"  # has one key, for what no field narrows

_Value = int | str | None
_Places = dict[str, frozenset[_Value]]
_UNDER_ANYTHING: Final[frozenset[_Value]] = frozenset((None,))


@dataclass(slots=True, eq=False)
class Subscription:
    """One REQ that is live; two of them are equal only if they are the same object.

    `connection`: its owner, any hashable. `channels`: the channels that it is about, None for a global one.
    `prefix`: the bytes before the event in its frames, `["EVENT",<sub id as JSON>,`. `places`: the keys under which it
    stands in the index, by table. `cost`: what it holds in memory, in values of its filters and entries of the index
    (about 200 bytes each). `exact`: it asks for kinds of its channels, or of no channel, and at most for a time (from
    `since` to `until`), so that whatever is of that time and finds it matches it."""

    connection: Any
    sub_id: str
    filters: tuple[Filter, ...]
    channels: frozenset[str] | None
    prefix: bytes
    places: _Places = field(init=False)
    cost: int = field(init=False)
    exact: bool = field(init=False)
    since: int = field(init=False, default=0)
    until: int = field(init=False, default=UINT64_MAX)

    def __post_init__(self) -> None:
        families = 1 if self.channels is None else len(self.channels)
        self.places = _places(self.filters, KEYS_MAX // max(1, families))
        values = 0
        for wanted in self.filters:
            values += len(wanted.ids or ()) + len(wanted.authors or ()) + len(wanted.kinds or ())
            values += sum([len(texts) for texts in wanted.tags.values()])
        self.exact = (
            self.places.keys() == {KINDS} and len(self.filters) == 1 and _is_exact(self.filters[0], self.channels)
        )
        if self.exact:
            since, until = self.filters[0].since, self.filters[0].until
            self.since = 0 if since is None else since
            self.until = UINT64_MAX if until is None else until
        self.cost = 1 + values + families * (1 + sum([len(keys) for keys in self.places.values()]))


def _is_exact(wanted: Filter, channels: frozenset[str] | None) -> bool:
    # Ids and authors too: with very many of them it stands under its kinds all the same.
    if wanted.ids is not None or wanted.authors is not None:
        return False
    if channels is None:
        return not wanted.tags
    # A channel in another spelling than its own is compared as text, and then matches nothing.
    named = wanted.channels
    return named is not None and channels <= named and wanted.tags.keys() == {"h"} and wanted.tags["h"] == named


def _places(filters: Iterable[Filter], keys_max: int) -> _Places:
    """The keys of a subscription in one family, by table; none where nothing can match."""
    places: _Places = {}
    keys = 0
    for wanted in filters:
        if _matches_nothing(wanted):
            continue
        for table, values in _fields(wanted):
            before = places.get(table)
            after = values if before is None else before | values
            more = len(after) - len(before or ())
            if keys + more <= keys_max:
                places[table] = after
                keys += more
                break
        else:
            # It is looked at for every event, so other keys would be of no use.
            return {ANYTHING: _UNDER_ANYTHING}
    return places


def _matches_nothing(wanted: Filter) -> bool:
    conditions = (wanted.ids, wanted.authors, wanted.kinds, *wanted.tags.values())
    return any(values is not None and not values for values in conditions)


def _fields(wanted: Filter) -> list[tuple[str, frozenset[_Value]]]:
    """The fields under which a filter could stand, best first. An event has one id and one author, and few carry a
    given tag value; but the kinds of a busy relay are few."""
    # Not `h`: an event without such a tag has its channel in the place of one, which a look at its tags would miss.
    tags = sorted([item for item in wanted.tags.items() if item[0] != "h"], key=lambda item: len(item[1]))
    named = ((IDS, wanted.ids), (AUTHORS, wanted.authors), *tags, (KINDS, wanted.kinds))
    return [(table, values) for table, values in named if values is not None]


@dataclass(frozen=True, slots=True)
class IndexStatistics:
    """`examined` and `matched` count candidates since the start: their ratio says how well the index narrows."""

    subscriptions: int
    connections: int
    channels: int
    index_keys: int
    examined: int
    matched: int


_Entries = dict[Subscription, None]
_Table = dict[_Value, _Entries]
_NOBODY: Final[_Entries] = {}


class _Family:
    """The subscriptions about one channel, or about none. `subscribers` are also those that no event can match: they
    end with the channel too. `exact`: by kind, those that are; `tables`: all others."""

    __slots__ = ("exact", "subscribers", "tables")

    def __init__(self) -> None:
        self.subscribers: _Entries = {}
        self.exact: _Table = {}
        self.tables: dict[str, _Table] = {}

    def enter(self, sub: Subscription) -> None:
        self.subscribers[sub] = None
        for name, keys in sub.places.items():
            table = self.exact if sub.exact else self.tables.setdefault(name, {})
            for key in keys:
                table.setdefault(key, {})[sub] = None

    def leave(self, sub: Subscription) -> None:
        del self.subscribers[sub]
        for name, keys in sub.places.items():
            table = self.exact if sub.exact else self.tables[name]
            for key in keys:
                entries = table[key]
                del entries[sub]
                if not entries:
                    del table[key]
            if not table and not sub.exact:
                del self.tables[name]

    def candidates(self, event: Event) -> _Entries:
        """Every subscription in `tables` that stands under a key of the event, each once. Not to be changed."""
        found: list[_Entries] = []
        entries: _Entries | None
        for name, table in self.tables.items():  # only those that somebody uses
            if name == KINDS:
                entries = table.get(event.kind)
            elif name == AUTHORS:
                entries = table.get(event.pubkey)
            elif name == IDS:
                entries = table.get(event.id)
            elif name == ANYTHING:
                entries = table[None]
            else:
                found += [table[value] for value in event.tag_index.get(name, ()) if value in table]
                continue
            if entries is not None:
                found.append(entries)
        if len(found) > 1:
            # The same one may stand under several of these keys. The largest is copied, which is the cheapest.
            found.sort(key=len)
            union = found.pop().copy()
            for entries in found:
                union.update(entries)
            return union
        return found[0] if found else {}

    def keys(self) -> int:
        return len(self.exact) + sum([len(table) for table in self.tables.values()])


def is_plain(event: Event, channel_id: str | None) -> bool:
    """Whether every `exact` subscription of its family, kind and time matches the event. One that names other channels
    than its own, or its own in another spelling, is looked at more closely."""
    if channel_id is None:
        return True
    named = event.tag_index.get("h")
    return named is None or channel_id in named


class SubscriptionIndex:
    """Every live subscription of the process, by connection and by what it can match."""

    __slots__ = ("_channels", "_examined", "_global", "_matched", "count", "subs")

    def __init__(self) -> None:
        self.subs: dict[Any, dict[str, Subscription]] = {}
        self._global = _Family()
        self._channels: dict[str, _Family] = {}
        self.count = 0
        self._examined = 0
        self._matched = 0

    # ---- change

    def add(self, sub: Subscription) -> Subscription | None:
        """Make `sub` live; the subscription of the same connection and id that it replaced, if any."""
        replaced = self.remove(sub.connection, sub.sub_id)
        self.subs.setdefault(sub.connection, {})[sub.sub_id] = sub
        self.count += 1
        if sub.channels is None:
            self._global.enter(sub)
        for channel in sub.channels or ():
            family = self._channels.get(channel)
            if family is None:
                family = self._channels[channel] = _Family()
            family.enter(sub)
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
        if sub.channels is None:
            self._global.leave(sub)
        for channel in sub.channels or ():
            family = self._channels[channel]
            family.leave(sub)
            if not family.subscribers:
                assert not family.tables, "a key without subscriptions"
                assert not family.exact, "a kind without subscriptions"
                del self._channels[channel]
        return sub

    def remove_connection(self, connection: Any) -> int:
        """End all subscriptions of a connection; how many they were."""
        sub_ids = list(self.subs.get(connection, ()))
        for sub_id in sub_ids:
            self.remove(connection, sub_id)
        return len(sub_ids)

    # ---- look up

    def match(self, event: Event, channel_id: str | None) -> list[Subscription]:
        """The subscriptions that get the event, each once.

        `channel_id`: where the relay filed the event, None for no channel."""
        exact = self.exact(event.kind, channel_id)
        matched = [sub for sub in exact if matches_any(sub.filters, event, channel_id)]
        self._matched -= len(exact) - len(matched)
        return matched + self.match_closely(event, channel_id)

    def exact(self, kind: int, channel_id: str | None) -> Collection[Subscription]:
        """The subscriptions that get every plain event (`is_plain`) of this kind, channel and of their time. Not to be
        changed, and valid until the index changes."""
        family = self._family(channel_id)
        found = _NOBODY if family is None else family.exact.get(kind, _NOBODY)
        self._examined += len(found)
        self._matched += len(found)
        return found

    def match_closely(self, event: Event, channel_id: str | None) -> list[Subscription]:
        """All other subscriptions that get the event, each once."""
        family = self._family(channel_id)
        if family is None or not family.tables:
            return []
        candidates = family.candidates(event)
        matched = [sub for sub in candidates if matches_any(sub.filters, event, channel_id)]
        self._examined += len(candidates)
        self._matched += len(matched)
        return matched

    def _family(self, channel_id: str | None) -> _Family | None:
        return self._global if channel_id is None else self._channels.get(channel_id)

    def cost(self, connection: Any) -> int:
        """The sum over the connection's subscriptions."""
        return sum([sub.cost for sub in self.subs.get(connection, {}).values()])

    def get(self, connection: Any, sub_id: str) -> Subscription | None:
        own = self.subs.get(connection)
        return own.get(sub_id) if own is not None else None

    def about(self, connection: Any, channel: str) -> list[Subscription]:
        """The connection's subscriptions that are about `channel`, oldest first."""
        own = self.subs.get(connection, {})
        return [sub for sub in own.values() if sub.channels is not None and channel in sub.channels]

    def subscribers(self, channel: str) -> list[Subscription]:
        """All subscriptions about the channel, oldest first, whether or not an event could match them."""
        family = self._channels.get(channel)
        return list(family.subscribers) if family is not None else []

    def has_channel(self, channel: str) -> bool:
        return channel in self._channels

    def statistics(self) -> IndexStatistics:
        """Costs a look at each channel."""
        return IndexStatistics(
            subscriptions=self.count,
            connections=len(self.subs),
            channels=len(self._channels),
            index_keys=self._global.keys() + sum([family.keys() for family in self._channels.values()]),
            examined=self._examined,
            matched=self._matched,
        )
