"""The cache against a model that does everything slowly, and its promises about loads that run at the same time."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from trio.testing import wait_all_tasks_blocked

from relay.access.cache import MISS, TtlCache

SECONDS = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Tally:
    def __init__(self) -> None:
        self.count = 0.0

    def inc(self, amount: float = 1) -> None:
        self.count += amount


class Store:
    """What is asked on a miss. `gate` holds answers back; each question is answered with what was true when asked."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.error: Exception | None = None
        self.asked = 0
        self.gate = trio.Event()

    async def load(self) -> object:
        self.asked += 1
        answer, error = self.answer, self.error
        await self.gate.wait()
        if error is not None:
            raise error
        return answer


def new_cache(clock: Clock | None = None, capacity: int = 100) -> TtlCache[str, object]:
    return TtlCache(capacity=capacity, seconds=SECONDS, clock=clock or Clock(), hits=Tally(), misses=Tally())


async def load_at_once(cache: TtlCache[str, object], key: str, value: object) -> object:
    async def load() -> object:
        return value

    return await cache.get(key, load)


class CacheMachine(RuleBasedStateMachine):
    """Sequential use: the cache must answer exactly as an ordered list of (key, value, expiry) would."""

    keys = st.sampled_from("abcdef")
    capacity = 3

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.hits, self.misses = Tally(), Tally()
        self.cache: TtlCache[str, object] = TtlCache(
            capacity=self.capacity, seconds=SECONDS, clock=self.clock, hits=self.hits, misses=self.misses
        )
        self.model: OrderedDict[str, tuple[object, float]] = OrderedDict()
        self.expected_hits = self.expected_misses = 0

    def remembered(self, key: str) -> object:
        if key in self.model and self.model[key][1] <= self.clock.now:
            del self.model[key]
        if key not in self.model:
            return MISS
        self.model.move_to_end(key)
        return self.model[key][0]

    @rule(key=keys, value=st.sampled_from([None, False, True, 0, "x"]), keep=st.booleans())
    def get(self, key: str, value: object, keep: bool) -> None:
        async def load() -> object:
            return value

        expected = self.remembered(key)
        got = trio.run(lambda: self.cache.get(key, load, keep=lambda _: keep))
        if expected is not MISS:
            self.expected_hits += 1
            assert got is expected
            return
        self.expected_misses += 1
        assert got is value
        if keep:
            self.model[key] = (value, self.clock.now + SECONDS)
            if len(self.model) > self.capacity:
                self.model.popitem(last=False)

    @rule(key=keys)
    def get_nowait(self, key: str) -> None:
        expected = self.remembered(key)
        self.expected_hits += expected is not MISS
        assert self.cache.get_nowait(key) is expected

    @rule(key=keys)
    def invalidate(self, key: str) -> None:
        self.model.pop(key, None)
        self.cache.invalidate(key)

    @rule()
    def clear(self) -> None:
        self.model.clear()
        self.cache.clear()

    @rule(seconds=st.sampled_from([0.5, 4.0, SECONDS, 25.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def counts(self) -> None:
        statistics = self.cache.statistics()
        assert statistics.entries == len(self.model) <= self.capacity
        assert statistics.flights == 0
        assert self.hits.count == self.expected_hits
        assert self.misses.count == self.expected_misses == statistics.loads


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


async def test_many_misses_are_one_load() -> None:
    cache, store, got = new_cache(), Store("answer"), []

    async def ask() -> None:
        got.append(await cache.get("k", store.load))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert cache.statistics().flights == 1
        store.gate.set()
    assert got == ["answer"] * 20
    assert store.asked == 1
    assert cache.get_nowait("k") == "answer"


async def test_different_keys_do_not_wait_for_each_other() -> None:
    cache, slow = new_cache(), Store("slow")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.get, "slow", slow.load)
        await wait_all_tasks_blocked()
        assert await load_at_once(cache, "quick", 1) == 1
        slow.gate.set()


@pytest.mark.parametrize("everything", [False, True])
async def test_an_invalidation_detaches_the_load_under_way(everything: bool) -> None:
    cache, before, after, early = new_cache(), Store("member"), Store("removed"), []

    async def ask() -> None:
        early.append(await cache.get("k", before.load))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        cache.clear() if everything else cache.invalidate("k")
        after.gate.set()
        assert await cache.get("k", after.load) == "removed"
        before.gate.set()
    assert early == ["member", "member"]
    assert (before.asked, after.asked) == (1, 1)
    # The old answer arrived last and was kept by nobody.
    assert cache.get_nowait("k") == "removed"


async def test_a_detached_load_leaves_the_next_one_alone() -> None:
    """The old load lands while the new one is still under way: it must neither store nor unregister."""
    cache, before, after = new_cache(), Store("old"), Store("new")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.get, "k", before.load)
        await wait_all_tasks_blocked()
        cache.invalidate("k")
        nursery.start_soon(cache.get, "k", after.load)
        await wait_all_tasks_blocked()
        before.gate.set()
        await wait_all_tasks_blocked()
        assert cache.get_nowait("k") is MISS
        assert cache.statistics().flights == 1
        after.gate.set()
    assert cache.get_nowait("k") == "new"


async def test_time_to_live_begins_with_the_question() -> None:
    clock = Clock()
    cache, store = new_cache(clock), Store("v")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.get, "k", store.load)
        await wait_all_tasks_blocked()
        clock.now += 4
        store.gate.set()
    clock.now += 5.999
    assert cache.get_nowait("k") == "v"
    clock.now += 0.001
    assert cache.get_nowait("k") is MISS
    assert cache.statistics().entries == 0


async def test_at_capacity_the_least_recently_used_goes() -> None:
    cache = new_cache(capacity=2)
    await load_at_once(cache, "a", 1)
    await load_at_once(cache, "b", 2)
    assert cache.get_nowait("a") == 1
    await load_at_once(cache, "c", 3)
    assert cache.get_nowait("b") is MISS
    assert (cache.get_nowait("a"), cache.get_nowait("c")) == (1, 3)
    assert cache.statistics().evictions == 1


@pytest.mark.parametrize("answer", [False, None, frozenset()])
async def test_negative_answers_are_kept(answer: object) -> None:
    cache, store = new_cache(), Store(answer)
    store.gate.set()
    assert await cache.get("k", store.load) == answer
    assert await cache.get("k", store.load) == answer
    assert store.asked == 1


async def test_an_error_goes_to_all_who_waited_and_is_not_kept() -> None:
    cache, store, errors = new_cache(), Store("later"), []
    store.error = OSError("no database")

    async def ask() -> None:
        try:
            await cache.get("k", store.load)
        except OSError as error:
            errors.append(str(error))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        store.gate.set()
    assert errors == ["no database"] * 5
    assert store.asked == 1
    store.error = None
    assert await cache.get("k", store.load) == "later"


async def test_a_cancelled_loader_takes_nobody_along() -> None:
    cache, store, got = new_cache(), Store("v"), []
    scope = trio.CancelScope()

    async def first() -> None:
        with scope:
            await cache.get("k", store.load)

    async def ask() -> None:
        got.append(await cache.get("k", store.load))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert store.asked == 2  # one of the three asks now, once
        store.gate.set()
    assert got == ["v"] * 3
    assert cache.statistics().flights == 0


async def test_a_cancelled_waiter_changes_nothing() -> None:
    cache, store, got = new_cache(), Store("v"), []

    async def ask() -> None:
        got.append(await cache.get("k", store.load))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await cache.get("k", store.load)
        store.gate.set()
    assert (got, store.asked) == (["v"], 1)


async def test_a_hit_is_a_cancel_point() -> None:
    cache = new_cache()
    await load_at_once(cache, "k", 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await load_at_once(cache, "k", 2)
    assert scope.cancelled_caught
