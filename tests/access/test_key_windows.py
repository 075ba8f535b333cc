"""Rolling windows, against a list of all times and by hand; time is a number here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access.key_windows import KeyedWindows


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_is_exact_to_the_moment() -> None:
    clock = Clock()
    windows = KeyedWindows(2, 3600, clock)
    assert windows.take("a")
    clock.now += 1000
    assert windows.take("a")
    assert not windows.take("a")
    assert windows.seconds_left("a") == 2600
    clock.now += 2599.5
    assert not windows.take("a")
    assert windows.seconds_left("a") == 0.5
    clock.now += 0.5
    assert windows.seconds_left("a") == 0
    assert windows.take("a")
    # Not two at once: the second one began its hour later.
    assert not windows.take("a")
    assert windows.seconds_left("a") == 1000


def test_keys_do_not_know_of_each_other() -> None:
    windows = KeyedWindows(1, 10, Clock())
    assert windows.take("a")
    assert windows.take("b")
    assert not windows.take("a")
    assert windows.seconds_left("c") == 0


def test_no_limit() -> None:
    windows = KeyedWindows(0, 10, Clock())
    assert all(windows.take("a") for _ in range(100))
    assert windows.seconds_left("a") == 0
    assert len(windows) == 0


def test_idle_keys_are_forgotten_as_others_come() -> None:
    clock = Clock()
    windows = KeyedWindows(3, 10, clock)
    for number in range(100):
        windows.take(f"old{number}")
    clock.now += 5
    windows.take("old0")  # counted later than all the others
    clock.now += 5
    for number in range(60):
        windows.take(f"new{number}")
    assert len(windows) == 61
    assert windows.seconds_left("old0") == 0
    windows.take("old0")
    windows.take("old0")
    assert windows.seconds_left("old0") == 5


def test_of_too_many_keys_the_one_counted_longest_ago_is_forgotten() -> None:
    windows = KeyedWindows(2, 10, Clock(), keys_max=3)
    for key in ("a", "b", "c", "a"):
        assert windows.take(key)
    assert windows.take("d")
    assert len(windows) == 3
    assert not windows.take("a")
    assert [windows.take("b") for _ in range(3)] == [True, True, False]


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), max_size=60),
)
def test_no_stretch_of_that_length_has_more(limit: int, steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    windows = KeyedWindows(limit, 50, clock)
    taken: dict[str, list[float]] = {"a": [], "b": []}
    for key, pause in steps:
        clock.now += pause
        recent = [time for time in taken[key] if time > clock.now - 50]
        wait = recent[-limit] + 50 - clock.now if len(recent) >= limit else 0
        assert windows.seconds_left(key) == pytest.approx(wait)
        assert windows.take(key) == (wait == 0)
        if wait == 0:
            taken[key].append(clock.now)
