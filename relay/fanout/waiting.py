"""Puts that wait for room in a connection's queue, first come first served.

Flows in: frames that did not find room. Flows out: the same frames, when whoever made room admits them. That task does
it, and not the waiting one when it runs again: so nothing can overtake them, and a purge reaches them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import trio

from relay.fanout.backlog import Frame, Unwanted

__all__ = ["WaitingPuts"]


class _Put:
    __slots__ = ("admitted", "frames", "woken")

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = list(frames)
        self.admitted = False
        self.woken = trio.Event()


class WaitingPuts:
    """The puts of one connection that wait, in order of arrival."""

    __slots__ = ("_puts",)

    def __init__(self) -> None:
        self._puts: deque[_Put] = deque()

    def __len__(self) -> int:
        return len(self._puts)

    async def wait(self, frames: Sequence[Frame]) -> bool:
        """True when the frames are admitted, False when nothing is any more. Cancellation: they are withdrawn."""
        put = _Put(frames)
        self._puts.append(put)
        try:
            await put.woken.wait()
        finally:
            if not put.woken.is_set():
                self._puts.remove(put)
        return put.admitted

    def admit(self, has_room: Callable[[], bool], append: Callable[[Frame], None]) -> None:
        """Hand over the frames of one put after the other while there is room."""
        while self._puts and has_room():
            put = self._puts.popleft()
            for frame in put.frames:
                append(frame)
            put.admitted = True
            put.woken.set()

    def fail(self) -> None:
        while self._puts:
            self._puts.popleft().woken.set()

    def purge(self, unwanted: Unwanted) -> int:
        """Drop the frames that are unwanted; how many they were. A put left without any is still admitted in turn."""
        dropped = 0
        for put in self._puts:
            kept = [frame for frame in put.frames if not unwanted(frame)]
            dropped += len(put.frames) - len(kept)
            put.frames = kept
        return dropped
