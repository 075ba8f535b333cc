"""Rolling windows: at most so many times within so many seconds, for one key, exactly.

In: "once more, please". Out: yes or no, and how long until it is yes. Unlike a token bucket, which lets twice its size
through around a burst, there is no stretch of that length with more than the limit in it; the price is one number kept
for every time. So this is for what is rare and dear. Pure: the clock is an argument, nothing waits here.

A limit of 0 is no limit. Memory is bounded: a key whose times are all over is forgotten, and where there are too many
keys the one that was counted longest ago is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

# The original's. Who has more keys than that is not stopped by counting them.
KEYS_MAX: Final = 100_000

Clock = Callable[[], float]
"""Seconds, compared only with each other."""


class KeyedWindows:
    """The times of every key in the last `seconds`, for at most `keys_max` keys."""

    __slots__ = ("_clock", "_times", "keys_max", "limit", "seconds")

    def __init__(self, limit: int, seconds: float, clock: Clock, *, keys_max: int = KEYS_MAX) -> None:
        assert limit >= 0
        assert seconds > 0
        assert keys_max > 0
        self.limit = limit
        self.seconds = seconds
        self.keys_max = keys_max
        self._clock = clock
        # The key that was counted longest ago stands first. Lists: a deque is 760 bytes before it holds anything.
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def take(self, key: str) -> bool:
        """Counts one more, if it may be. What was refused is not counted: asking again makes the wait no longer."""
        if not self.limit:
            return True
        now = self._clock()
        times = self._current(key, now)
        if times is None:
            times = self._add(key, now)
        elif len(times) >= self.limit:
            return False
        times.append(now)
        self._times.move_to_end(key)
        return True

    def seconds_left(self, key: str) -> float:
        """How long until `take` says yes; 0 if it would now."""
        now = self._clock()
        times = self._current(key, now) if self.limit else None
        if times is None or len(times) < self.limit:
            return 0.0
        return times[0] + self.seconds - now

    def _current(self, key: str, now: float) -> list[float] | None:
        """The key's times, without those that are over."""
        times = self._times.get(key)
        if times is not None:
            del times[: bisect_right(times, now - self.seconds)]
        return times

    def _add(self, key: str, now: float) -> list[float]:
        # Two at most for each one that comes, so that nobody pays for a crowd and a crowd is gone all the same.
        for _ in range(min(2, len(self._times))):
            first = next(iter(self._times))
            if self._current(first, now):
                break
            del self._times[first]
        if len(self._times) >= self.keys_max:
            self._times.popitem(last=False)
        times = self._times[key] = []
        return times
