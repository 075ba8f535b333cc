"""Filters (NIP-01, with the `search` of NIP-50): parse them, match events against them, and read from them what a
subscription is about.

Parsed JSON goes in, an immutable `Filter` comes out. Inside a filter all conditions must hold; of several filters one
suffices. A condition that is present but empty matches nothing, one that is absent (or null) matches everything.
There are no prefixes: ids and authors are whole. `limit` and `search` are not conditions on a single event, so matching
ignores them; whoever answers from the store applies them.

`channel_id` below is always the channel in which the relay filed the event: for a reaction or a deletion that is the
channel of its target, although the event itself has no `h` tag.

`#h` of UUIDs asks for the events *of* these channels. An event of another channel, or of none, may mention one of them
in a further `h` tag: it is found neither live (who follows a channel gets what is filed there) nor in the store (an
index by channel), so it matches nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from relay.errors import ProtocolError
from relay.nostr.event import UINT64_MAX, Event
from relay.nostr.ids import parse_event_id, parse_pubkey, parse_uuid
from relay.nostr.kinds import KIND_MAX, P_GATED


class InvalidFilter(ProtocolError):
    """The object is not a filter. `reason` is for the client's eyes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter. None means: no such condition. `tags` maps the letter (case counts) to the values wanted.

    `channels` follows from `#h`: where all its values are UUIDs, the filter is about these channels (canonical ids),
    and an event filed elsewhere does not match, whatever it mentions. None: `#h` is absent or also has other text.
    """

    ids: frozenset[str] | None = None
    authors: frozenset[str] | None = None
    kinds: frozenset[int] | None = None
    since: int | None = None
    until: int | None = None
    limit: int | None = None
    search: str | None = None
    tags: dict[str, frozenset[str]] = field(default_factory=dict)
    channels: frozenset[str] | None = field(init=False, compare=False, repr=False, default=None)

    def __post_init__(self) -> None:
        # Made once: fan-out compares every event with it.
        if "h" in self.tags:
            named = [parse_uuid(text) for text in self.tags["h"]]
            if None not in named:
                object.__setattr__(self, "channels", frozenset(named))


# --- parse ------------------------------------------------------------------------------------------------------------


def parse_filter(obj: object) -> Filter:
    """A filter from parsed JSON. Unknown keys and `#` with a longer name are ignored.

    Raises:
        InvalidFilter: a value has the wrong shape, or `#` is followed by one character that is no ASCII letter.
    """
    if type(obj) is not dict:
        raise InvalidFilter("expected an object")
    found = obj.get
    return Filter(
        ids=_names(found("ids"), parse_event_id, "Invalid event ID", "ids"),
        authors=_names(found("authors"), parse_pubkey, "Invalid public key", "authors"),
        kinds=_kinds(found("kinds")),
        since=_unsigned(found("since"), "since"),
        until=_unsigned(found("until"), "until"),
        limit=_unsigned(found("limit"), "limit"),
        search=_search(found("search")),
        tags={key[1]: _tag_values(key, value) for key, value in obj.items() if len(key) == 2 and key[0] == "#"},
    )


def _names(
    value: object, parse: Callable[[str], str | None], reason: str, key: str
) -> frozenset[str] | None:  # fmt: skip
    if value is None:
        return None
    if type(value) is not list:
        raise InvalidFilter(f"{key} must be an array of strings")
    names = set()
    for text in value:
        name = parse(text) if type(text) is str else None
        if name is None:
            raise InvalidFilter(reason)
        names.add(name)
    return frozenset(names)


def _kinds(value: object) -> frozenset[int] | None:
    if value is None:
        return None
    if type(value) is not list:
        raise InvalidFilter("kinds must be an array of integers")
    for kind in value:
        # A larger number must not wrap around: a filter for 65 537 is not one for text notes.
        if type(kind) is not int or not 0 <= kind <= KIND_MAX:
            raise InvalidFilter(f"kind must be an integer between 0 and {KIND_MAX}")
    return frozenset(value)


def _unsigned(value: object, key: str) -> int | None:
    if value is None or (type(value) is int and 0 <= value <= UINT64_MAX):
        return value
    raise InvalidFilter(f"{key} must be an unsigned 64-bit integer")


def _search(value: object) -> str | None:
    if value is None or type(value) is str:
        return value
    raise InvalidFilter("search must be a string")


def _tag_values(key: str, value: object) -> frozenset[str]:
    if not (key.isascii() and key[1].isalpha()):
        raise InvalidFilter("invalid alphabet char")
    if type(value) is not list or not all(type(text) is str for text in value):
        raise InvalidFilter(f"{key} must be an array of strings")
    return frozenset(value)


# --- match ------------------------------------------------------------------------------------------------------------


def matches(wanted: Filter, event: Event, channel_id: str | None) -> bool:
    """Whether the event, filed under `channel_id` (None: under no channel), meets every condition of the filter."""
    if wanted.kinds is not None and event.kind not in wanted.kinds:
        return False
    if wanted.authors is not None and event.pubkey not in wanted.authors:
        return False
    if wanted.ids is not None and event.id not in wanted.ids:
        return False
    if wanted.since is not None and event.created_at < wanted.since:
        return False
    if wanted.until is not None and event.created_at > wanted.until:
        return False
    if wanted.channels is not None and channel_id not in wanted.channels:
        return False
    return not wanted.tags or _tags_match(wanted.tags, event, channel_id)


def _tags_match(wanted: dict[str, frozenset[str]], event: Event, channel_id: str | None) -> bool:
    present = event.tag_index
    for letter, values in wanted.items():
        have = present.get(letter)
        if have is not None:
            if values.isdisjoint(have):
                return False
        # Any `h` tag is the author's word on where the event belongs; only without one does the relay's filing count.
        elif letter != "h" or channel_id not in values:
            return False
    return True


def matches_any(filters: Iterable[Filter], event: Event, channel_id: str | None) -> bool:
    """Whether at least one of the filters matches."""
    for wanted in filters:  # noqa: SIM110 (a generator costs twice the time on the way of every event)
        if matches(wanted, event, channel_id):
            return True
    return False


# --- what a subscription is about -------------------------------------------------------------------------------------

_NO_CHANNELS: Final[frozenset[str]] = frozenset()


def filter_channels(wanted: Filter) -> frozenset[str]:
    """The channels that the `#h` values name, in canonical form. Values that are no UUID are left out."""
    if wanted.channels is not None:
        return wanted.channels
    values = wanted.tags.get("h")
    if not values:
        return _NO_CHANNELS
    return frozenset([channel for text in values if (channel := parse_uuid(text)) is not None])


def subscription_channels(filters: Iterable[Filter]) -> frozenset[str] | None:
    """The channels of a subscription, or None if it is a global one.

    It is about channels if every filter names at least one; then about all that any of them names. A subscription
    without filters can match nothing and counts as global.
    """
    channels: set[str] = set()
    for wanted in filters:
        named = filter_channels(wanted)
        if not named:
            return None
        channels |= named
    return frozenset(channels) or None


def p_gate_refused(filters: Iterable[Filter], pubkey: str) -> bool:
    """Whether a global subscription of `pubkey` could see sealed messages or memberships meant for somebody else.

    A filter that could match such a kind (one without kinds could) must ask by `#p` for this very key and no other.
    Explicit `ids` are exempt: who knows the id of an event has seen it.
    """
    mine = frozenset((pubkey,))
    for wanted in filters:
        if wanted.ids:
            continue
        if wanted.kinds is not None and wanted.kinds.isdisjoint(P_GATED):
            continue
        if wanted.tags.get("p") != mine:
            return True
    return False
