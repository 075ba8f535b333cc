"""Remembers which signed requests (NIP-98) were used, so that nobody who saw one go by can send it again.

In: the id of an event that was verified just now. Out: whether this is its first use. Pure: no I/O, and the clock is an
argument. The memory is that of one process, and begins empty.

It is bounded, and an id that may still be good is never forgotten to make room: a cache that forgets under load lets
through just what it is there to stop. When it is full, new ones are refused until the oldest have run out.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

# More than one process can verify and answer in two minutes, so that it is full only where everything is too late.
CAPACITY: Final = 200_000


class ReplayCache:
    """Ids that were used in the last `seconds`, at most `capacity` of them (200 bytes each)."""

    __slots__ = ("_clock", "_used", "capacity", "seconds")

    def __init__(self, seconds: float, capacity: int = CAPACITY, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            seconds: At least as long as a copy of an event can be good after its first use.
            clock: The one by which events are verified: where the clock of the machine is put back, old events are good
                again, and by the same clock they are still remembered.
        """
        assert seconds > 0
        assert capacity > 0
        self.seconds = seconds
        self.capacity = capacity
        self._clock = clock
        # The one that was used longest ago stands first.
        self._used: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used)

    def first_use(self, event_id: str, now: float | None = None) -> bool:
        """Whether this id (64 hex digits) may be used; then it is used up. `now`: the time at which the event was
        verified, if it is at hand.

        False also where the cache is full of ids that may still be good.
        """
        now = self._clock() if now is None else now
        self._forget(now - self.seconds)
        key = bytes.fromhex(event_id)
        if key in self._used or len(self._used) >= self.capacity:
            return False
        self._used[key] = now
        return True

    def _forget(self, used_before: float) -> None:
        """All that have run out. Each is removed once, after it was added once: together that costs nothing more."""
        while self._used:
            key = next(iter(self._used))
            if self._used[key] >= used_before:
                return
            del self._used[key]
