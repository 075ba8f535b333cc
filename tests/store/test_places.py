"""Cursors that are numbers: pages put together are the list, in both directions, however many events share a second."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.store import places
from relay.store.places import PAIR_ROWS, PREFIX_BITS, SECONDS_MAX, Bound, Place

JSON_MAX = 2**53 - 1
NOW = 1_790_000_000
FIRST = 2**30
"""The first second whose cursors are the plain ones."""
MOVED_BY = (SECONDS_MAX >> PREFIX_BITS) + 1
"""What is added to earlier ones."""


@dataclass(frozen=True)
class Row:
    created_at: int
    event_id: str


def row(second: int, prefix: int, rest: int = 0) -> Row:
    return Row(second, f"{(prefix << (256 - PREFIX_BITS)) | rest:064x}")


# Few seconds, few prefixes: pairs are the rule. No prefix comes more often than a page and its extra rows can hold.
@st.composite
def timelines(draw: st.DrawFn) -> list[Row]:
    start = draw(st.sampled_from([NOW, 0, FIRST - 2, 2**33 - 4]))
    names = st.tuples(
        st.integers(start, start + 3), st.sampled_from([0, 1, 0x7FFFF, 0xFFFFE, 0xFFFFF]), st.integers(0, 2**236 - 1)
    )
    drawn = draw(st.lists(names, unique=True, max_size=60))
    often: Counter[tuple[int, int]] = Counter()
    rows = []
    for second, prefix, rest in drawn:
        often[second, prefix] += 1
        if often[second, prefix] <= 1 + PAIR_ROWS:
            rows.append(row(second, prefix, rest))
    return rows


def newest_first(rows: list[Row], bound: Bound, limit: int) -> list[Row]:
    """What the statement does."""
    second, passed = bound
    inside = [
        each
        for each in rows
        if each.created_at <= second and (each.created_at < second or bytes.fromhex(each.event_id) > passed)
    ]
    return sorted(inside, key=lambda each: (-each.created_at, each.event_id))[:limit]


def oldest_first(rows: list[Row], bound: Bound, limit: int) -> list[Row]:
    second, passed = bound
    inside = [
        each
        for each in rows
        if each.created_at >= second and (each.created_at > second or bytes.fromhex(each.event_id) > passed)
    ]
    return sorted(inside, key=lambda each: (each.created_at, each.event_id))[:limit]


def walk(rows: list[Row], limits: list[int], *, descending: bool) -> list[Row]:
    seen: list[Row] = []
    cursor: int | None = None
    for number in range(len(rows) + 1):
        limit = limits[number % len(limits)]
        place = None if cursor is None else places.parse(cursor)
        assert (place is None) == (cursor is None)
        if descending:
            found = newest_first(rows, places.older(place), limit + PAIR_ROWS)
        else:
            found = oldest_first(rows, places.newer(place), limit + PAIR_ROWS)
        end, cursor = places.cut(found, limit)
        seen += found[:end]
        if cursor is None:
            return seen
        assert end >= 1
        assert abs(cursor) <= JSON_MAX
    raise AssertionError("the pages do not end")


@given(timelines(), st.lists(st.integers(1, 7), min_size=1, max_size=5), st.booleans())
def test_the_pages_together_are_the_list(rows: list[Row], limits: list[int], descending: bool) -> None:
    expected = (
        newest_first(rows, places.older(None), 1000) if descending else oldest_first(rows, places.newer(None), 1000)
    )
    assert walk(rows, limits, descending=descending) == expected


@given(
    st.lists(st.tuples(st.integers(NOW, NOW + 2), st.integers(0, 2**PREFIX_BITS - 1)), unique=True, max_size=40),
    st.integers(1, 9),
)
def test_a_page_has_exactly_as_many_rows_as_asked_for(names: list[tuple[int, int]], limit: int) -> None:
    """Where no two prefixes of a second are equal; and there is no cursor exactly where there is no more."""
    rows = newest_first([row(*name) for name in names], places.older(None), limit + PAIR_ROWS)
    end, cursor = places.cut(rows, limit)
    assert end == min(limit, len(names))
    assert (cursor is None) == (len(names) <= limit)


def test_the_cursor_is_the_second_where_the_page_ends_with_it() -> None:
    rows = [row(NOW + 1, 5), row(NOW, 3), row(NOW, 9)]
    assert places.cut(rows, 1) == (1, NOW + 1)
    assert places.cut(rows, 2) == (2, (NOW << PREFIX_BITS) | 3)
    assert places.cut(rows, 3) == (3, None)
    assert places.cut(rows, 0) == (0, None)
    assert places.cut([], 3) == (0, None)


def test_equal_prefixes_are_not_parted() -> None:
    pair = [row(NOW, 7, 1), row(NOW, 7, 2)]
    assert places.cut([row(NOW, 1), *pair], 2) == (1, (NOW << PREFIX_BITS) | 1)
    assert places.cut([*pair, row(NOW, 8)], 1) == (2, (NOW << PREFIX_BITS) | 7)
    assert places.cut(pair, 1) == (2, None)


def test_a_second_that_no_cursor_can_part_is_passed_over_whole() -> None:
    for second in (-1, 2**33):
        assert places.cut([row(second, 1), row(second, 2)], 1) == (1, second)


def test_prefixes_that_somebody_made_equal_do_not_end_the_list() -> None:
    """More of them than were read: the cursor goes on behind them, and what was there before is still reached."""
    made = [row(NOW, 7, number) for number in range(40)]
    old = [row(NOW - 1, 1), row(NOW - 2, 2)]
    seen = walk([*made, *old], [1], descending=True)
    assert seen[-2:] == old


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (0, Place(0)),
        (-1, Place(-1)),
        (NOW, Place(NOW)),
        (SECONDS_MAX, Place(SECONDS_MAX)),
        (-SECONDS_MAX, Place(-SECONDS_MAX)),
        ((NOW << 20) | 0xABCDE, Place(NOW, 0xABCDE)),
        (SECONDS_MAX + 1, None),
        (-SECONDS_MAX - 1, None),
        (JSON_MAX, Place((1 << 33) - 1, 0xFFFFF)),
        (JSON_MAX + 1, None),
        (99_999_999_999_999, None),  # what people send who mean "no end"
        (10**15, None),
        ((FIRST << 20) - 1, None),
        (FIRST << 20, Place(FIRST, 0)),
        (-((MOVED_BY + 5) << 20 | 7), Place(5, 7)),
        (-(MOVED_BY << 20), Place(0, 0)),
        (-((MOVED_BY + FIRST) << 20) + 1, Place(FIRST - 1, 0xFFFFF)),
        (-((MOVED_BY + FIRST) << 20), None),
        (2**63 - 1, None),
        (-(2**63), None),
    ],
)
def test_what_a_number_names(number: int, place: Place | None) -> None:
    assert places.parse(number) == place


def test_bounds() -> None:
    passed = bytes.fromhex("abcde" + "f" * 59)
    assert places.older(None) == (SECONDS_MAX, b"")
    assert places.newer(None) == (-SECONDS_MAX, b"")
    assert places.older(Place(NOW)) == (NOW - 1, b"")
    assert places.newer(Place(NOW)) == (NOW + 1, b"")
    assert places.older(Place(NOW, 0xABCDE)) == places.newer(Place(NOW, 0xABCDE)) == (NOW, passed)
