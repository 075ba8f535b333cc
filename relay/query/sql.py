"""A filter and what its caller may read, as one SQL statement per page.

In: a `Filter`, the channels that the caller may read, and limits. Out: a `Selection` that writes the statement of each
page and knows the one condition that SQL cannot decide exactly. Nothing is executed here.

Rules
-----
1. Access is part of the statement. What the caller may not read takes no place in a page, so a caller with one quiet
   channel is not starved by everybody else's.
2. Every condition is pushed down. `= ANY($n)` and not `IN (SELECT unnest(...))`, which PostgreSQL plans a thousand
   times worse; `=` for a single value, because only then an index also gives the order. Many tag values are looked up
   one by one: `&&` compares each with each, and the planner prefers to do that for every row of the table.
3. Pages continue behind the last row (`created_at DESC, id ASC` is total), never by OFFSET.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

from relay.nostr.filter import Filter, filter_channels
from relay.nostr.ids import parse_uuid
from relay.store.events import tag_key

INT64_MAX: Final = 2**63 - 1

# Up to here `&&` costs nothing to speak of; with 1900 values it took 2.5 s for 200 000 rows, looked up 0.09 s.
OVERLAP_VALUES_MAX: Final = 16

# Whether a row of this signed JSON, filed under this channel, meets the condition that SQL left open.
RowCheck: TypeAlias = Callable[[bytes, str | None], bool]
# (created_at, id) of the last row of the page before.
Cursor: TypeAlias = tuple[int, bytes]

_PAGE = """
SELECT e.id, e.signed_json, e.channel_id::text AS channel_id, e.created_at, e.xmin::text::bigint AS xmin32
FROM events e
WHERE e.deleted_at IS NULL{conditions}
ORDER BY e.created_at DESC, e.id
LIMIT {limit}"""

# The snapshot has to come even when no row does, and from the statement that read the rows.
_FIRST_PAGE = """
SELECT p.*, s.snapshot
FROM (SELECT pg_current_snapshot()::text AS snapshot) s
LEFT JOIN LATERAL ({page}
) p ON true
ORDER BY p.created_at DESC, p.id"""

# OFFSET 0, so that the look-up of one value stays one. A join, not an array: of ids that it does not know beforehand
# PostgreSQL searches an array from the front for every row.
_TAGGED_WITH_MANY = """e.id IN (
    SELECT t.id FROM unnest({keys}::text[]) AS k CROSS JOIN LATERAL (
      SELECT x.id FROM events x WHERE x.tag_values @> ARRAY[k] AND x.deleted_at IS NULL OFFSET 0) t)"""


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


class _Parameters:
    """Collects arguments and hands out their placeholders."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: list[Any] = []

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


@dataclass(frozen=True, slots=True)
class Selection:
    """One filter, ready to be asked page by page. `limit` is the number of rows wanted over all pages."""

    conditions: tuple[str, ...]
    arguments: tuple[Any, ...]
    limit: int
    check: RowCheck | None

    def page(self, rows: int, after: Cursor | None = None, *, with_snapshot: bool = False) -> tuple[str, list[Any]]:
        """The statement of the next page and its arguments. `with_snapshot` puts the column `snapshot` last and gives
        one row of nulls before it where there would be none."""
        parameters = _Parameters()
        parameters.values.extend(self.arguments)
        conditions = list(self.conditions)
        if after is not None:
            created_at, event_id = parameters.add(after[0]), parameters.add(after[1])
            # Two conditions: the first alone is a range that the index can start from.
            conditions.append(f"e.created_at <= {created_at}::bigint")
            conditions.append(f"(e.created_at < {created_at}::bigint OR e.id > {event_id}::bytea)")
        limit = parameters.add(rows)
        page = _PAGE.format(conditions="".join(f"\n  AND {condition}" for condition in conditions), limit=limit)
        return (_FIRST_PAGE.format(page=page) if with_snapshot else page), parameters.values


def select(wanted: Filter, reach: Reach, *, limit_default: int, limit_max: int) -> Selection | None:
    """The selection of one filter; None where it can match nothing that the caller may read."""
    limit = limit_default if wanted.limit is None else wanted.limit
    if limit == 0 or _is_empty(wanted):
        return None
    parameters = _Parameters()
    access = _access(wanted, reach, parameters)
    if access is None:
        return None
    conditions = [*access, *_fields(wanted, parameters)]
    for letter, values in sorted(wanted.tags.items()):
        condition = _tag(letter, values, parameters)
        if condition is None:
            return None
        conditions += condition
    check = _channel_tag_check(wanted.tags["h"]) if "h" in wanted.tags else None
    return Selection(tuple(conditions), tuple(parameters.values), min(limit, limit_max), check)


def _is_empty(wanted: Filter) -> bool:
    """Whether a condition is present that nothing meets."""
    if any(values is not None and not values for values in (wanted.ids, wanted.authors, wanted.kinds)):
        return True
    if not all(wanted.tags.values()):
        return True
    since = wanted.since or 0
    return since > INT64_MAX or (wanted.until is not None and since > wanted.until)


def _access(wanted: Filter, reach: Reach, parameters: _Parameters) -> list[str] | None:
    """The conditions on `channel_id`; None if no row can pass."""
    channels = reach.channels
    if "h" in wanted.tags and _names_only_channels(wanted.tags["h"]):
        named = filter_channels(wanted)
        channels = named if channels is None else channels & named
    if channels is not None:
        readable = sorted(channels & reach.accessible)
        return [parameters.one_of("e.channel_id", readable, "uuid")] if readable else None
    if not reach.accessible:
        return ["e.channel_id IS NULL"] if reach.global_events else None
    inside = parameters.one_of("e.channel_id", sorted(reach.accessible), "uuid")
    return [f"(e.channel_id IS NULL OR {inside})" if reach.global_events else inside]


def _names_only_channels(values: frozenset[str]) -> bool:
    return all(parse_uuid(text) is not None for text in values)


def _fields(wanted: Filter, parameters: _Parameters) -> list[str]:
    conditions = []
    if wanted.ids is not None:
        conditions.append(parameters.one_of("e.id", [bytes.fromhex(text) for text in sorted(wanted.ids)], "bytea"))
    if wanted.authors is not None:
        keys = [bytes.fromhex(text) for text in sorted(wanted.authors)]
        conditions.append(parameters.one_of("e.pubkey", keys, "bytea"))
    if wanted.kinds is not None:
        conditions.append(parameters.one_of("e.kind", sorted(wanted.kinds), "int"))
    if wanted.since:
        conditions.append(f"e.created_at >= {parameters.add(wanted.since)}::bigint")
    if wanted.until is not None and wanted.until < INT64_MAX:
        conditions.append(f"e.created_at <= {parameters.add(wanted.until)}::bigint")
    return conditions


def _tag(letter: str, values: frozenset[str], parameters: _Parameters) -> list[str] | None:
    """The condition of one `#x`; None if no stored event can have such a tag."""
    # PostgreSQL keeps no NUL, so no stored tag has one, and a parameter with one would be an error.
    storable = sorted(value for value in values if "\0" not in value)
    if not storable:
        return None
    tags = [tag_key(letter, value) for value in storable]
    if letter != "h":
        return [parameters.tagged(tags)]
    canonical = sorted(value for value in values if parse_uuid(value) == value)
    if len(canonical) == len(values):
        return []  # the condition on the channel says it already; the row check does the rest
    # Another spelling of a channel's id is text like any other: only rows that have it so can match.
    # The tag that names the row's own channel is not in `tag_values`, and rows without any `h` count by channel too.
    by_tag = parameters.tagged(tags)
    return [f"({by_tag} OR {parameters.one_of('e.channel_id', canonical, 'uuid')})" if canonical else by_tag]


def _channel_tag_check(values: frozenset[str]) -> RowCheck:
    """`#h` to the byte: any `h` tag is the author's word, and only a row without one counts by where it is filed."""
    # Nearly every row names its own channel in canonical form. The search cannot be fooled by text inside a string:
    # there, every quotation mark has a backslash before it.
    canonical = {value: b'["h","%b"' % value.encode() for value in values if parse_uuid(value) == value}

    def check(signed_json: bytes, channel_id: str | None) -> bool:
        if (tag := canonical.get(channel_id)) is not None and tag in signed_json:  # type: ignore[arg-type]
            return True
        named = [tag for tag in orjson.loads(signed_json)["tags"] if tag[0] == "h"]
        if not named:
            return channel_id in values
        return any(len(tag) > 1 and tag[1] in values for tag in named)

    return check
