"""The audit worker: the one task that chains entries, and the queue in front of it.

In: entries that are already committed in the outbox, over a bounded channel, one `Producer` per task that makes them.
Out: rows of `audit_log`, through a `Sink`. The owner is the audit nursery of the supervisor; the worker ends when every
producer is closed after `begin_drain`, or at the deadline that was given there.

Rules
-----
1. The outbox is the truth. An entry in the queue is a wake-up call and pressure on its producer; losing one costs a
   moment (`_sweep`), never an entry. So a batch takes what the outbox holds, whoever wrote it, on whichever node.
2. A full queue makes producers wait. Nothing is dropped.
3. A database error is never the end: back off, try again. Anything else is a bug; it leaves `run` and ends the process.
4. The worker is shielded from its nursery's cancellation, and the shield always has an end: `begin_drain` is
   synchronous, for a `finally`, and a watcher in the worker's own nursery calls it when the nursery is cancelled first.
5. At the deadline the connection is aborted *before* the scope is cancelled: a cancelled query would first ask the
   server politely, for seconds, and the server that made us late will not answer.
6. A producer that nobody closes does not hold up the end: `producers_seconds` after the drain began, the worker closes
   them all. What they still wanted to hand over is in the outbox, and the last batch takes it from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from relay import metrics
from relay.audit.log import BATCH_ENTRIES_MAX, Batch
from relay.audit.queue import EntryQueue, Producer
from relay.audit.sink import RETRIED, Sink

CAPACITY_ENTRIES = 1000
LINGER_SECONDS = 0.05
SWEEP_SECONDS = 1.0
# Whoever wrote an outbox row chains it within a linger and a batch; what is older has lost its worker.
ORPHAN_SECONDS = 2.0
# Above the server's own statement and lock timeouts, so that it fires only when the server does not answer at all.
BATCH_SECONDS = 10.0
BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 2.0
# While draining a long pause could sleep through the moment at which the database is back.
BACKOFF_SECONDS_MAX_DRAINING = 0.25
DRAIN_SECONDS = 5.0
PRODUCERS_SECONDS = 2.0
# The same bound as the readiness answer gives the oldest outbox row.
UNHEALTHY_SECONDS = 10.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AuditStatistics:
    """`oldest_outbox_seconds` is a lower bound: what this process knows, without asking the database. `held`: entries
    that another session kept locked in the outbox when the last batch looked."""

    queued: int
    capacity: int
    written_total: int
    errors_total: int
    head_seq: int
    last_batch: int
    held: int
    oldest_outbox_seconds: float
    healthy: bool
    draining: bool


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How the end went: entries chained since it began, entries handed to us and not known to be chained (they are in
    the outbox), and whether it ended by itself (`finished`) or by the deadline or an error."""

    written: int
    left: int
    finished: bool
    seconds: float


class AuditWorker:
    """See the module's docstring. One per process and event loop; `run` is called once."""

    def __init__(
        self,
        sink: Sink,
        *,
        capacity: int = CAPACITY_ENTRIES,
        batch_entries: int = BATCH_ENTRIES_MAX,
        linger_seconds: float = LINGER_SECONDS,
        drain_seconds: float = DRAIN_SECONDS,
        producers_seconds: float = PRODUCERS_SECONDS,
        on_chained: Callable[[Batch], object] | None = None,
    ) -> None:
        assert batch_entries > 0
        self.drain_seconds = drain_seconds  # only where nobody called begin_drain before the cancellation
        self.report: DrainReport | None = None  # set when `run` ends
        self._queue = EntryQueue(capacity)
        self._sink = sink
        self._batch_entries = batch_entries
        self._linger_seconds = linger_seconds
        self._producers_seconds = producers_seconds
        self._on_chained = on_chained  # told of every batch that is committed and wrote something; must not wait
        # The outbox row seen first in line when we were idle, and since when it has been there.
        self._orphan: tuple[int, float] | None = None

        # The shield and its end. `_scope` gets its deadline in begin_drain, never later than the watcher's act.
        self._scope = trio.CancelScope(shield=True)
        self._watch_scope = trio.CancelScope(shield=True)
        self._linger_scope = trio.CancelScope()
        self._draining = trio.Event()
        self._drain_began = 0.0
        self._drain_deadline = math.inf
        self._written_before_drain = 0

        self._written_total = 0
        self._errors_total = 0
        self._failures = 0  # in a row
        self._head_seq = 0
        self._last_batch = 0
        self._held = 0

    # -- for producers and the supervisor ----------------------------------------------------------------------------

    def producer(self) -> Producer:
        """A new end of the queue, for one task.

        Raises:
            AuditQueueClosed: the drain has begun.
        """
        return self._queue.producer()

    def begin_drain(self, deadline: float) -> None:
        """Take the last entries and end, by `deadline` (of `trio.current_time()`) at the latest.

        Synchronous and idempotent, for a `finally`: the first call counts, a second signal changes nothing.
        """
        if self._draining.is_set():
            return
        self._drain_began = trio.current_time()
        self._drain_deadline = deadline
        self._written_before_drain = self._written_total
        # The watcher ends the scope at the deadline; this is for a watcher that is no longer there.
        self._scope.deadline = deadline + 0.2
        self._draining.set()
        self._linger_scope.cancel()
        self._queue.close_to_new()

    @property
    def left(self) -> int:
        """Entries handed to us and not known to be chained, by now: a producer may still come after `report`."""
        return len(self._queue.pending)

    def statistics(self) -> AuditStatistics:
        oldest = self._oldest_seconds()
        return AuditStatistics(
            queued=self._queue.queued,
            capacity=self._queue.capacity,
            written_total=self._written_total,
            errors_total=self._errors_total,
            head_seq=self._head_seq,
            last_batch=self._last_batch,
            held=self._held,
            oldest_outbox_seconds=oldest,
            healthy=self._failures == 0 and oldest < UNHEALTHY_SECONDS,
            draining=self._draining.is_set(),
        )

    async def run(self, *, task_status: trio.TaskStatus[AuditWorker] = trio.TASK_STATUS_IGNORED) -> DrainReport:
        """Chain entries until the drain is over. `report` holds the result, also after an error.

        Cancellation: not before the drain's deadline; a cancelled nursery begins the drain, if nobody has.
        """
        finished = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            task_status.started(self)
            try:
                with self._scope:
                    await self._serve()
                    finished = True
            finally:
                self.begin_drain(trio.current_time())  # after an error: so that nobody believes we still take entries
                self._finish(finished)
                self._watch_scope.cancel()
                nursery.cancel_scope.cancel()
        assert self.report is not None
        return self.report

    # -- the worker's own task ---------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        ended = False
        while not ended:
            # Not `async for`: its end must be seen before the last batch begins, so that this batch covers everything.
            ended = await self._collect()
            if ended or self._queue.pending or await self._sweep():
                await self._chain_all()

    async def _collect(self) -> bool:
        """Wait for entries, a little longer for company, and say whether the channel has ended."""
        try:
            with trio.move_on_after(SWEEP_SECONDS):
                await self._queue.wait_entry()
            if self._queue.pending:
                self._queue.take_queued()
                await self._linger()
        except trio.EndOfChannel:
            return True
        return False

    async def _linger(self) -> None:
        """The entries are durable already, so waiting costs nobody anything, and fewer batches cost the disk less."""
        if self._draining.is_set():
            return
        with trio.move_on_after(self._linger_seconds) as self._linger_scope:
            while len(self._queue.pending) < self._batch_entries:
                await self._queue.wait_entry()

    async def _sweep(self) -> bool:
        """Idle: is somebody's entry stuck in the outbox? (A node died between its commit and its hand-over.)

        Judged by how long *we* see the same row first in line: the clocks of two machines have no say in it.
        """
        try:
            with trio.fail_after(BATCH_SECONDS):
                oldest = await self._sink.oldest()
        except RETRIED as error:
            await self._failed(error)
            return False
        self._failures = 0
        now = trio.current_time()
        if oldest is None:
            self._orphan = None
        elif self._orphan is None or self._orphan[0] != oldest.id:
            self._orphan = (oldest.id, now)
        return self._orphan is not None and now - self._orphan[1] >= ORPHAN_SECONDS

    async def _chain_all(self) -> None:
        """Chain until the outbox is empty, as far as anyone can see: until a batch is not full."""
        while True:
            self._queue.take_queued()
            expected = list(self._queue.pending)
            batch = await self._chain_batch()
            self._queue.chained(batch.uuids)
            if batch.full:
                continue
            # What was handed over before that batch began was committed before, so it was seen by it or gone already.
            held = set(batch.held)
            self._queue.chained([uuid for uuid in expected if uuid not in held])
            self._held = len(held)
            if not held:
                self._orphan = None
            return

    async def _chain_batch(self) -> Batch:
        """One batch, tried for ever."""
        while True:
            began = trio.current_time()
            try:
                with trio.fail_after(BATCH_SECONDS):
                    batch = await self._sink.chain_batch()
            except RETRIED as error:
                await self._failed(error)
                continue
            self._failures = 0
            self._head_seq = batch.head.seq
            self._written_total += batch.written
            if batch.written:
                self._last_batch = batch.written
                metrics.AUDIT_LOG_SECONDS.observe(trio.current_time() - began)
                metrics.AUDIT_BATCH_ENTRIES.observe(batch.written)
                if self._on_chained is not None:
                    self._on_chained(batch)
            return batch

    async def _failed(self, error: Exception) -> None:
        self._errors_total += 1
        self._failures += 1
        metrics.AUDIT_LOG_ERRORS.inc()
        draining = self._draining.is_set()
        longest = BACKOFF_SECONDS_MAX_DRAINING if draining else BACKOFF_SECONDS_MAX
        pause = min(BACKOFF_SECONDS_MIN * 2 ** min(self._failures - 1, 10), longest)
        _log.warning(
            "audit batch failed, trying again",
            error=repr(error), failures=self._failures, pause_seconds=pause, waiting=len(self._queue.pending),
        )  # fmt: skip
        if draining:
            await trio.sleep(pause)
        else:
            with trio.move_on_after(pause):  # the beginning of the drain cuts a long pause short
                await self._draining.wait()

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Holds the worker to its deadlines. Shielded like the worker, and shorter-lived: `run` cancels it."""
        try:
            await self._draining.wait()
        finally:
            self.begin_drain(trio.current_time() + self.drain_seconds)
            with self._watch_scope:
                await trio.sleep_until(min(self._drain_began + self._producers_seconds, self._drain_deadline))
                self._close_producers()
                await trio.sleep_until(self._drain_deadline)
                self._sink.abort()
                self._scope.cancel()

    def _close_producers(self) -> None:
        if count := self._queue.close_producers():
            _log.warning("audit producers were still open and are closed", producers=count)

    def _finish(self, finished: bool) -> None:
        """Count what is left, and turn later producers away. Synchronous: nothing here can be cancelled."""
        self._close_producers()
        self._queue.close()
        self.report = DrainReport(
            written=self._written_total - self._written_before_drain,
            left=len(self._queue.pending),
            finished=finished,
            seconds=trio.current_time() - self._drain_began,
        )
        note = _log.info if finished and not self._queue.pending else _log.warning
        note("audit drain over", written=self.report.written, left=self.report.left, finished=finished)

    def _oldest_seconds(self) -> float:
        since = [self._queue.oldest_since, None if self._orphan is None else self._orphan[1]]
        now = trio.current_time()
        return max((now - moment for moment in since if moment is not None), default=0.0)
