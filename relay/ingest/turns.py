"""Whose turn it is to change a channel, in this process.

The row lock of a channel orders the transactions that change it, but says nothing of what comes after COMMIT: the
worker whose answer is late would tell the caches and the fan-out last although it committed first, and a key that was
added and removed would stay among those who receive. So a turn is taken before the row lock, and kept until the change
has been handed to the fan-out.

A worker has at most one turn, and takes it before any lock that others need while they have theirs.
"""

from __future__ import annotations

import trio


class Turns:
    """One line of waiting workers for each channel that is being changed."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[trio.Lock, list[Turn]]] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def turn(self) -> Turn:
        return Turn(self._lines)


class Turn:
    """One worker's place. Taken and released by the same task; harmless to release where none was taken."""

    def __init__(self, lines: dict[str, tuple[trio.Lock, list[Turn]]]) -> None:
        self._lines = lines
        self._channel_id: str | None = None

    async def take(self, channel_id: str) -> None:
        """Waits for everybody who came before. Taking the same one again, as a transaction that is tried again does,
        is nothing. Cancellation: not taken."""
        if self._channel_id is not None:
            assert self._channel_id == channel_id, "a worker changes one channel at a time"
            return
        lock, line = self._lines.setdefault(channel_id, (trio.Lock(), []))
        line.append(self)
        try:
            await lock.acquire()
        except BaseException:
            self._leave(channel_id)
            raise
        self._channel_id = channel_id

    def release(self) -> None:
        if self._channel_id is not None:
            self._lines[self._channel_id][0].release()
            self._leave(self._channel_id)
            self._channel_id = None

    def _leave(self, channel_id: str) -> None:
        line = self._lines[channel_id][1]
        line.remove(self)
        if not line:
            del self._lines[channel_id]
