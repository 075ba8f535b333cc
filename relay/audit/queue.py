"""The queue in front of the audit worker: a bounded channel, its producers, and what they handed over.

In: entries whose outbox rows are committed, from one `Producer` per task. Out: `pending`, what was handed over and is
not yet known to be chained. Owned by the worker. A full queue makes producers wait; nothing is dropped.

Every producer has a clone of its own: closing a channel end that several tasks share would fail those that wait in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import trio

from relay import metrics
from relay.audit.entry import Entry
from relay.errors import AuditError


class AuditQueueClosed(AuditError):
    """The worker takes no more entries. Those already committed are in the outbox and are chained from there."""


class Producer:
    """One task's end of the queue. Close it when the task ends; as a context manager it closes itself."""

    def __init__(self, queue: EntryQueue, channel: trio.MemorySendChannel[Entry]) -> None:
        self._queue = queue
        self._channel = channel
        self._waiting: dict[str, Entry] = {}  # in `send`, not yet taken by the full channel

    async def send(self, entries: Sequence[Entry]) -> None:
        """Hand over entries whose outbox rows are committed; wait while the queue is full.

        Cancellation: entries not yet handed over stay in the outbox, where the next batch finds them.

        Raises:
            AuditQueueClosed: the worker is stopping or gone. The entries are safe in the outbox all the same.
        """
        await trio.lowlevel.checkpoint()
        sent = 0
        try:
            # Without a task switch while there is room: a commit batch hands over hundreds at once.
            for entry in entries:
                self._channel.send_nowait(entry)
                sent += 1
        except trio.WouldBlock:
            await self._send_waiting(entries[sent:])
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            self._queue.expect(entries[sent:])
            self._refuse(len(entries) - sent)

    def close(self) -> None:
        """Idempotent. A task that waits in `send` gets AuditQueueClosed."""
        # Its entries are in the outbox, and the drain counts them until they are chained from there.
        self._queue.expect(self._waiting.values())
        self._channel.close()
        self._queue.producers.discard(self)

    async def _send_waiting(self, entries: Sequence[Entry]) -> None:
        self._waiting.update((entry.uuid, entry) for entry in entries)
        try:
            for entry in entries:
                await self._channel.send(entry)
                del self._waiting[entry.uuid]
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            self._refuse(sum(entry.uuid in self._waiting for entry in entries))
        finally:
            for entry in entries:
                self._waiting.pop(entry.uuid, None)

    def _refuse(self, count: int) -> None:
        metrics.AUDIT_SEND_ERRORS.inc(count)
        raise AuditQueueClosed(f"the audit queue is closed; entries left to the outbox: {count}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EntryQueue:
    """The worker's side."""

    def __init__(self, capacity: int) -> None:
        assert capacity > 0
        self.capacity = capacity
        self.producers: set[Producer] = set()
        # uuid -> when it came, by Trio's clock; oldest first. Bounded: `take_queued` stops at the capacity.
        self.pending: dict[str, float] = {}
        self._entries_in: trio.MemorySendChannel[Entry]
        self._entries_out: trio.MemoryReceiveChannel[Entry]
        self._entries_in, self._entries_out = trio.open_memory_channel[Entry](capacity)

    def producer(self) -> Producer:
        try:
            channel = self._entries_in.clone()
        except trio.ClosedResourceError:
            raise AuditQueueClosed("the audit queue takes no new producers: the relay is stopping") from None
        producer = Producer(self, channel)
        self.producers.add(producer)
        return producer

    async def wait_entry(self) -> None:
        """Wait for one entry to become pending.

        Raises:
            trio.EndOfChannel: every producer is closed and nothing is queued.
        """
        self.expect([await self._entries_out.receive()])

    def take_queued(self) -> None:
        """Make pending what is queued: up to the capacity once more and no further, or pressure ends here."""
        while len(self.pending) < self.capacity:
            try:
                self.expect([self._entries_out.receive_nowait()])
            except (trio.WouldBlock, trio.EndOfChannel):
                return

    def expect(self, entries: Iterable[Entry]) -> None:
        now = trio.current_time()
        for entry in entries:
            self.pending.setdefault(entry.uuid, now)

    def chained(self, uuids: Sequence[str]) -> None:
        for uuid in uuids:
            self.pending.pop(uuid, None)

    def close_to_new(self) -> None:
        """No new producers from now on; the channel ends when those that exist are closed. Idempotent."""
        self._entries_in.close()

    def close_producers(self) -> int:
        """Close those that are still open, and say how many that were."""
        found = list(self.producers)
        for producer in found:
            producer.close()
        return len(found)

    def close(self) -> None:
        """The worker is gone: what is queued becomes pending (to be counted), and every sender is refused."""
        self.close_to_new()
        self.close_producers()
        while True:
            try:
                self.expect([self._entries_out.receive_nowait()])
            except trio.EndOfChannel:
                break
        self._entries_out.close()

    @property
    def queued(self) -> int:
        return self._entries_out.statistics().current_buffer_used

    @property
    def oldest_since(self) -> float | None:
        return next(iter(self.pending.values()), None)
