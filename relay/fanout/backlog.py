"""What a connection still has to write: frames in order, the partly written one first, control frames before data.

Flows in: whole frames, each with the channel that it tells about (or none), and the number of bytes that the kernel
took. Flows out: buffers for one `writev`. Owned by one `FrameWriter`; no socket, no task, no clock here.

Rules
-----
1. A frame is whole on the wire: once its first byte is out, the rest of it goes before anything else.
2. Control frames (pong, close) go before data frames, in their own order.
3. Purging drops waiting frames, and never the one that is partly written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

__all__ = ["Backlog", "Frame", "Unwanted", "is_event"]

# A ready-made WebSocket frame and the channel whose members alone may see it (None: not bound to a channel).
Frame = tuple[bytes, str | None]

Unwanted = Callable[[Frame], bool]


def is_event(frame: Frame) -> bool:
    """Whether it delivers an event, in place of answering the client (a Nostr EVENT in one text frame of ours)."""
    data = frame[0]
    head = 2 if data[1] < 126 else 4 if data[1] == 126 else 10  # RFC 6455 §5.2, unmasked
    return data.startswith(b'["EVENT",', head)


class Backlog:
    """The ordered frames of one connection that the kernel has not taken yet. `bytes` counts every unsent byte."""

    __slots__ = ("_frames", "_rest", "_urgent", "bytes")

    def __init__(self) -> None:
        self._rest: memoryview | None = None  # of the frame that is partly written
        self._urgent: deque[bytes] = deque()
        self._frames: deque[Frame] = deque()
        self.bytes = 0

    def __bool__(self) -> bool:
        return self._rest is not None or bool(self._urgent) or bool(self._frames)

    def __len__(self) -> int:
        """Waiting data frames; the partly written one and control frames take no slot."""
        return len(self._frames)

    def append(self, frame: Frame) -> None:
        assert frame[0], "an empty frame could never be consumed"
        self._frames.append(frame)
        self.bytes += len(frame[0])

    def append_urgent(self, frame: bytes, *, replace: bool = False) -> None:
        """Queue a control frame before all data. With `replace`, a waiting one of the same kind gives way to it."""
        assert frame
        if replace and self._urgent and self._urgent[-1][0] == frame[0]:
            self.bytes -= len(self._urgent.pop())
        self._urgent.append(frame)
        self.bytes += len(frame)

    def append_remainder(self, frames: Iterable[Frame], sent: int) -> None:
        """Queue what is left of `frames` after a joined write of which the kernel took `sent` bytes.

        Only while nothing is waiting: the remainder of a frame must be the next thing on the wire."""
        assert not self, "a direct write while frames wait would overtake them"
        for frame in frames:
            size = len(frame[0])
            if sent >= size:
                sent -= size
            elif sent:
                self._rest = memoryview(frame[0])[sent:]
                self.bytes += size - sent
                sent = 0
            else:
                self.append(frame)

    def buffers(self, frames_max: int) -> list[bytes | memoryview]:
        """The next buffers to write, in wire order, with at most `frames_max` data frames."""
        buffers: list[bytes | memoryview] = [] if self._rest is None else [self._rest]
        buffers.extend(self._urgent)
        buffers.extend(frame for frame, _ in islice(self._frames, frames_max))
        return buffers

    def consumed(self, sent: int) -> None:
        """The kernel took `sent` bytes of what `buffers` gave."""
        assert 0 <= sent <= self.bytes
        self.bytes -= sent
        if self._rest is not None:
            if sent < len(self._rest):
                self._rest = self._rest[sent:] if sent else self._rest
                return
            sent -= len(self._rest)
            self._rest = None
        while sent:
            frame = self._urgent.popleft() if self._urgent else self._frames.popleft()[0]
            if sent < len(frame):
                self._rest = memoryview(frame)[sent:]
                return
            sent -= len(frame)

    def purge(self, unwanted: Unwanted) -> int:
        """Drop the waiting frames that are unwanted; how many they were."""
        kept = deque(frame for frame in self._frames if not unwanted(frame))
        dropped = len(self._frames) - len(kept)
        if dropped:
            self.bytes -= sum(len(frame[0]) for frame in self._frames) - sum(len(frame[0]) for frame in kept)
            self._frames = kept
        return dropped

    def forfeit(self) -> None:
        """Drop all that may be dropped: everything but the rest of the frame whose beginning the peer already has."""
        self._urgent.clear()
        self._frames.clear()
        self.bytes = 0 if self._rest is None else len(self._rest)
