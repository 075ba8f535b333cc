"""Used requests: each once, remembered long enough, forgotten in the end, and never to make room."""

from __future__ import annotations

import secrets
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from relay.access.replays import ReplayCache

SECONDS = 120.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def new_id() -> str:
    return secrets.token_hex(32)


def test_each_is_used_once() -> None:
    cache = ReplayCache(SECONDS, 10, Clock())
    first, second = new_id(), new_id()
    assert cache.first_use(first)
    assert not cache.first_use(first)
    assert cache.first_use(second)
    assert not cache.first_use(first.upper())
    assert len(cache) == 2


def test_it_is_remembered_to_the_last_moment() -> None:
    clock = Clock()
    cache = ReplayCache(SECONDS, 10, clock)
    used = new_id()
    assert cache.first_use(used)
    clock.now += SECONDS
    assert not cache.first_use(used)
    clock.now += 0.001
    assert cache.first_use(used)


def test_the_time_of_the_verification_counts_where_it_is_given() -> None:
    cache = ReplayCache(SECONDS, 10, Clock())
    used = new_id()
    assert cache.first_use(used, 1000.0)
    assert not cache.first_use(used, 1000.0 + SECONDS)
    assert cache.first_use(used, 1001.0 + SECONDS)


def test_a_refused_replay_does_not_lengthen_the_memory() -> None:
    """Else whoever repeats a request could keep its place taken for ever."""
    clock = Clock()
    cache = ReplayCache(SECONDS, 10, clock)
    used = new_id()
    cache.first_use(used)
    clock.now += SECONDS - 1
    assert not cache.first_use(used)
    clock.now += 2
    assert cache.first_use(used)


def test_a_full_one_refuses_and_forgets_nothing() -> None:
    clock = Clock()
    cache = ReplayCache(SECONDS, 3, clock)
    early = [new_id() for _ in range(2)]
    assert all(map(cache.first_use, early))
    clock.now += 60
    late = new_id()
    assert cache.first_use(late)
    refused = new_id()
    assert not cache.first_use(refused)
    assert not any(map(cache.first_use, [*early, late]))
    clock.now += 61
    # What was refused was not used up, and the early ones have run out.
    assert cache.first_use(refused)
    assert len(cache) == 2
    assert not cache.first_use(late)


def test_a_clock_that_is_put_back_brings_nothing_back() -> None:
    clock = Clock()
    cache = ReplayCache(SECONDS, 10, clock)
    used = new_id()
    assert cache.first_use(used)
    clock.now -= 3600
    assert not cache.first_use(used)
    other = new_id()
    assert cache.first_use(other)
    clock.now += 3600 + SECONDS - 1
    assert not cache.first_use(used)
    clock.now += 2
    assert cache.first_use(used)
    assert cache.first_use(other)
    assert len(cache) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=60), st.integers(1, 4))
def test_it_never_lets_the_same_one_through_twice_in_time(uses: list[tuple[int, int]], capacity: int) -> None:
    clock = Clock()
    cache = ReplayCache(SECONDS, capacity, clock)
    ids = [f"{number:064x}" for number in range(6)]
    let_through: dict[int, float] = {}
    for number, later in uses:
        clock.now += later
        live = [when for when in let_through.values() if clock.now - when <= SECONDS]
        expected = number not in let_through or clock.now - let_through[number] > SECONDS
        expected = expected and len(live) < capacity
        assert cache.first_use(ids[number]) is expected
        if expected:
            let_through[number] = clock.now
        assert len(cache) <= capacity


def test_what_one_of_them_costs() -> None:
    cache = ReplayCache(SECONDS, 20_000, Clock())
    ids = [new_id() for _ in range(20_000)]
    tracemalloc.start()
    try:
        for each in ids:
            cache.first_use(each)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / len(ids) < 300
