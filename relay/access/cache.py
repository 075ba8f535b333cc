"""A map from keys to answers of the store that forgets: after a time, when full, and when told to.

Rules:
1. `get` returns what is in memory, or asks the store once however many tasks want the same key (single flight).
2. An answer is as old as its question: its time to live begins when the load began.
3. An invalidation removes the answer and detaches a load under way: whoever asks later starts a load of its own, and
   the detached load's answer goes to those who already waited for it and is kept by nobody. (Without this, a load that
   read "member" before a removal and stored it after would let the removed one in until the time is up.)
4. Negative answers are answers. Errors are not: they go to everybody who waited, and the next one asks again.
5. A task that is cancelled while it loads takes nobody along: one of those who wait loads instead.

Owned by one event loop and never locked: between two checkpoints nothing else runs. The clock is an argument.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, Literal, Protocol, TypeVar

import trio

K = TypeVar("K")
V = TypeVar("V")


class Miss(Enum):
    """Its own type, because None and False are answers."""

    MISS = 0


MISS: Final = Miss.MISS


class CounterLike(Protocol):
    """What the cache needs of a Prometheus counter."""

    def inc(self, amount: float = 1) -> None: ...


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """`entries` includes those whose time is up and that nobody has asked for since."""

    entries: int
    flights: int
    loads: int
    evictions: int
    generation: int


class _Flight(Generic[V]):
    """One load under way. Neither value nor error after `landed` means that its task was cancelled."""

    __slots__ = ("error", "landed", "value")

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.value: V | Literal[Miss.MISS] = MISS
        self.error: Exception | None = None


class TtlCache(Generic[K, V]):
    """See the rules above. `seconds` is the life of an answer, `capacity` the most answers held."""

    def __init__(
        self,
        *,
        capacity: int,
        seconds: float,
        hits: CounterLike,
        misses: CounterLike,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert capacity > 0
        self._capacity = capacity
        self._seconds = seconds
        self._clock = clock
        self._hits = hits
        self._misses = misses
        # Least recently used first; value and the time at which it is no longer one.
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()
        self._flights: dict[K, _Flight[V]] = {}
        self._loads = 0
        self._evictions = 0
        self._generation = 0

    @property
    def generation(self) -> int:
        """How many invalidations there were."""
        return self._generation

    def get_nowait(self, key: K) -> V | Literal[Miss.MISS]:
        """The answer in memory or MISS. Counts the hit only: a miss is counted by the `get` that follows it."""
        entry = self._entries.get(key)
        if entry is None:
            return MISS
        value, expires = entry
        if self._clock() >= expires:
            del self._entries[key]
            return MISS
        self._entries.move_to_end(key)
        self._hits.inc()
        return value

    async def get(self, key: K, load: Callable[[], Awaitable[V]], *, keep: Callable[[V], bool] | None = None) -> V:
        """The answer in memory, or that of `load`, kept if `keep` (default: always) says so of it.

        Raises: whatever `load` raises, in every task that waited for that load. One exception object is then raised in
        several tasks, so nobody may change it.

        Cancellation: of the task that loads: another one that waits loads anew. Of one that waits: nothing else.
        """
        value = self.get_nowait(key)
        if value is not MISS:
            await trio.lowlevel.checkpoint_if_cancelled()
            return value
        self._misses.inc()
        while True:
            flight = self._flights.get(key)
            if flight is None:
                return await self._fly(key, load, keep)
            await flight.landed.wait()
            if flight.error is not None:
                raise flight.error
            if flight.value is not MISS:
                return flight.value

    async def _fly(self, key: K, load: Callable[[], Awaitable[V]], keep: Callable[[V], bool] | None) -> V:
        flight = self._flights[key] = _Flight()
        self._loads += 1
        asked = self._clock()
        try:
            flight.value = value = await load()
        except Exception as error:
            flight.error = error
            raise
        finally:
            flight.landed.set()
            attached = self._flights.get(key) is flight
            if attached:
                del self._flights[key]
        if attached and (keep is None or keep(value)):
            self._keep(key, value, asked + self._seconds)
        return value

    def _keep(self, key: K, value: V, expires: float) -> None:
        self._entries[key] = (value, expires)
        self._entries.move_to_end(key)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
            self._evictions += 1

    def invalidate(self, key: K) -> None:
        """Forgets the answer and detaches the load under way. Synchronous: in force when it returns."""
        self._generation += 1
        self._entries.pop(key, None)
        self._flights.pop(key, None)

    def clear(self) -> None:
        """`invalidate` for every key."""
        self._generation += 1
        self._entries.clear()
        self._flights.clear()

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(len(self._entries), len(self._flights), self._loads, self._evictions, self._generation)
