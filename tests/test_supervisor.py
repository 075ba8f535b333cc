"""The root nursery with stand-ins for the parts: order of start, crashes, and what the exit code says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import structlog.testing
import trio
import trio.testing

from relay import supervisor
from relay.config import Settings, load
from relay.errors import ConfigError, HeadMismatch, MigrationError
from relay.shutdown import ExitCode
from relay.watchdog import Watchdog
from tests.support.standin import StandIn


class Server:
    """A web server that is a nursery: it stops when it is told to, or misbehaves."""

    def __init__(self, told: str | None = None) -> None:
        self.told = told
        self.stopped = trio.Event()
        self.fault: Callable[[], object] | None = None

    async def serve(self, app, *, stop, task_status) -> None:
        if self.fault is not None:
            self.fault()
        task_status.started(["http://127.0.0.1:1"])
        await stop()
        self.stopped.set()

    async def wait_told_to_stop(self) -> str:
        if self.told is None:
            await trio.sleep_forever()
        assert self.told is not None
        return self.told


class Run:
    """One life of a supervisor on a real database."""

    def __init__(self, settings: Settings, relay: StandIn, server: Server | None = None) -> None:
        self.settings = settings
        self.relay = relay
        self.server = server or Server()
        self.watchdog = Watchdog(leave=lambda code: None)
        self.code: ExitCode | None = None
        self.refusal: Exception | None = None
        self.assembling: trio.Event = trio.Event()
        self.stop = None

    async def __call__(self) -> None:
        try:
            self.code = await supervisor.supervise(
                self.settings, self.server, self._assemble, watchdog=self.watchdog, own_process=False
            )
        finally:
            self.watchdog.disarm()

    @asynccontextmanager
    async def _assemble(self, settings, database, stop) -> AsyncIterator[StandIn]:
        self.stop = stop
        self.assembling.set()
        if self.refusal is not None:
            raise self.refusal
        yield self.relay


@pytest.fixture
def settings(empty_dsn) -> Settings:
    return load({"database_url": empty_dsn, "grace_seconds": 0, "audit_drain_seconds": 1, "shutdown_seconds": 4})


async def test_a_request_to_stop_ends_everything_with_zero(settings):
    run = Run(settings, StandIn())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await run.relay.ready.wait()
        assert run.relay.addresses == ["http://127.0.0.1:1"]
        run.stop.request("test")
    assert run.code is ExitCode.DRAINED
    assert run.server.stopped.is_set()
    assert "audit drained" in run.relay.names


async def test_the_launcher_can_ask_for_the_stop_too(settings):
    run = Run(settings, StandIn(), Server("asked by the parent"))
    await run()
    assert run.code is ExitCode.DRAINED


@pytest.mark.parametrize("place", ["worker", "timer", "audit"])
async def test_a_crash_of_any_task_closes_with_1011_drains_and_ends_with_70(settings, place):
    go = trio.Event()

    async def boom() -> None:
        await go.wait()
        raise ZeroDivisionError

    run = Run(settings, StandIn(**{place: boom}))
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await run.relay.ready.wait()
            go.set()
    assert run.code is ExitCode.CRASHED
    assert run.relay.closed_with == (1011, "internal error")
    assert ("audit drained" in run.relay.names) == (place != "audit")
    # The stand-in's audit ends with its only producer, and may be seen before the worker that took it along.
    crashed = [line["task"] for line in logs if line["event"] == "a supervised task crashed"]
    assert {"worker": "worker", "timer": "timer", "audit": "audit worker"}[place] in crashed


async def test_a_fault_outside_of_every_task_is_not_blamed_on_one_and_has_the_same_budget(settings, monkeypatch):
    def fail(addresses) -> None:
        raise ZeroDivisionError

    run = Run(settings, StandIn())
    monkeypatch.setattr(run.relay, "announce", fail)
    with structlog.testing.capture_logs() as logs:
        await run()
    assert run.code is ExitCode.CRASHED
    assert run.watchdog.armed
    assert not run.stop.is_ready
    assert "audit drained" in run.relay.names
    assert [line["event"] for line in logs if line["log_level"] in ("error", "critical")] == ["the relay crashed"]


async def test_a_worker_that_ends_by_itself_is_a_crash(settings):
    run = Run(settings, StandIn())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await run.relay.ready.wait()
        run.relay.work_in.close()
    assert run.code is ExitCode.CRASHED


async def test_entries_that_could_not_be_drained_end_with_75(settings):
    run = Run(settings, StandIn(entry=trio.sleep_forever))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await run.relay.ready.wait()
        run.relay.work_in.send_nowait(1)
        run.stop.request("test")
    assert run.code is ExitCode.UNFINISHED


async def test_cancellation_still_gives_the_audit_worker_its_time(settings):
    run = Run(settings, StandIn(entry=lambda: trio.sleep(0.2)))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await run.relay.ready.wait()
            for item in range(3):
                run.relay.work_in.send_nowait(item)
            await trio.testing.wait_all_tasks_blocked(0.05)
            scope.cancel()
    assert scope.cancelled_caught
    assert "audit drained" in run.relay.names


@pytest.mark.parametrize(
    "error", [ConfigError("no"), MigrationError("no"), HeadMismatch("no")], ids=lambda error: type(error).__name__
)
async def test_what_another_start_would_meet_again_is_refused_with_2_and_no_traceback(settings, error):
    run = Run(settings, StandIn())
    run.refusal = error
    with structlog.testing.capture_logs() as logs:
        await run()
    assert run.code is ExitCode.REFUSED
    line = next(line for line in logs if line["event"] == "the relay does not start")
    assert line["reason"] == "no"
    assert "exc_info" not in line


async def test_a_bug_in_the_start_is_a_crash(settings):
    run = Run(settings, StandIn())
    run.refusal = KeyError("bug")
    await run()
    assert run.code is ExitCode.CRASHED


async def test_a_web_server_that_cannot_start_stops_what_has_started(settings):
    def fail() -> None:
        raise ConfigError("no port")

    run = Run(settings, StandIn())
    run.server.fault = fail
    await run()
    assert run.code is ExitCode.REFUSED
    assert not run.relay.ready.is_set()
    assert "audit drained" in run.relay.names


async def test_a_database_that_nobody_answers_for_ends_with_75():
    nowhere = load({"database_url": "postgresql://r@127.0.0.1:1/x", "database_wait_seconds": 0.3})
    run = Run(nowhere, StandIn())
    await run()
    assert run.code is ExitCode.UNFINISHED
    assert not run.assembling.is_set()


async def test_a_stop_during_the_start_is_a_clean_end(settings):
    run = Run(settings, StandIn())

    async def slow_start(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        run.stop.request("SIGTERM")
        await trio.sleep_forever()

    run.relay._worker = slow_start.__get__(run.relay)
    await run()
    assert run.code is ExitCode.DRAINED
    assert run.watchdog.armed
    assert not run.relay.ready.is_set()
