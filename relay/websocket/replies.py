"""The OKs of one connection, in the order in which its EVENTs came.

In: a slot for every EVENT when it is read, and its outcome when the commit task has it. Out: frames, as soon as all the
slots before have theirs, those of one commit batch in one write. The session's task opens slots and waits; the commit
task resolves them and never waits. No I/O here: `send` is the connection's non-blocking way out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from relay.ingest.types import Outcome
from relay.nostr.messages import ok, ws_frame


class Slot:
    """The place of one OK; the ticket that ingest resolves."""

    __slots__ = ("event_id", "frame", "owner")

    def __init__(self, owner: Replies, event_id: str) -> None:
        self.owner = owner
        self.event_id = event_id
        self.frame: bytes | None = None

    def resolve(self, outcome: Outcome) -> None:
        """Remembers the answer; it leaves at the owner's next `flush_replies`."""
        assert self.frame is None, "an EVENT has one outcome"
        self.frame = ws_frame(ok(self.event_id, outcome.accepted, outcome.message))


class Replies:
    """At most `pending_max` slots are open at a time: who sends faster than we commit is not read any further."""

    __slots__ = ("_progress", "_send", "_slots", "pending_max")

    def __init__(self, send: Callable[[bytes], object], pending_max: int) -> None:
        assert pending_max > 0
        self._send = send
        self.pending_max = pending_max
        self._slots: deque[Slot] = deque()
        self._progress: trio.Event | None = None

    def __len__(self) -> int:
        """EVENTs that were read and not yet answered."""
        return len(self._slots)

    def open(self, event_id: str) -> Slot:
        """The next place in line. `wait_room` first."""
        assert len(self._slots) < self.pending_max
        slot = Slot(self, event_id)
        self._slots.append(slot)
        return slot

    def answer(self, event_id: str, outcome: Outcome) -> None:
        """An outcome that is known already; it waits for those before it all the same."""
        self.open(event_id).resolve(outcome)
        self.flush_replies()

    def withdraw(self, slot: Slot) -> None:
        """Takes back the newest place in line, because its EVENT never got on its way."""
        assert self._slots[-1] is slot
        assert slot.frame is None
        self._slots.pop()

    def flush_replies(self) -> None:
        """Sends what nothing unanswered stands before, in one write."""
        frames = []
        while self._slots and (frame := self._slots[0].frame) is not None:
            frames.append(frame)
            self._slots.popleft()
        if not frames:
            return
        self._send(frames[0] if len(frames) == 1 else b"".join(frames))
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    async def wait_room(self) -> None:
        """Until one more EVENT may be read. No checkpoint where it may."""
        while len(self._slots) >= self.pending_max:
            await self._wait_progress()

    async def wait_empty(self) -> None:
        """Until everything is answered: the barrier before what must not overtake. No checkpoint where it is."""
        while self._slots:
            await self._wait_progress()

    async def _wait_progress(self) -> None:
        if self._progress is None:
            self._progress = trio.Event()
        await self._progress.wait()
