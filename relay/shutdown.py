"""How a relay stops: what asks for it, which phases follow, and what the process answers in the end.

In: signals, a crash of a supervised task, a launcher that wants to end. Out: an exit code. The script runs as the body
of the root nursery (see relay/supervisor.py), so it may await everything and nothing outlives it.

T is the moment at which the relay stops accepting; the grace before it is not part of the budget.

    1  T - grace   readiness 503; everything is still served
    2              grace, for load balancers to notice (none after a crash)
    3  T           stop accepting; the audit deadline (T + 5) starts in the same instant; new work is refused, admitted
                   work is finished and answered; reading stops, queues are flushed, connections close by T + 2
    4              what feeds the workers is closed; commits, fan-out and audit drain until T + 5; then database
                   connections are cut off, without a word to a server that may not answer
    5              the last checkpoint of the audit log, within 0.3 s; what is left is counted (it is safe in the
                   outbox), the embedded PostgreSQL stops
       T + 8       the watchdog thread ends the process whatever happens

Rules
- A stop is asked for once. Every later signal changes nothing: Hypercorn's parent repeats SIGTERM while its child
  drains, and an impatient operator must not cost audit entries. There is always SIGKILL.
- Both signals are ignored from the end of the script to the end of the process: a repeated one must not turn a clean
  exit into a death by signal.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import structlog
import trio

from relay import metrics
from relay.config import Settings
from relay.watchdog import Watchdog

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESTARTING = (1012, "the relay is restarting")  # 1012 Service Restart, IANA's registry of RFC 6455 close codes
INTERNAL_ERROR = (1011, "internal error")  # RFC 6455, 7.4.1
# How much later than the audit deadline the script goes on if the worker, which has that deadline itself, does not.
DEADLINE_SLACK_SECONDS = 0.1
# What the last checkpoint may take: all that it needs is in memory, or some thousand rows away.
SEAL_SECONDS = 0.3

log = structlog.get_logger(__name__)


class ExitCode(IntEnum):
    """What the process answers; 70 and 75 are BSD's EX_SOFTWARE and EX_TEMPFAIL."""

    DRAINED = 0
    REFUSED = 2
    """The configuration, the key, the schema or the audit log is not as it must be: starting again will not help."""
    CRASHED = 70
    UNFINISHED = 75
    """Entries were left to the outbox, or the database could not be reached at the start: starting again helps."""


class Stop:
    """That the relay stops, why, and what follows from it. One object a process; all methods are synchronous."""

    def __init__(self, watchdog: Watchdog, shutdown_seconds: float) -> None:
        self.watchdog = watchdog
        self.requested = trio.Event()
        self.start_scope = trio.CancelScope()
        """Around the whole life of the relay, and cancelled only while it starts: there is nothing to drain yet."""
        self.has_crashed = trio.Event()
        self.unfinished = False
        """Whether something may have been left to the outbox."""
        self._shutdown_seconds = shutdown_seconds
        self._ready = False

    def ready(self) -> None:
        """From here on a stop runs the script."""
        self._ready = True

    @property
    def is_ready(self) -> bool:
        """What readiness answers with: started, and not stopping."""
        return self._ready and not self.requested.is_set()

    @property
    def started(self) -> bool:
        return self._ready

    def request(self, why: str) -> None:
        """Ask the relay to stop. Only the first call counts."""
        if self.requested.is_set():
            log.info("already stopping", repeated=why)
            return
        log.info("stopping", why=why)
        self.requested.set()
        if not self._ready:
            self.begin_budget()
            self.start_scope.cancel()

    def crashed(self, name: str, error: BaseException) -> None:
        """A supervised task ended by `error`: the relay drains and leaves with code 70."""
        log.error("a supervised task crashed", task=name, exc_info=error)
        self.has_crashed.set()
        self.request(f"crash of {name}")

    def begin_budget(self) -> None:
        """T: from now on the watchdog counts."""
        # Until the drain is known to be complete, what can be said of a killed process is that it was not.
        self.watchdog.arm(self._shutdown_seconds, lambda: self.exit_code or ExitCode.UNFINISHED)

    @property
    def exit_code(self) -> ExitCode:
        if self.has_crashed.is_set():
            return ExitCode.CRASHED
        return ExitCode.UNFINISHED if self.unfinished else ExitCode.DRAINED

    async def listen(self, received: AsyncIterator[int]) -> None:
        """Turn signals into requests, for ever; the caller cancels it when everything else has ended."""
        async for number in received:
            self.request(signal.Signals(number).name)


@contextmanager
def stop_signals(*, ignore_afterwards: bool) -> Iterator[AsyncIterator[int]]:
    """SIGTERM and SIGINT as an iterator, whatever was set for them before: a background job starts with SIGINT ignored.

    With `ignore_afterwards` both are ignored once the block has been left. Only in the main thread, inside Trio.
    """
    if ignore_afterwards:
        # The receiver restores what it found. Blocked meanwhile, so that no signal falls between the two.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    with trio.open_signal_receiver(*STOP_SIGNALS) as received:
        if ignore_afterwards:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        yield received


class Stoppable(Protocol):
    """What the script does to the relay; the real one is relay/assembly.py, in the order of the phases."""

    def refuse_new_work(self) -> None: ...

    async def close_connections(self, code: int, reason: str) -> None:
        """Stop reading, flush, close every WebSocket; returns when all have ended. Has its own deadlines."""

    def end_input(self) -> None:
        """Close what feeds the workers, so that they end when they have done what was admitted."""

    def drain_audit_until(self, deadline: float) -> None:
        """Trio time at which the audit worker gives up."""

    def abort(self) -> None:
        """Cut off every database connection, at once and without asking the server."""

    async def seal(self) -> None:
        """Sign the audit log as it is now, in the database or, where that does not answer, in the file alone."""

    def drain_result(self) -> tuple[bool, int]:
        """Whether the audit worker came to its end by itself, and how many entries it knows to be left."""


@dataclass(frozen=True, slots=True)
class Ends:
    """What the script watches: set or finished by others."""

    stop_accepting: trio.Event
    """Set by the script: the listener stops accepting and gives its connections `close_seconds`."""
    http: trio.Event
    workers: Iterable[trio.Event]
    audit: trio.Event
    timers: trio.CancelScope
    """Around what only the clock drives; some of it feeds the workers, so it ends before they can."""


async def run_script(stop: Stop, settings: Settings, relay: Stoppable, ends: Ends) -> None:
    """Wait until a stop is asked for, then phases 1 to 4. What still runs in the root nursery may then be cancelled."""
    await stop.requested.wait()  # phase 1: `Stop.is_ready` is false from here on
    if not stop.has_crashed.is_set():
        await _grace(stop, settings.grace)
    began = trio.current_time()
    stop.begin_budget()
    relay.drain_audit_until(began + settings.audit_drain_seconds)
    relay.refuse_new_work()
    ends.stop_accepting.set()
    await _close_everything(stop, settings, relay, ends, began)
    _phase_took("connections", began)

    ends.timers.cancel()
    relay.end_input()
    with trio.CancelScope(deadline=began + settings.audit_drain_seconds + DEADLINE_SLACK_SECONDS) as draining:
        for ended in (*ends.workers, ends.audit):
            await ended.wait()
    _phase_took("drain", began)
    if draining.cancelled_caught:
        stop.unfinished = True
        log.error("not everything was drained in time", seconds=settings.audit_drain_seconds)
        relay.abort()


async def _grace(stop: Stop, seconds: float) -> None:
    if seconds > 0:
        log.info("still serving, for load balancers to notice", seconds=seconds)
        with trio.move_on_after(seconds):
            await stop.has_crashed.wait()  # there may be nothing left that serves


async def _close_everything(stop: Stop, settings: Settings, relay: Stoppable, ends: Ends, began: float) -> None:
    code, reason = INTERNAL_ERROR if stop.has_crashed.is_set() else RESTARTING
    with trio.CancelScope(deadline=began + settings.close_seconds + DEADLINE_SLACK_SECONDS) as closing:
        await relay.close_connections(code, reason)
        await ends.http.wait()
    if closing.cancelled_caught:
        log.warning("connections were cut off", seconds=settings.close_seconds)


async def seal(relay: Stoppable) -> None:
    """Phase 5, when nothing is chained any more. Not shielded: whoever cancels the relay does not want to wait."""
    began = trio.current_time()
    finished, _ = relay.drain_result()
    if not finished:
        # The worker ends a moment before the script would cut it off. A server that did not answer it will answer
        # neither us nor a pool that says farewell.
        relay.abort()
    with trio.move_on_after(SEAL_SECONDS) as scope:
        await relay.seal()
    if scope.cancelled_caught:
        log.warning("the last checkpoint was given up", seconds=SEAL_SECONDS)
    _phase_took("checkpoint", began)


def finish(stop: Stop, relay: Stoppable) -> None:
    """Phase 5, after the audit nursery: count what is left to the next start."""
    finished, left = relay.drain_result()
    if left or not finished:
        stop.unfinished = True
        log.error("not all entries were chained; they are in the outbox, the next start chains them", known=left)


def _phase_took(phase: str, began: float) -> None:
    seconds = trio.current_time() - began
    metrics.SHUTDOWN_SECONDS.labels(phase).set(seconds)
    log.info("stopping: done", phase=phase, seconds=round(seconds, 3))
