"""Token buckets by a clock of the test's own: what passes, what does not, and what is remembered of whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access.rate_limit import KeyedBuckets, TokenBucket, address_key


class Clock:
    """Seconds that pass when the test says so; exact in binary, so that the edges can be tested."""

    def __init__(self) -> None:
        self.now = 4096.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(bucket: TokenBucket, tries: int) -> int:
    return sum(bucket.take() for _ in range(tries))


# -- one bucket --------------------------------------------------------------------------------------------------------


def test_a_minutes_worth_passes_at_once_and_no_more(clock: Clock) -> None:
    assert taken(TokenBucket(7, clock), 20) == 7


def test_it_refills_without_steps(clock: Clock) -> None:
    bucket = TokenBucket(60, clock)
    assert taken(bucket, 100) == 60
    clock.now += 0.5
    assert not bucket.take()
    assert bucket.seconds_left() == 0.5
    clock.now += 0.5
    assert bucket.seconds_left() == 0.0
    assert taken(bucket, 5) == 1
    clock.now += 10.25
    assert taken(bucket, 20) == 10
    assert bucket.seconds_left() == 0.75


def test_it_never_holds_more_than_a_minutes_worth(clock: Clock) -> None:
    bucket = TokenBucket(60, clock)
    clock.now += 59
    assert taken(bucket, 100) == 60
    clock.now += 3600
    assert taken(bucket, 100) == 60


def test_a_refusal_costs_nothing(clock: Clock) -> None:
    bucket = TokenBucket(60, clock)
    taken(bucket, 60)
    for _ in range(8):
        clock.now += 0.125
        assert bucket.take() == (clock.now == 4097.0)


def test_zero_is_no_limit(clock: Clock) -> None:
    assert taken(TokenBucket(0, clock), 1000) == 1000
    assert TokenBucket(0, clock).seconds_left() == 0.0


@given(st.integers(1, 300), st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 50)), max_size=60))
def test_no_window_takes_more_than_its_share(per_minute: int, steps: list[tuple[int, int]]) -> None:
    """In any stretch of time at most a full bucket and what flowed in meanwhile; and whoever keeps to that passes."""
    clock = Clock()
    bucket = TokenBucket(per_minute, clock)
    times: list[float] = []
    for milliseconds, tries in steps:
        clock.now += milliseconds / 1000
        times += [clock.now] * taken(bucket, tries)
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= per_minute + (times[last] - start) * per_minute / 60 + 1e-6


# -- many --------------------------------------------------------------------------------------------------------------


def test_keys_do_not_share(clock: Clock) -> None:
    buckets = KeyedBuckets(2, clock)
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    assert buckets.take("b")
    assert buckets.seconds_left("a") == 30.0
    assert buckets.seconds_left("b") == 0.0
    assert buckets.seconds_left("nobody") == 0.0


def test_without_a_limit_nothing_is_remembered(clock: Clock) -> None:
    buckets = KeyedBuckets(0, clock)
    assert all(buckets.take(str(number)) for number in range(100))
    assert len(buckets) == 0


def test_full_buckets_are_forgotten(clock: Clock) -> None:
    buckets = KeyedBuckets(60, clock)
    for number in range(10):
        buckets.take(str(number))
    clock.now += 59.5
    buckets.take("0")  # asked for again: it is not among the oldest any more
    clock.now += 0.5
    for number in range(5):
        buckets.take(f"new {number}")
    assert len(buckets) == 6
    assert buckets.seconds_left("0") == 0.0


def test_what_is_forgotten_was_full(clock: Clock) -> None:
    """A key whose bucket was dropped has no more tokens than if it had been kept."""
    kept, dropped = TokenBucket(60, clock), KeyedBuckets(60, clock)
    assert taken(kept, 100) == sum(dropped.take("a") for _ in range(100))
    clock.now += 60
    dropped.take("b")
    assert len(dropped) == 1
    assert taken(kept, 100) == sum(dropped.take("a") for _ in range(100))


def test_of_too_many_the_one_asked_for_longest_ago_goes(clock: Clock) -> None:
    buckets = KeyedBuckets(1, clock, keys_max=3)
    for key in ("a", "b", "c", "a", "d"):
        buckets.take(key)
    assert len(buckets) == 3
    assert not buckets.take("a")
    assert not buckets.take("c")
    assert buckets.take("b")


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.8.7", "::1", "unix"])
def test_this_machine_is_not_counted(peer: str) -> None:
    assert address_key(peer) is None


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::99", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::99", "2001:db8:1:3::/64"),
    ],
)
def test_an_ipv6_network_counts_as_one(peer: str, key: str) -> None:
    assert address_key(peer) == key
