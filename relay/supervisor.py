"""The root nursery: who runs, in which order it starts, and what a crash does.

In: settings and a web server (the launch form's). Out: an exit code. Every long-lived task of the process is in this
table; how they stop is told in relay/shutdown.py, what they are made of in relay/assembly.py.

    task                      owner                     fed by                        ended by
    ------------------------  ------------------------  ----------------------------  --------------------------------
    signal receiver           outermost nursery         SIGTERM, SIGINT               cancelled last of all
    launcher's wish to stop   outermost nursery         Hypercorn's parent process    cancelled last of all
    embedded PostgreSQL       outermost context         -                             after everything below has ended
    audit worker              audit nursery, shielded   entries, one clone a producer end of data, or 5 s after T
    fan-out task              root nursery              dispatched batches            end of data
    commit task               root nursery              plain events, audit entries   end of data
    effect workers (4)        root nursery              events with effects, reaper   end of data
    web server                root nursery              the port                      told to stop at T, gone by T + 2
      one nursery each        the listener              a connection's frames         either side's end
    heartbeat                 root nursery              time                          cancelled
    audience loader           root nursery              channels that nobody knows    cancelled
    refusal counts            root nursery              refusals, every 15 s          cancelled
    reaper                    root nursery              time                          cancelled
    audit checkpoints         root nursery              chained entries, time         cancelled; once more after T
    audit witnesses           root nursery              hints of new checkpoints      cancelled
    token watch               root nursery              notices, logins, time         cancelled
    token expiries            root nursery              time                          cancelled
    loop lag                  root nursery              time                          cancelled
    PostgreSQL's supervisor   root nursery              the child's end               cancelled
    health, metrics           root nursery              their ports                   cancelled

Start: database (embedded, or waited for) -> migrations -> the relay's key -> audit head, checkpoints and outbox ->
pools -> audit worker -> fan-out, commit, effects -> heartbeat -> health and metrics -> the port -> ready. A signal
meanwhile cancels it; there is nothing to drain yet.

Crash rules: an error of one connection ends at that connection. An error of a task in this table ends the process, in
order: readiness goes off, clients get 1011, the audit drains, exit code 70. This module is the one place where
exceptions of tasks are caught.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

import structlog
import trio

from relay.config import Settings
from relay.database import Database, DatabaseUnreachable, open_database
from relay.embedded import EmbeddedError
from relay.errors import AuditError, ConfigError, MigrationError, leaves
from relay.last_message import ASGIApp
from relay.shutdown import Ends, ExitCode, Stop, Stoppable, finish, run_script, seal, stop_signals
from relay.watchdog import Watchdog

Started = Callable[..., Awaitable[object]]
"""`await function(task_status=…)`, in the manner of `nursery.start`."""
Timer = Callable[[], Awaitable[object]]

# What another start would meet again: for these the exit code says "do not restart me".
_REFUSALS = (ConfigError, EmbeddedError, MigrationError, AuditError)

log = structlog.get_logger(__name__)


class WebServer(Protocol):
    """How a launch form serves HTTP and WebSocket on the port."""

    async def serve(
        self, app: ASGIApp, *, stop: Callable[[], Awaitable[None]], task_status: trio.TaskStatus[Sequence[str]]
    ) -> None:
        """Serve until `stop()` returns, then give connections `close_seconds`. Starts with the addresses served."""

    async def wait_told_to_stop(self) -> str:
        """Return, with a reason, when the launcher wants the process to stop; most never do."""


class Relay(Stoppable, Protocol):
    """The parts of a relay, put together and not yet running."""

    @property
    def app(self) -> ASGIApp: ...

    @property
    def audit(self) -> Started: ...

    @property
    def workers(self) -> Sequence[tuple[str, Started]]:
        """In the order of their start; each ends when its input has ended."""

    @property
    def timers(self) -> Sequence[tuple[str, Timer]]:
        """Run until they are cancelled; some feed the workers, so they are cancelled first."""

    @property
    def listeners(self) -> Sequence[tuple[str, Started]]:
        """Serve to the last moment: that the relay is not ready is said by them."""

    def announce(self, addresses: Sequence[str]) -> None:
        """Tell the operator where the relay listens."""


Assemble = Callable[[Settings, Database, Stop], AbstractAsyncContextManager[Relay]]


async def supervise(
    settings: Settings, server: WebServer, assemble: Assemble, *, watchdog: Watchdog, own_process: bool = True
) -> ExitCode:
    """Run a relay until it is told to stop, or cannot go on. Never raises an Exception: the code says how it went.

    Args:
        own_process: The process is the relay's: signals are ignored afterwards, the collector is tuned.

    Cancellation: as a signal would, but without grace; the audit worker still gets its time.
    """
    stop = Stop(watchdog, settings.shutdown_seconds)
    refusal: ExitCode | None = None
    with stop_signals(ignore_afterwards=own_process) as received:
        async with trio.open_nursery() as outermost:
            outermost.start_soon(stop.listen, received)
            outermost.start_soon(_heed_launcher, stop, server)
            try:
                with stop.start_scope:
                    await _live(settings, server, assemble, stop, own_process)
            except* Exception as group:
                refusal = _explain(stop, group)
            outermost.cancel_scope.cancel()
    code = refusal if refusal is not None else stop.exit_code
    log.info("stopped", code=int(code))
    return code


async def _heed_launcher(stop: Stop, server: WebServer) -> None:
    stop.request(await server.wait_told_to_stop())


async def _live(settings: Settings, server: WebServer, assemble: Assemble, stop: Stop, own_process: bool) -> None:
    """The outermost contexts: whatever is inside has ended before PostgreSQL is stopped."""
    async with open_database(settings) as database:
        if database.server is not None:
            stop.watchdog.before_exit = database.server.abort
        async with assemble(settings, database, stop) as relay:
            await _run(settings, server, database, relay, stop, own_process)
            await seal(relay)
            finish(stop, relay)


async def _run(
    settings: Settings, server: WebServer, database: Database, relay: Relay, stop: Stop, own_process: bool
) -> None:
    """The audit nursery around the root nursery: the worker outlives everything that can make an entry."""
    tasks = _Tasks(stop)
    async with trio.open_nursery() as audit_nursery:
        audit_ended = await tasks.start(audit_nursery, "audit worker", relay.audit)
        try:
            async with trio.open_nursery() as root:
                if database.server is not None:
                    await tasks.start(root, "embedded PostgreSQL", database.server.supervise)
                workers_ended = [await tasks.start(root, name, function) for name, function in relay.workers]
                timers = tasks.start_timers(root, relay.timers)
                for name, function in relay.listeners:
                    await tasks.start(root, name, function)
                accepting_ends = trio.Event()
                http_ended, addresses = await tasks.start_server(
                    root, partial(server.serve, relay.app, stop=accepting_ends.wait)
                )
                if own_process:
                    _settle_collector()
                assert not any(ended.is_set() for ended in (audit_ended, http_ended, *workers_ended))
                stop.ready()
                ends = Ends(accepting_ends, http_ended, workers_ended, audit_ended, timers)
                await _serve(stop, settings, relay, addresses, ends)
                root.cancel_scope.cancel()
        finally:
            # Whatever ended the root nursery, the shielded worker must not be left without a deadline. The script has
            # given one already on every orderly way, and the first one counts. The same holds for the watchdog.
            stop.begin_budget()
            relay.drain_audit_until(trio.current_time() + settings.audit_drain_seconds)
            relay.end_input()


async def _serve(stop: Stop, settings: Settings, relay: Relay, addresses: Sequence[str], ends: Ends) -> None:
    try:
        relay.announce(addresses)
        await run_script(stop, settings, relay, ends)
    finally:
        # A fault here, or cancellation, ends the tasks too: it is not theirs, and readiness goes off first.
        if not stop.requested.is_set():
            stop.request("a fault outside of every task, or cancellation")


def _settle_collector() -> None:
    """What lives for ever is not looked at again: a full collection stops all connections for its duration."""
    gc.set_threshold(50_000, 50, 1000)
    gc.collect()
    gc.freeze()


class _Tasks:
    """Starts the tasks of the table, and turns the end of one into the end of all."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    async def start(self, nursery: trio.Nursery, name: str, function: Started) -> trio.Event:
        """Returns when the task is usable; the event is set when it has ended. Raises what the start raises."""
        ended = trio.Event()
        await nursery.start(self._run, name, function, ended)
        return ended

    async def start_server(self, nursery: trio.Nursery, function: Started) -> tuple[trio.Event, Sequence[str]]:
        """As `start`, for the web server, which also says where it listens."""
        ended = trio.Event()
        return ended, await nursery.start(self._run, "web server", function, ended)

    def start_timers(self, nursery: trio.Nursery, timers: Sequence[tuple[str, Timer]]) -> trio.CancelScope:
        """Tasks that are usable at once, and run until the scope is cancelled."""
        scope = trio.CancelScope()

        async def run_all() -> None:
            with scope:
                async with trio.open_nursery() as inner:
                    for name, function in timers:
                        inner.start_soon(self._run_timer, name, function)

        nursery.start_soon(run_all)
        return scope

    async def _run_timer(self, name: str, function: Timer) -> None:
        async def started(*, task_status: trio.TaskStatus[None]) -> None:  # noqa: ARG001
            await function()

        await self._run(name, started, trio.Event(), task_status=trio.TASK_STATUS_IGNORED)

    async def _run(self, name: str, function: Started, ended: trio.Event, *, task_status: Any) -> None:
        try:
            await function(task_status=task_status)
            # While starting, a task may also end because another one's start has failed.
            if self._stop.is_ready:
                raise RuntimeError(f"{name} ended, and nobody had asked it to")
        except* Exception as group:
            if not self._stop.started:
                raise
            # Once the deadline has passed, connections are cut off under whoever still uses them.
            if not self._stop.unfinished:
                self._stop.crashed(name, group)
        finally:
            ended.set()


def _explain(stop: Stop, group: BaseExceptionGroup[Exception]) -> ExitCode:
    """Why the relay did not start, or died outside of every task: a sentence where it is ours, a traceback if not."""
    errors = leaves(group)
    for error in errors:
        if not stop.started and isinstance(error, (*_REFUSALS, DatabaseUnreachable)):
            log.error("the relay does not start", reason=str(error))
        else:
            log.critical("the relay crashed", exc_info=error)
    if stop.started or not errors:
        return ExitCode.CRASHED
    if all(isinstance(error, _REFUSALS) for error in errors):
        return ExitCode.REFUSED
    if all(isinstance(error, DatabaseUnreachable) for error in errors):
        return ExitCode.UNFINISHED
    return ExitCode.CRASHED
