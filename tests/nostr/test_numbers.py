"""`relay.nostr.numbers`: what counts as a number in a tag."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.nostr.numbers import parse_decimal

UINT32_MAX = 2**32 - 1


@given(st.integers(0, UINT32_MAX))
def test_every_number_up_to_the_maximum_is_read(number):
    assert parse_decimal(str(number), UINT32_MAX) == number


@pytest.mark.parametrize(
    ("text", "maximum", "expected"),
    [("0", 9, 0), ("007", 999, 7), (str(UINT32_MAX), UINT32_MAX, UINT32_MAX)],
)
def test_bounds_belong_to_it(text, maximum, expected):
    assert parse_decimal(text, maximum) == expected


NOT_DIGITS = ["", " ", "-1", "+1", " 1", "1 ", "1_0", "1.0", "1e3", "0x1", "\u0661", "\u00b2"]
TOO_LONG = [str(UINT32_MAX + 1), "00000000001", "9" * 9000]


@pytest.mark.parametrize("text", [*NOT_DIGITS, *TOO_LONG])
def test_nothing_else_is_a_number(text):
    assert parse_decimal(text, UINT32_MAX) is None


def test_as_many_digits_as_the_maximum_but_more():
    assert parse_decimal("6", 5) is None
