"""A filter and what its caller may read, as conditions of SQL on a row `e` of `events`.

In: a `Filter`, the channels that the caller may read, the clock. Out: conditions and their arguments, for pages of
stored events, for COUNT and for search alike: what one of them shows, the others count and find. Nothing is executed.

Rules
-----
1. Access is part of the statement. What the caller may not read takes no place in a page, so a caller with one quiet
   channel is not starved by everybody else's.
2. Every condition is pushed down. `= ANY($n)` and not `IN (SELECT unnest(...))`, which PostgreSQL plans a thousand
   times worse; `=` for a single value, because only then an index also gives the order. Many tag values are looked up
   one by one: `&&` compares each with each, and the planner prefers to do that for every row of the table.
3. What was deleted and what has expired is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from relay.nostr.filter import Filter, filter_channels
from relay.nostr.ids import parse_pubkey, parse_uuid
from relay.store.events import MENTION_NOBODY, tag_key

INT64_MAX: Final = 2**63 - 1

# Up to here `&&` costs nothing to speak of; with 1900 values it took 2.5 s for 200 000 rows, looked up 0.09 s.
OVERLAP_VALUES_MAX: Final = 16

# OFFSET 0, so that the look-up of one value stays one. A join, not an array: of ids that it does not know beforehand
# PostgreSQL searches an array from the front for every row. MATERIALIZED, so that all are looked up once: before the
# first ANALYZE the planner takes the table for empty, and would look them all up anew for each of its rows.
_TAGGED_WITH_MANY = """e.id IN (
    WITH tagged AS MATERIALIZED (
      SELECT t.id FROM unnest({keys}::text[]) AS k CROSS JOIN LATERAL (
        SELECT x.id FROM events x WHERE x.tag_values @> ARRAY[k] AND x.deleted_at IS NULL OFFSET 0) t)
    SELECT id FROM tagged)"""

# `#h` to the byte. Any `h` tag is the author's word on where the event belongs; only without one does the filing count.
# `tag_values` leaves out the tag that names the row's own channel, so that one is looked for among the tags. `strict`:
# the lax mode of jsonpath would look into each tag as if it were a list of tags.
_H_EXACT = """({elsewhere} OR ({filed}
    AND (jsonb_path_exists(e.tags, 'strict $[*] ? (@[0] == "h" && @[1] == $c)', jsonb_build_object('c', e.channel_id))
      OR NOT jsonb_path_exists(e.tags, 'strict $[*] ? (@[0] == "h")'))))"""


@dataclass(frozen=True, slots=True)
class Reach:
    """What a caller may read.

    Attributes:
        accessible: Canonical ids of the channels that may be read.
        global_events: Whether events of no channel may be read.
        channels: Only rows of these channels are asked for; None = no such restriction. A subscription about channels
            must never answer with global events, whatever its filters' other values would match.
    """

    accessible: frozenset[str]
    global_events: bool = True
    channels: frozenset[str] | None = None


class Parameters:
    """Collects the arguments of a statement and hands out their placeholders."""

    __slots__ = ("values",)

    def __init__(self, values: list[Any] | None = None) -> None:
        self.values: list[Any] = [] if values is None else values

    def add(self, value: Any) -> str:
        self.values.append(value)
        return f"${len(self.values)}"

    def one_of(self, column: str, values: list[Any], sql_type: str) -> str:
        if len(values) == 1:
            return f"{column} = {self.add(values[0])}::{sql_type}"
        return f"{column} = ANY({self.add(values)}::{sql_type}[])"

    def tagged(self, keys: list[str]) -> str:
        """One of these entries stands in `tag_values`."""
        if len(keys) <= OVERLAP_VALUES_MAX:
            return f"e.tag_values && {self.add(keys)}::text[]"
        return _TAGGED_WITH_MANY.format(keys=self.add(keys))


def conditions(wanted: Filter, reach: Reach, now: int, parameters: Parameters, *, exact: bool) -> list[str] | None:
    """The conditions of one filter, to be joined by AND; None where nothing that the caller may read can match.

    Args:
        now: Seconds. What expires at or before it is left out (NIP-40).
        exact: Whether `#h` is decided to the byte. Where rows are sent, they are looked at in Python anyway, and the
            row's tags need not be opened by the server.
    """
    if _is_empty(wanted):
        return None
    access = _access(wanted, reach, parameters)
    if access is None:
        return None
    found = [*_live(now, parameters), *access, *_fields(wanted, parameters)]
    for letter, values in sorted(wanted.tags.items()):
        condition = _channel_tag(values, parameters, exact=exact) if letter == "h" else _tag(letter, values, parameters)
        if condition is None:
            return None
        found += condition
    return found


def mention_conditions(
    wanted: Filter, reach: Reach, now: int, parameters: Parameters
) -> tuple[list[str], list[str]] | None:  # fmt: skip
    """The same conditions, not exact, for a filter whose rows the table of mentions has in their order: first those on
    a row `m` of it, then what is left to be asked of the row `e`. None where it does not have them, or where nothing
    that the caller may read can match.

    The index of all tags has no order: it would give whatever has ever mentioned the key, to be sorted by time.
    """
    key = _mentioned(wanted)
    access = None if key is None or _is_empty(wanted) else _access(wanted, reach, parameters, "m")
    if key is None or access is None:
        return None
    mention = [f"m.pubkey = {parameters.add(bytes.fromhex(key))}::bytea", *access, *_fields(wanted, parameters, "m")]
    # A mention is by key, however it is spelled; a tag is text.
    return mention, [*_live(now, parameters), parameters.tagged([tag_key("p", key)])]


def _mentioned(wanted: Filter) -> str | None:
    """The key that a filter is about, if it says nothing but who is mentioned, of what kind, in which channels and
    when. Whatever else it has may be rarer than the mentions of a key, and has an index of its own."""
    if wanted.ids is not None or wanted.authors is not None or not wanted.tags.keys() <= {"p", "h"}:
        return None
    # Some kinds stand in `events` alone.
    if wanted.kinds is None or not wanted.kinds.isdisjoint(MENTION_NOBODY):
        return None
    if any(parse_uuid(value) != value for value in wanted.tags.get("h", ())):
        return None
    if len(keys := wanted.tags.get("p", frozenset())) != 1:
        return None
    [key] = keys
    return key if parse_pubkey(key) == key else None


def _live(now: int, parameters: Parameters) -> list[str]:
    # IS NOT TRUE, not "IS NULL OR": before the first ANALYZE the planner takes NULL for a rarity.
    return ["e.deleted_at IS NULL", f"(e.expires_at <= {parameters.add(now)}::bigint) IS NOT TRUE"]


def _is_empty(wanted: Filter) -> bool:
    """Whether a condition is present that nothing meets."""
    if any(values is not None and not values for values in (wanted.ids, wanted.authors, wanted.kinds)):
        return True
    if not all(wanted.tags.values()):
        return True
    since = wanted.since or 0
    return since > INT64_MAX or (wanted.until is not None and since > wanted.until)


def _access(wanted: Filter, reach: Reach, parameters: Parameters, row: str = "e") -> list[str] | None:
    """The conditions on `channel_id`; None if no row can pass."""
    channels = reach.channels
    if wanted.channels is not None:
        channels = wanted.channels if channels is None else channels & wanted.channels
    if channels is not None:
        readable = sorted(channels & reach.accessible)
        return [parameters.one_of(f"{row}.channel_id", readable, "uuid")] if readable else None
    if not reach.accessible:
        return [f"{row}.channel_id IS NULL"] if reach.global_events else None
    inside = parameters.one_of(f"{row}.channel_id", sorted(reach.accessible), "uuid")
    return [f"({row}.channel_id IS NULL OR {inside})" if reach.global_events else inside]


def _fields(wanted: Filter, parameters: Parameters, row: str = "e") -> list[str]:
    found = []
    if wanted.ids is not None:
        found.append(parameters.one_of(f"{row}.id", [bytes.fromhex(text) for text in sorted(wanted.ids)], "bytea"))
    if wanted.authors is not None:
        keys = [bytes.fromhex(text) for text in sorted(wanted.authors)]
        found.append(parameters.one_of(f"{row}.pubkey", keys, "bytea"))
    if wanted.kinds is not None:
        found.append(parameters.one_of(f"{row}.kind", sorted(wanted.kinds), "int"))
    if wanted.since:
        found.append(f"{row}.created_at >= {parameters.add(wanted.since)}::bigint")
    if wanted.until is not None and wanted.until < INT64_MAX:
        found.append(f"{row}.created_at <= {parameters.add(wanted.until)}::bigint")
    return found


def _tag(letter: str, values: frozenset[str], parameters: Parameters) -> list[str] | None:
    """The condition of one `#x`; None if no stored event can have such a tag."""
    keys = _keys(letter, values)
    return [parameters.tagged(keys)] if keys else None


def _keys(letter: str, values: frozenset[str]) -> list[str]:
    # PostgreSQL keeps no NUL, so no stored tag has one, and a parameter with one would be an error.
    return [tag_key(letter, value) for value in sorted(values) if "\0" not in value]


def _channel_tag(values: frozenset[str], parameters: Parameters, *, exact: bool) -> list[str] | None:
    """The condition of `#h`; None if no stored event can meet it."""
    keys = _keys("h", values)
    if not keys:
        return None
    canonical = sorted(value for value in values if parse_uuid(value) == value)
    if not exact and len(canonical) == len(values):
        return []  # the condition on the channel says it already; the row check does the rest
    # Another spelling of a channel's id is text like any other: only rows that have it so can match.
    by_tag = parameters.tagged(keys)
    if not canonical:
        return [by_tag]
    filed = parameters.one_of("e.channel_id", canonical, "uuid")
    if exact:
        return [_H_EXACT.format(elsewhere=by_tag, filed=filed)]
    # The tag that names the row's own channel is not in `tag_values`, and rows without any `h` count by channel too.
    return [f"({by_tag} OR {filed})"]


def search_channels(wanted: Filter, reach: Reach) -> Reach:
    """A search that names channels finds nothing outside of them, whatever else its `#h` holds."""
    if "h" not in wanted.tags:
        return reach
    named = filter_channels(wanted)
    return Reach(reach.accessible, False, named if reach.channels is None else named & reach.channels)
