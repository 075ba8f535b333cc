"""When an event expires."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.nostr.event import Event
from relay.nostr.nip40 import expires_at


def event(*tags: list[str]) -> Event:
    return Event("00" * 32, "11" * 32, 1, 1, list(tags), "", "22" * 64)


@pytest.mark.parametrize(
    ("tags", "seconds"),
    [
        ([], None),
        ([["expiration"]], None),
        ([["expiration", "soon"]], None),
        ([["expiration", "-5"]], None),
        ([["expiration", "1.5"]], None),
        ([["expiration", "٣"]], None),
        ([["expiration", "9" * 19]], None),
        ([["expiration", "9" * 18]], int("9" * 18)),
        ([["expiration", "0"]], 0),
        ([["Expiration", "5"]], None),
        ([["expiration", "x"], ["expiration", "7"], ["expiration", "3"]], 7),
    ],
)
def test_the_first_number_counts(tags: list[list[str]], seconds: int | None) -> None:
    assert expires_at(event(*tags)) == seconds


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    found = expires_at(event(["expiration", text]))
    assert found is None or (0 <= found < 10**18 and found == int(text))
