"""The script of a stop, phase by phase, on a clock that jumps: every deadline is exact."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest
import trio
import trio.testing

from relay import shutdown
from relay.config import Settings
from relay.shutdown import Ends, ExitCode, Stop, run_script, stop_signals
from relay.watchdog import Watchdog
from tests.support.standin import StandIn


def _settings(**changes: object) -> Settings:
    return Settings(grace_seconds=0).model_copy(update=changes)


def _stop() -> Stop:
    return Stop(Watchdog(leave=lambda code: None), 8)


class _Run:
    """The script over a stand-in, with its tasks in a nursery, as the supervisor has them."""

    def __init__(self, relay: StandIn, **settings: object) -> None:
        self.relay = relay
        self.settings = _settings(**settings)
        self.stop = _stop()
        self.http_takes = 0.0
        self.accepting_ended_at = -1.0

    async def __call__(self) -> None:
        relay = self.relay
        ends = Ends(trio.Event(), trio.Event(), [trio.Event()], trio.Event(), trio.CancelScope())
        async with trio.open_nursery() as audit:
            audit.start_soon(self._ended, relay.audit, ends.audit)
            async with trio.open_nursery() as root:
                root.start_soon(self._ended, relay.workers[0][1], next(iter(ends.workers)))
                root.start_soon(self._http, ends)
                self.stop.ready()
                try:
                    await run_script(self.stop, self.settings, relay, ends)
                finally:
                    self.stop.watchdog.disarm()
                root.cancel_scope.cancel()
        await shutdown.seal(relay)
        shutdown.finish(self.stop, relay)

    async def _ended(self, function, event: trio.Event) -> None:
        await function()
        event.set()

    async def _http(self, ends: Ends) -> None:
        await ends.stop_accepting.wait()
        self.accepting_ended_at = trio.current_time() - self.relay.began
        with trio.move_on_after(self.settings.close_seconds):
            await trio.sleep(self.http_takes)
        ends.http.set()


async def test_an_orderly_stop_drains_in_order_and_takes_no_time(autojump_clock):
    run = _Run(StandIn())
    for item in range(50):
        run.relay.work_in.send_nowait(item)
    run.stop.request("test")
    await run()
    assert run.relay.names == [
        "audit deadline set", "refuse", "close", "closed", "end input", "worker ended", "audit drained", "seal",
        "sealed",
    ]  # fmt: skip
    assert {when for _, when in run.relay.log} == {0.0}
    assert run.stop.exit_code is ExitCode.DRAINED
    assert run.relay.closed_with == (1012, "the relay is restarting")


async def test_accepting_ends_and_the_audit_deadline_starts_in_the_instant_after_the_grace(autojump_clock):
    run = _Run(StandIn(), grace_seconds=5)
    readiness_during_grace = []

    async def look() -> None:
        await trio.sleep(3)
        readiness_during_grace.append(run.stop.is_ready)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        run.stop.request("test")
        await run()
    assert readiness_during_grace == [False]
    assert run.accepting_ended_at == 5
    assert run.relay.audit_deadline == run.relay.began + 10


async def test_connections_that_do_not_end_cost_two_seconds_and_the_drain_goes_on_beside_them(autojump_clock):
    run = _Run(StandIn(close=trio.sleep_forever))
    run.http_takes = 100
    for item in range(10):
        run.relay.work_in.send_nowait(item)
    run.stop.request("test")
    await run()
    assert run.relay.at("end input") == pytest.approx(2.1)
    assert run.relay.at("audit drained") == pytest.approx(2.1)
    assert run.stop.exit_code is ExitCode.DRAINED


@pytest.mark.parametrize("place", ["entry", "work"])
async def test_what_cannot_be_drained_in_five_seconds_is_left_to_the_outbox(place, autojump_clock):
    run = _Run(StandIn(**{place: trio.sleep_forever}))
    for item in range(10):
        run.relay.work_in.send_nowait(item)
    run.stop.request("test")
    await run()
    assert trio.current_time() - run.relay.began <= 5.5
    assert run.stop.exit_code is ExitCode.UNFINISHED
    assert run.relay.at("abort") <= 5.5


async def test_the_last_checkpoint_comes_after_the_drain_and_has_a_deadline_of_its_own(autojump_clock):
    relay = StandIn(seal=trio.sleep_forever)
    run = _Run(relay)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        run.stop.request("test")
    assert relay.names[-2:] == ["audit drained", "seal"]
    assert trio.current_time() - relay.began == pytest.approx(0.3)
    assert run.stop.exit_code is ExitCode.DRAINED


async def test_a_worker_that_gave_up_by_itself_has_its_connections_cut_off_before_the_last_checkpoint(autojump_clock):
    """It ends a moment before the script would: the pools must not say farewell to a server that is silent."""
    relay = StandIn(audit=trio.sleep_forever)
    run = _Run(relay)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        run.stop.request("test")
    assert relay.at("abort") == pytest.approx(5.0)
    assert relay.names.index("abort") < relay.names.index("seal")
    assert run.stop.exit_code is ExitCode.UNFINISHED


async def test_a_crash_waits_for_no_load_balancer_and_tells_clients_so(autojump_clock):
    run = _Run(StandIn(), grace_seconds=30)
    run.stop.ready()
    run.stop.crashed("fan-out", ValueError("boom"))
    await run()
    assert trio.current_time() - run.relay.began < 1
    assert run.relay.closed_with == (1011, "internal error")
    assert run.stop.exit_code is ExitCode.CRASHED


async def test_a_crash_during_the_grace_ends_the_grace(autojump_clock):
    run = _Run(StandIn(), grace_seconds=30)

    async def crash() -> None:
        await trio.sleep(2)
        run.stop.crashed("commit task", ValueError("boom"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(crash)
        run.stop.request("SIGTERM")
        await run()
    assert trio.current_time() - run.relay.began == pytest.approx(2, abs=0.1)
    assert run.stop.exit_code is ExitCode.CRASHED


async def test_a_second_request_changes_nothing(autojump_clock):
    run = _Run(StandIn(close=lambda: trio.sleep(1)))

    async def again() -> None:
        await trio.sleep(0.5)
        run.stop.request("SIGTERM")
        run.stop.request("SIGINT")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(again)
        run.stop.request("SIGTERM")
        await run()
    assert run.relay.names.count("close") == 1
    assert run.relay.at("closed") == 1
    assert run.stop.exit_code is ExitCode.DRAINED


async def test_a_request_while_starting_cancels_the_start():
    stop = _stop()
    with stop.start_scope:
        stop.request("SIGTERM")
        await trio.sleep_forever()
    assert stop.start_scope.cancelled_caught
    assert stop.watchdog.armed
    assert not stop.is_ready
    stop.watchdog.disarm()


async def test_signals_arrive_and_are_harmless_before_and_after():
    before = {number: signal.getsignal(number) for number in shutdown.STOP_SIGNALS}
    try:
        with stop_signals(ignore_afterwards=True) as received:
            signal.raise_signal(signal.SIGTERM)
            assert await anext(received) == signal.SIGTERM
            signal.raise_signal(signal.SIGINT)
            assert await anext(received) == signal.SIGINT
            signal.raise_signal(signal.SIGTERM)  # nobody takes this one any more
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in shutdown.STOP_SIGNALS)
        signal.raise_signal(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked(0.01)  # what was still on its way is raised again, and ignored
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_watchdog_ends_a_process_whose_event_loop_is_blocked():
    program = """
        import time, trio
        from relay.watchdog import Watchdog
        def deeper(steps):
            if steps:
                deeper(steps - 1)
            else:
                stuck()
        def stuck():
            time.sleep(60)
        async def main():
            Watchdog().arm(0.3, lambda: 75)
            deeper(40)
        trio.run(main)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    assert done.returncode == 75
    assert b"still running 0.3 s after the stop began" in done.stderr
    assert b"in stuck" in done.stderr  # the place itself, however deep it is


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_watchdog_leaves_even_when_its_last_act_fails():
    codes = []

    def fail() -> None:
        raise RuntimeError("nothing left to kill")

    watchdog = Watchdog(before_exit=fail, leave=codes.append)
    watchdog.arm(0.01, lambda: 70)
    thread = watchdog._thread
    assert thread is not None
    thread.join(5)
    assert codes == [70]
