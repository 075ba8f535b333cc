"""Whether clients are still there: one task that pings all connections, and what each of them remembers of it.

In: the endpoint's connections. Out: `tick` on each, once a period; a connection asks its `Pulse` then, and ends where
that says so. Slices: ten thousand pongs that come back at once would hold up the loop for half a second, a hundred do
not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from relay.fanout.outbound import Outbound
from relay.nostr.messages import ws_frame
from relay.websocket.connection import Connection

SLICE_CONNECTIONS = 100
PING_FRAME = ws_frame(b"", opcode=9)
# The third tick without an answer to the two pings before it: the original's rule, about 60 s with its 30 s period.
UNANSWERED_PINGS_MAX = 2


class Pulse:
    """One client: pings it, and counts the pings that it leaves unanswered.

    Any input counts, not only a pong: a client in the middle of a long message cannot answer. Silence counts only while
    the connection's task was waiting for input, and not while the peer takes what we send.
    """

    __slots__ = ("_connection", "_outbound", "_unanswered", "last_tick")

    def __init__(self, connection: Connection, outbound: Outbound) -> None:
        self._connection = connection
        self._outbound = outbound
        self._unanswered = 0
        self.last_tick = 0.0

    def tick(self, now: float) -> bool:
        """Looks whether the last pings were answered, and sends the next one; False where too many were not."""
        connection, outbound = self._connection, self._outbound
        silent = connection.waiting and not connection.heard and outbound.last_progress < self.last_tick
        connection.heard = False
        self.last_tick = now
        if outbound.statistics().queued_bytes:
            return True  # a ping would wait behind the rest; whether the peer takes that is watched more closely
        if not silent:
            self._unanswered = 0
        elif self._unanswered >= UNANSWERED_PINGS_MAX:
            return False
        self._unanswered += 1
        outbound.offer(PING_FRAME)
        return True


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
