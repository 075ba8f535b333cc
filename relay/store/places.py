"""Where a page ends: the cursor of lists that are ordered by `created_at` and, within a second, by id.

The contract knows cursors that are a number of seconds. A page that ends between two events of one second needs more,
or the next page skips the rest of that second (or shows some of it twice). So a cursor in the middle of a second is a
larger number: the second times 2²⁰, plus the first 20 bits of the last event's id. It still fits the 53 bits that every
JSON reader keeps exactly, and no time that the contract accepts is as large. Clients hand it back as it is. (Seconds
before 2004 have cursors below zero: above it they would be numbers like 99999999999999, which people send who mean "no
end", and in early 1970 even times.)

Two events of one second whose ids share those 20 bits must not be parted: `cut` ends the page in front of such a pair,
or behind it where the page begins with one. Pure: statements and routes bring the rows, within `older` or `newer`.

Not done here: a page that ends within a second before 1970 or after 2242 passes over its rest. Nothing that a relay
admits is dated so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

PREFIX_BITS: Final = 20
SECONDS_MAX: Final = 8_210_266_876_799
"""The largest time that the original accepts in a query; a larger number was ignored there."""
# The seconds with a cursor above zero, of 53 bits: 2004 to 2242. Earlier ones are moved until their number is larger
# than any time, and negated.
_PLAIN_MIN: Final = 1 << 30
_PLAIN_END: Final = 1 << (53 - PREFIX_BITS)
_MOVED_BY: Final = (SECONDS_MAX >> PREFIX_BITS) + 1


class Placed(Protocol):
    """A row with a place in the order."""

    @property
    def created_at(self) -> int: ...

    @property
    def event_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Place:
    """After this second, or (`prefix` given) after the ids of this second that begin with these 20 bits or fewer."""

    created_at: int
    prefix: int | None = None

    @property
    def first_id(self) -> bytes | None:
        """The largest id that is passed over within the second; None where the whole second is."""
        if self.prefix is None:
            return None
        return ((self.prefix << (256 - PREFIX_BITS)) | ((1 << (256 - PREFIX_BITS)) - 1)).to_bytes(32, "big")


Bound: TypeAlias = tuple[int, bytes]
"""The second that is the last to be looked at, and the id that is passed over in it, with all that are smaller."""


def older(place: Place | None) -> Bound:
    """Where a page of the newest first begins: `created_at <= second AND (created_at < second OR id > passed)`.

    Without a place it begins at the largest time that a cursor can name, so that every page can be gone on from.
    """
    if place is None:
        return SECONDS_MAX, b""
    passed = place.first_id
    return (place.created_at - 1, b"") if passed is None else (place.created_at, passed)


def newer(place: Place | None) -> Bound:
    """Where a page of the oldest first begins: `created_at >= second AND (created_at > second OR id > passed)`."""
    if place is None:
        return -SECONDS_MAX, b""
    passed = place.first_id
    return (place.created_at + 1, b"") if passed is None else (place.created_at, passed)


def parse(number: int) -> Place | None:
    """The place that a client's number names; None for one that is no time and no cursor: it is ignored."""
    if -SECONDS_MAX <= number <= SECONDS_MAX:
        return Place(number)
    seconds, prefix = abs(number) >> PREFIX_BITS, abs(number) & ((1 << PREFIX_BITS) - 1)
    if number < 0:
        seconds -= _MOVED_BY
        return Place(seconds, prefix) if 0 <= seconds < _PLAIN_MIN else None
    return Place(seconds, prefix) if _PLAIN_MIN <= seconds < _PLAIN_END else None


def _within(second: int, prefix: int) -> int:
    """The cursor for a place within a second, or for all of it where there is none."""
    if not 0 <= second < _PLAIN_END:
        return second
    if second < _PLAIN_MIN:
        return -(((second + _MOVED_BY) << PREFIX_BITS) | prefix)
    return (second << PREFIX_BITS) | prefix


def cut(rows: Sequence[Placed], limit: int) -> tuple[int, int | None]:
    """(how many of the rows make the page, the cursor that goes on behind them or None at the end).

    `rows` are up to `limit` + `PAIR_ROWS` of them in order. The page has `limit` rows except where ids share a prefix.
    """
    if len(rows) <= limit or limit == 0:
        return min(len(rows), limit), None
    end = limit
    while end > 1 and _key(rows[end - 1]) == _key(rows[end]):
        end -= 1
    if end == 1 and _key(rows[0]) == _key(rows[1]):
        # The page would be empty: it takes all of them instead.
        end = next((n for n in range(1, len(rows)) if _key(rows[n]) != _key(rows[0])), len(rows))
        if end == len(rows) < limit + PAIR_ROWS:
            return end, None
    last = rows[end - 1]
    if end < len(rows) and rows[end].created_at != last.created_at:
        return end, last.created_at
    return end, _within(last.created_at, _prefix(last))


PAIR_ROWS: Final = 4
"""How many rows more than the page are read. So many equal prefixes come together within a second only where somebody
tried millions of ids to have it so: then those of his that are too many are passed over, and the list goes on."""


def _prefix(row: Placed) -> int:
    return int(row.event_id[:5], 16)


def _key(row: Placed) -> tuple[int, int]:
    return row.created_at, _prefix(row)
