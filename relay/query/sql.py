"""One filter of a REQ, as one SQL statement per page.

In: a `Filter`, what its caller may read (`conditions`), and limits. Out: a `Selection` that writes the statement of
each page and knows the one condition that is decided row by row in Python. Nothing is executed here.

Pages continue behind the last row (`created_at DESC, id ASC` is total), never by OFFSET.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import orjson

from relay.nostr.filter import Filter
from relay.nostr.ids import parse_uuid
from relay.query.conditions import Parameters, Reach, conditions, mention_conditions

# Id, signed JSON, channel, created_at.
AnyRow = TypeVar("AnyRow", bound=tuple[bytes, bytes, str | None, int])
# (created_at, id) of the last row of the page before.
Cursor: TypeAlias = tuple[int, bytes]

# `xmin32` only where it is compared with an older snapshot: by way of a text, it is the dearest column of them.
_COLUMNS = "e.id, e.signed_json, e.channel_id::text AS channel_id, e.created_at"
_COLUMNS_COMPARED = f"{_COLUMNS}, e.xmin::text::bigint AS xmin32"

_PAGE = """
SELECT {columns}
FROM events e
WHERE {conditions}
ORDER BY e.created_at DESC, e.id
LIMIT {limit}"""

# By the order of the mentions, and not a step further than the limit. OFFSET 0, so that it stays a look-up of each.
_PAGE_OF_MENTIONS = """
SELECT e.*
FROM event_mentions m CROSS JOIN LATERAL (
    SELECT {columns} FROM events e WHERE e.id = m.event_id AND {conditions} OFFSET 0) e
WHERE {mention}
ORDER BY m.created_at DESC, m.event_id
LIMIT {limit}"""

# The snapshot has to come even when no row does, and from the statement that read the rows.
_FIRST_PAGE = """
SELECT p.*, s.snapshot
FROM (SELECT pg_current_snapshot()::text AS snapshot) s
LEFT JOIN LATERAL ({page}
) p ON true
ORDER BY p.created_at DESC, p.id"""


class RowCheck(Protocol):
    """Those of the rows that meet the condition that SQL left open. All at once: a call costs as much as a look."""

    def __call__(self, rows: list[AnyRow]) -> list[AnyRow]: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """One filter, ready to be asked page by page. `limit` is the number of rows wanted over all pages. `mention`: what
    is asked of the mentions that lead to the rows, None where the rows are found by themselves."""

    conditions: tuple[str, ...]
    arguments: tuple[Any, ...]
    limit: int
    check: RowCheck | None
    mention: tuple[str, ...] | None = None

    def page(self, rows: int, after: Cursor | None = None, *, with_snapshot: bool = False) -> tuple[str, list[Any]]:
        """The statement of the next page and its arguments. `with_snapshot` puts the column `snapshot` in the place of
        `xmin32` and gives one row of nulls before it where there would be none."""
        parameters = Parameters(list(self.arguments))
        behind = []
        if after is not None:
            created_at, event_id = parameters.add(after[0]), parameters.add(after[1])
            moment, name = ("e.created_at", "e.id") if self.mention is None else ("m.created_at", "m.event_id")
            # Two conditions: the first alone is a range that the index can start from.
            behind.append(f"{moment} <= {created_at}::bigint")
            behind.append(f"({moment} < {created_at}::bigint OR {name} > {event_id}::bytea)")
        limit = parameters.add(rows)
        columns = _COLUMNS if with_snapshot else _COLUMNS_COMPARED
        if self.mention is None:
            page = _PAGE.format(columns=columns, conditions=_all([*self.conditions, *behind]), limit=limit)
        else:
            page = _PAGE_OF_MENTIONS.format(
                columns=columns, conditions=_all(self.conditions), mention=_all([*self.mention, *behind]), limit=limit
            )
        return (_FIRST_PAGE.format(page=page) if with_snapshot else page), parameters.values


def select(wanted: Filter, reach: Reach, *, now: int, limit_default: int, limit_max: int) -> Selection | None:
    """The selection of one filter; None where it can match nothing that the caller may read."""
    limit = limit_default if wanted.limit is None else wanted.limit
    if limit == 0:
        return None
    parameters = Parameters()
    limit = min(limit, limit_max)
    check = _channel_tag_check(wanted.tags["h"]) if "h" in wanted.tags else None
    if (by_mention := mention_conditions(wanted, reach, now, parameters)) is not None:
        mention, rest = by_mention
        return Selection(tuple(rest), tuple(parameters.values), limit, check, tuple(mention))
    parameters = Parameters()
    found = conditions(wanted, reach, now, parameters, exact=False)
    return None if found is None else Selection(tuple(found), tuple(parameters.values), limit, check)


def _all(found: Iterable[str]) -> str:
    return "\n  AND ".join(found)


def _channel_tag_check(values: frozenset[str]) -> RowCheck:
    """`#h` to the byte: any `h` tag is the author's word, and only a row without one counts by where it is filed."""
    # Nearly every row names its own channel in canonical form. The search cannot be fooled by text inside a string:
    # there, every quotation mark has a backslash before it.
    canonical = {value: b'["h","%b"' % value.encode() for value in values if parse_uuid(value) == value}

    def opened(signed_json: bytes, channel_id: str | None) -> bool:
        named = [tag for tag in orjson.loads(signed_json)["tags"] if tag[0] == "h"]
        if not named:
            return channel_id in values
        return any(len(tag) > 1 and tag[1] in values for tag in named)

    def check(rows: list[AnyRow]) -> list[AnyRow]:
        kept, at = [], 0
        for row in rows:
            tag = canonical.get(row[2])  # type: ignore[arg-type]
            # Most rows have it where the row before had it: to look there first is cheaper than to search.
            if tag is not None and not row[1].startswith(tag, at):
                at = max(row[1].find(tag), 0)
            # It never stands at the very start, so 0 is "not there".
            if (tag is not None and at > 0) or opened(row[1], row[2]):
                kept.append(row)
        return kept

    return check
