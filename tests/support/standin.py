"""A relay without its parts: what the supervisor starts and stops, made of real channels, with switches for faults."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio


class StandIn:
    """Counts and times what the script does. `faults` are awaited at the named place: audit, worker, timer, close."""

    def __init__(self, **faults: Callable[[], Awaitable[None]]) -> None:
        self.faults = faults
        self.log: list[tuple[str, float]] = []
        self.began = trio.current_time()
        self.queued = 0
        self.left = 0
        self.closed_with: tuple[int, str] | None = None
        self.addresses: Sequence[str] = ()
        self.ready = trio.Event()
        self.work_in, self.work_out = trio.open_memory_channel[int](100)
        self.entries_in, self.entries_out = trio.open_memory_channel[int](1000)
        self.audit_scope = trio.CancelScope(shield=True)
        self.audit_deadline = math.inf

    # -- running -----------------------------------------------------------------------------------------------------

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def audit(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.audit_scope:
            task_status.started()
            await self._fault("audit")
            async for _ in self.entries_out:
                await self._fault("entry")
            self.note("audit drained")
        self.left = self.entries_out.statistics().current_buffer_used
        if self.audit_scope.cancelled_caught:
            self.note("audit deadline")

    @property
    def workers(self) -> Sequence[tuple[str, Any]]:
        return [("worker", self._worker)]

    @property
    def timers(self) -> Sequence[tuple[str, Any]]:
        return [("timer", self._timer)]

    @property
    def listeners(self) -> Sequence[tuple[str, Any]]:
        return [("listener", self._listener)]

    async def _listener(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def _worker(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async with self.entries_in:
            await self._fault("worker")
            async for item in self.work_out:
                await self._fault("work")
                await self.entries_in.send(item)
            self.note("worker ended")

    async def _timer(self) -> None:
        await self._fault("timer")
        await trio.sleep_forever()

    def announce(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        self.ready.set()

    # -- stopping ----------------------------------------------------------------------------------------------------

    def refuse_new_work(self) -> None:
        self.note("refuse")

    async def close_connections(self, code: int, reason: str) -> None:
        self.closed_with = (code, reason)
        self.note("close")
        await self._fault("close")
        self.note("closed")

    def end_input(self) -> None:
        self.note("end input")
        self.work_in.close()

    def drain_audit_until(self, deadline: float) -> None:
        if self.audit_deadline == math.inf:
            self.audit_deadline = self.audit_scope.deadline = deadline
            self.note("audit deadline set")

    def abort(self) -> None:
        self.note("abort")

    async def seal(self) -> None:
        self.note("seal")
        await self._fault("seal")
        self.note("sealed")

    def drain_result(self) -> tuple[bool, int]:
        return "audit deadline" not in self.names, self.left

    # -- for the tests -----------------------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        self.log.append((what, round(trio.current_time() - self.began, 2)))

    def at(self, what: str) -> float:
        """When it happened first, seconds after the stand-in was made."""
        return next(when for name, when in self.log if name == what)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.log]

    async def _fault(self, place: str) -> None:
        if place in self.faults:
            await self.faults[place]()
