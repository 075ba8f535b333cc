"""The last resort of a stop: a thread that ends the process at its deadline, whatever the event loop is doing.

Everything else about stopping is structured and has deadlines of its own; this is for what no deadline of an event loop
can reach: a loop that is blocked in one task, a thread that will not end, an interpreter that hangs while it shuts
down. It is not a task on purpose, and it is the only thread that the relay starts itself.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable

STACK_CALLS = 12


class Watchdog:
    """Armed once, when the budget of the stop begins to run; never disarmed, since a finished process needs none.

    Args:
        before_exit: Called in the thread just before the end; kills what would outlive us. May fail.
        leave: Ends the process; tests put something else here.
    """

    def __init__(
        self, *, before_exit: Callable[[], None] = lambda: None, leave: Callable[[int], None] = os._exit
    ) -> None:
        self.before_exit = before_exit
        self._leave = leave
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def arm(self, seconds: float, exit_code: Callable[[], int]) -> None:
        """Start counting. `exit_code` is asked at the end, in the thread. A second call changes nothing."""
        assert seconds > 0
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(seconds, exit_code), name="shutdown watchdog", daemon=True
            )
            self._thread.start()

    @property
    def armed(self) -> bool:
        return self._thread is not None

    def disarm(self) -> None:
        """For tests, where the process goes on."""
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, seconds: float, exit_code: Callable[[], int]) -> None:
        if self._wake.wait(seconds):
            return
        # Neither a lock nor the log machinery: whoever hangs may hold any of them.
        _say(f"relay: still running {seconds:g} s after the stop began, ending the process now\n")
        try:
            self.before_exit()
            _show_stacks()
        finally:
            self._leave(exit_code())


def _show_stacks() -> None:
    """Where the other threads are: the innermost calls, since what hangs is there."""
    for thread_id, frame in sys._current_frames().items():
        if thread_id != threading.get_ident():
            _say("".join(traceback.format_stack(frame)[-STACK_CALLS:]))


def _say(text: str) -> None:
    try:
        os.write(2, text.encode(errors="replace"))
    except OSError:  # nobody reads standard error any more
        return
