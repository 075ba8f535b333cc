"""The one writer of a connection's socket: writes at once, queues what the kernel does not take.

Flows in: whole WebSocket frames. Flows out: bytes on the socket, and one call of `on_close` when the connection cannot
go on. The flush task is owned by the connection's nursery. Not done here: pongs and the Close
(`outbound`), framing, subscriptions, cancelling the connection (its owner does that when `on_close` is called).

Theory
------
Waking a writer task costs ten times the write that it does. So a frame is written by the task that has it, to the
non-blocking socket. Only what the kernel does not take is queued, and only then does a flush task exist.

            offer, put, send_all
                   |
       nothing waits? --yes--> os.write --all taken--> done
                   |               |
                   no              the rest
                   v               v
                  Backlog (bounded) <---> flush task: wait_writable, writev

The queue is bounded by slots, by bytes and by the time for which the peer takes nothing. Crossing a bound closes the
connection: a subscriber that silently misses events believes that it has seen them all; one that was closed comes back
and asks. The fan-out task never waits; replies and stored events do (`put`), which also stops reading from that client.

States: OPEN -> SHEDDING (a bound was crossed; only a Close may still leave) -> CLOSING (a Close is written or queued,
nothing follows it) -> GONE (socket broken or closed). Each may turn into GONE.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import trio

from relay.fanout.backlog import Backlog, Frame, Unwanted, is_event
from relay.fanout.limits import CloseReason, Limit, OutboundLimits, OutboundStatistics
from relay.fanout.progress import unacknowledged_bytes
from relay.fanout.waiting import WaitingPuts

__all__ = ["FrameWriter", "State"]

# One writev takes at most this many frames; the kernel's own bound (IOV_MAX) is 1024.
WRITEV_FRAMES_MAX = 64


class State(IntEnum):
    OPEN = 0
    SHEDDING = 1
    CLOSING = 2
    GONE = 3


# Read on every write: a module's name is found faster than an enum's member.
_OPEN = State.OPEN


class FrameWriter:
    """Order, bounds and ends of one connection's outgoing frames. The arguments are those of `Outbound`."""

    __slots__ = (
        "_backlog",
        "_backlogged",
        "_backlogs",
        "_clock",
        "_drained",
        "_fileno",
        "_flushing",
        "_limit",
        "_limits",
        "_nursery",
        "_on_close",
        "_owner",
        "_purged",
        "_state",
        "_waiting",
        "last_progress",
    )

    def __init__(
        self,
        socket: trio.socket.SocketType,
        handler_nursery: trio.Nursery,
        limits: OutboundLimits,
        on_close: Callable[[CloseReason], None],
        clock: Callable[[], float],
    ) -> None:
        # Asked at every write, never remembered: after a close the number soon belongs to another connection, and a
        # remembered one would write this client's frames to that client. A closed socket answers -1, and write EBADF.
        self._fileno = socket.fileno
        self._nursery = handler_nursery
        self._limits = limits
        self._on_close: Callable[[CloseReason], None] | None = on_close
        self._clock = clock
        self._state = _OPEN
        self._backlog = Backlog()
        self._flushing = False
        self._waiting = WaitingPuts()
        self._drained = trio.Event()  # set while the backlog is empty
        self._drained.set()
        self._limit: Limit | None = None
        self._owner: Any = None
        self._backlogged: set[Any] = set()  # nobody's, until `track`
        self._backlogs = 0
        self._purged = 0
        # When the peer last proved that it reads, by making room in a full kernel buffer. A write into an empty buffer
        # proves nothing, so it does not count (and the fast path needs no clock).
        self.last_progress = clock()

    # ---- live events: never wait

    def offer(self, frame: bytes, channel: str | None = None) -> bool:
        """Write or queue one whole frame; False if the connection takes no more: then it is closing, never skipping."""
        if self._flushing or self._state is not _OPEN:
            return self._enqueue(((frame, channel),))
        sent = self._write(frame)
        if sent == len(frame):
            return True
        return sent >= 0 and self._back_up(((frame, channel),), sent)

    def offer_many(self, frames: Sequence[Frame]) -> bool:
        """Write or queue whole frames in order, with one system call when nothing waits; else as `offer`."""
        if self._flushing or self._state is not _OPEN:
            return self._enqueue(frames)
        joined = b"".join([frame for frame, _ in frames])
        sent = self._write(joined)
        if sent == len(joined):
            return True
        return sent >= 0 and self._back_up(frames, sent)

    def offer_joined(self, joined: bytes, apart: Callable[[bytes], Sequence[Frame]], prefix: bytes) -> bool:
        """As `offer_many`, for frames that somebody has joined already: `apart(prefix)` gives them one by one, and is
        only called where not all of them can be written at once."""
        if self._flushing or self._state is not _OPEN:
            return self._enqueue(apart(prefix))
        sent = self._write(joined)
        if sent == len(joined):
            return True
        return sent >= 0 and self._back_up(apart(prefix), sent)

    def purge(self, channel: str) -> int:
        """Drop the frames of `channel` that are not begun, those of waiting puts too; how many they were."""
        return self._drop(lambda frame: frame[1] == channel)

    def purge_events(self) -> int:
        """The same of all frames that deliver an event, of whichever channel or of none; answers stay."""
        return self._drop(is_event)

    def _drop(self, unwanted: Unwanted) -> int:
        dropped = self._backlog.purge(unwanted) + self._waiting.purge(unwanted)
        self._purged += dropped
        self._admit_waiting()
        self._note_drained()
        return dropped

    # ---- replies and stored events: wait for room

    async def put(self, frame: bytes, channel: str | None = None) -> None:
        """Write or queue one frame, waiting while the queue is half full or more. Puts keep their order.

        With room, the frame is on its way before the first checkpoint, so no permission can be withdrawn in between; a
        put that waits for room is reached by `purge`.
        Raises trio.BrokenResourceError when the connection takes no more. Cancellation: the frame is not sent."""
        await self.put_many(((frame, channel),))

    async def put_many(self, frames: Sequence[Frame]) -> None:
        """As `put`, for frames that go in one write if they can; they are admitted together, whatever their size."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._state is not _OPEN:
            raise trio.BrokenResourceError("the connection takes no more frames")
        if self._waiting or not self._has_room():
            if not await self._waiting.wait(frames):
                raise trio.BrokenResourceError("the connection takes no more frames")
            return
        if self._flushing:
            for frame in frames:
                self._append(frame)
        else:
            joined = frames[0][0] if len(frames) == 1 else b"".join([frame for frame, _ in frames])
            sent = self._write(joined)
            if sent < 0 or not (sent == len(joined) or self._back_up(frames, sent, bounded=False)):
                raise trio.BrokenResourceError("the peer is gone")
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def flushed(self, seconds: float) -> bool:
        """Wait until the kernel has every accepted frame; False after `seconds`, or when the connection is ending.

        For an orderly close: stop offering, flush, then close. A Close forfeits what still waits."""
        with trio.move_on_after(seconds):
            while self._backlog or self._waiting:
                await self._drained.wait()
        await trio.lowlevel.checkpoint()
        return self._state is _OPEN and not self._backlog and not self._waiting

    def track(self, backlogged: set[Any], owner: Any) -> None:
        """From here on `owner` is in `backlogged` while a frame waits: what has to be purged is found by it."""
        self._backlogged.discard(self._owner)
        self._backlogged, self._owner = backlogged, owner
        if self._flushing:
            backlogged.add(owner)

    def statistics(self) -> OutboundStatistics:
        return OutboundStatistics(
            state=self._state.name.lower(),
            queued_frames=len(self._backlog),
            queued_bytes=self._backlog.bytes,
            waiting_puts=len(self._waiting),
            backlogs=self._backlogs,
            purged_frames=self._purged,
            last_progress=self.last_progress,
            limit=self._limit,
        )

    # ---- writing and queueing

    def _write(self, data: bytes) -> int:
        """One non-blocking write: the bytes taken, or -1 when the connection is gone (and `on_close` knows)."""
        try:
            return os.write(self._fileno(), data)
        except BlockingIOError:
            return 0
        except OSError:
            self._lose(CloseReason.PEER_GONE)
            return -1

    def _back_up(self, frames: Sequence[Frame], sent: int, *, bounded: bool = True) -> bool:
        """The kernel took `sent` bytes of `frames` and is full: queue the rest and start flushing."""
        assert not self._flushing
        self._backlog.append_remainder(frames, sent)
        self._start_flushing()
        if bounded and len(self._backlog) > self._limits.slots:
            return self._shed(Limit.SLOTS)
        if bounded and len(self._backlog) > 1 and self._backlog.bytes > self._limits.bytes:
            return self._shed(Limit.BYTES)
        return self._state is _OPEN

    def _enqueue(self, frames: Sequence[Frame]) -> bool:
        """Queue behind what waits, within the bounds."""
        if self._state is not _OPEN:
            return False
        for frame in frames:
            if len(self._backlog) >= self._limits.slots:
                return self._shed(Limit.SLOTS)
            if self._backlog and self._backlog.bytes + len(frame[0]) > self._limits.bytes:
                return self._shed(Limit.BYTES)
            self._append(frame)
        return True

    def _append(self, frame: Frame) -> None:
        self._backlog.append(frame)
        self._note_waiting()

    def _send_urgent(self, frame: bytes, *, replace: bool = False) -> None:
        """A control frame: written now if nothing waits, else before all waiting data."""
        if self._flushing:
            self._backlog.append_urgent(frame, replace=replace)
            self._note_waiting()
            return
        sent = self._write(frame)
        if sent < 0 or sent == len(frame):
            return
        if sent:
            self._backlog.append_remainder(((frame, None),), sent)
        else:  # among the control frames, or the next one of them would overtake it
            self._backlog.append_urgent(frame)
        self._start_flushing()

    def _has_room(self) -> bool:
        return len(self._backlog) * 2 < self._limits.slots and self._backlog.bytes * 2 < self._limits.bytes

    def _admit_waiting(self) -> None:
        if self._state is _OPEN:
            self._waiting.admit(self._has_room, self._append)

    def _note_waiting(self) -> None:
        if self._drained.is_set():
            self._drained = trio.Event()

    def _note_drained(self) -> None:
        if not self._backlog:
            self._drained.set()

    # ---- the flush task: exists only while the kernel's buffer is full

    def _start_flushing(self) -> None:
        self._flushing = True
        self._backlogged.add(self._owner)
        self._backlogs += 1
        self._note_waiting()
        self.last_progress = self._clock()
        try:
            self._nursery.start_soon(self._flush, name="outbound flush")
        except RuntimeError:
            # The connection's nursery has ended before its subscriptions were taken out: this frame has no way out.
            self._lose(CloseReason.PEER_GONE)

    async def _flush(self) -> None:
        try:
            while self._backlog:
                await self._wait_writable()
                self._write_backlog()
                self._admit_waiting()
                self._note_drained()
        except (OSError, trio.ClosedResourceError):
            self._lose(CloseReason.PEER_GONE)
        finally:
            self._flushing = False
            self._backlogged.discard(self._owner)
            if self._backlog:  # cancelled: a later direct write would cut into the frame that is partly written
                self._become_gone()

    async def _wait_writable(self) -> None:
        """Until the socket takes bytes or nothing waits; ends the connection when the peer takes none for too long."""
        stall_seconds = self._limits.stall_seconds
        unacknowledged = unacknowledged_bytes(self._fileno())
        while self._backlog:
            left = self.last_progress + stall_seconds - self._clock()
            if left <= 0:
                self._stalled()
                continue
            # The kernel calls a socket writable only when a third of its buffer is free: a slow link may need a minute
            # for that and yet be alive. So look now and then at what the peer has acknowledged.
            with trio.move_on_after(min(left, stall_seconds / 4)):
                await trio.lowlevel.wait_writable(self._fileno())
                return
            before, unacknowledged = unacknowledged, unacknowledged_bytes(self._fileno())
            if unacknowledged < before:
                self.last_progress = self._clock()

    def _write_backlog(self) -> None:
        """Write until the kernel is full again or nothing waits."""
        while self._backlog:
            try:
                sent = os.writev(self._fileno(), self._backlog.buffers(WRITEV_FRAMES_MAX))
            except BlockingIOError:
                return
            self._backlog.consumed(sent)
            self.last_progress = self._clock()

    # ---- ends

    def _shed(self, limit: Limit) -> bool:
        """A bound was crossed: forget what waits and call for the end. False, as the offer's answer."""
        self._limit = limit
        self._state = State.SHEDDING
        self._backlog.forfeit()
        self._waiting.fail()
        self._note_drained()
        self._call_on_close(CloseReason.SLOW_CONSUMER)
        return False

    def _stalled(self) -> None:
        if self._state is _OPEN:
            self.last_progress = self._clock()  # the same time once more, for the Close frame
            self._shed(Limit.STALL)
        else:
            self._limit = self._limit or Limit.STALL
            self._lose(CloseReason.SLOW_CONSUMER)

    def _lose(self, reason: CloseReason) -> None:
        self._become_gone()
        self._call_on_close(reason)

    def _become_gone(self) -> None:
        self._state = State.GONE
        self._backlog = Backlog()
        self._backlogged.discard(self._owner)
        self._waiting.fail()
        self._note_drained()

    def _call_on_close(self, reason: CloseReason) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(reason)
