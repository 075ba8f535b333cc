"""Remembers, for a bounded number of keys, when something was last done, so that it is not done again at once.

Used for writes that only keep a row fresh (`last_used_at` of a token, the row of a user). Forgetting a key costs one
more such write and nothing else, so the oldest keys are simply dropped when there are too many.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable


class Debounce:
    """`due(key)` asks, `done(key)` remembers; between the two, whoever asks is told yes."""

    def __init__(self, *, seconds: float, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        assert capacity > 0
        self._seconds = seconds
        self._capacity = capacity
        self._clock = clock
        self._done: OrderedDict[Hashable, float] = OrderedDict()

    def due(self, key: Hashable) -> bool:
        done = self._done.get(key)
        return done is None or self._clock() - done >= self._seconds

    def done(self, key: Hashable) -> None:
        self._done[key] = self._clock()
        self._done.move_to_end(key)
        if len(self._done) > self._capacity:
            self._done.popitem(last=False)

    def __len__(self) -> int:
        return len(self._done)
