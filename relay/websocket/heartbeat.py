"""One task that pings all connections, spread over the period.

In: the endpoint's connections. Out: `tick` on each, once a period. Slices: ten thousand pongs that come back at once
would hold up the loop for half a second, a hundred do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import trio

SLICE_CONNECTIONS = 100


class Ticked(Protocol):
    """A connection that the heartbeat looks after."""

    def tick(self, now: float) -> None: ...


async def run_heartbeat(
    connections: Callable[[], Iterable[Ticked]],
    period_seconds: float,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Ticks every connection once a period; one that came meanwhile has its turn in the next. Ends by cancellation.

    Owner: the root nursery. `tick` of a connection that has ended since must be harmless.
    """
    task_status.started()
    while True:
        now = list(connections())
        slices = [now[start : start + SLICE_CONNECTIONS] for start in range(0, len(now), SLICE_CONNECTIONS)] or [[]]
        for some in slices:
            await trio.sleep(period_seconds / len(slices))
            time = trio.current_time()
            for connection in some:
                connection.tick(time)
