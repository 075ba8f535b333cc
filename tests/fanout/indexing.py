"""Making subscriptions and events for the index, and looking into it."""

from __future__ import annotations

from itertools import count

from relay.fanout.index import Subscription, SubscriptionIndex
from relay.nostr.event import Event
from relay.nostr.filter import Filter

X = "11111111-1111-1111-1111-111111111111"
Y = "22222222-2222-2222-2222-222222222222"
AUTHORS = ["a" * 64, "b" * 64]
_ids = count()


def event(
    kind: int, *tags: list[str], channel: str | None = None, author: str = AUTHORS[0], created_at: int = 1000
) -> Event:
    listed = [["h", channel], *tags] if channel is not None else list(tags)
    return Event(f"{next(_ids):064x}", author, created_at, kind, listed, "", "0" * 128)


def tagged(**tags: str) -> Filter:
    return Filter(tags={letter: frozenset(values.split()) for letter, values in tags.items()})


def tables(index: SubscriptionIndex, channel: str | None = None) -> dict[str, list[object]]:
    """What somebody stands under, by table."""
    family = index._global if channel is None else index._channels[channel]
    named = [*family.tables.items(), *([("kinds", family.exact)] if family.exact else [])]
    return {
        name: sorted({key for other, table in named if other == name for key in table}, key=str) for name, _ in named
    }


def examined(index: SubscriptionIndex, sent: Event, channel: str | None = None) -> int:
    before = index.statistics().examined
    index.match(sent, channel)
    return index.statistics().examined - before


def kinds(*wanted: int, channel: str | None = None) -> Filter:
    return Filter(kinds=frozenset(wanted), tags={"h": frozenset([channel])} if channel else {})


def subscribe(index, connection, sub_id, *filters, channels=None) -> Subscription:
    scope = frozenset(channels) if channels is not None else None
    sub = Subscription(connection, sub_id, filters, scope, b'["EVENT","%s",' % sub_id.encode())
    index.add(sub)
    return sub


def reached(index, event, channel=None) -> list[tuple[object, str]]:
    return [(sub.connection, sub.sub_id) for sub in index.match(event, channel)]


def end_about(index: SubscriptionIndex, connection: object, channel: str) -> list[str]:
    """As an eviction does."""
    ended = [sub.sub_id for sub in index.about(connection, channel)]
    for sub_id in ended:
        index.remove(connection, sub_id)
    return ended


def assert_empty(index: SubscriptionIndex) -> None:
    assert index.subs == {}
    assert index._channels == {}
    assert index._global.tables == {}
    assert index._global.exact == {}
    assert index._global.subscribers == {}
    assert index.count == 0
    assert not index.has_channel(X)
    statistics = index.statistics()
    assert (statistics.subscriptions, statistics.connections) == (0, 0)
    assert (statistics.channels, statistics.index_keys) == (0, 0)
