"""One task, every connection once a period, never too many at once."""

from __future__ import annotations

from collections import Counter

import trio

from relay.websocket.heartbeat import SLICE_CONNECTIONS, run_heartbeat


class Ticked:
    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self, now: float) -> None:
        self.times.append(now)


async def test_each_connection_once_a_period_in_slices(autojump_clock: trio.testing.MockClock) -> None:
    connections = [Ticked() for _ in range(1050)]
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(run_heartbeat, lambda: connections, 30.0)
        await trio.sleep(3 * 30.0 + 1)
        nursery.cancel_scope.cancel()
    assert {len(each.times) for each in connections} == {3}
    for each in connections:
        assert all(29.9 < later - earlier < 30.1 for earlier, later in zip(each.times, each.times[1:], strict=False))
    assert max(Counter(time for each in connections for time in each.times).values()) <= SLICE_CONNECTIONS
    assert min(each.times[0] for each in connections) - started < 3


async def test_without_connections_it_waits(autojump_clock: trio.testing.MockClock) -> None:
    connections: list[Ticked] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(run_heartbeat, lambda: connections, 30.0)
        await trio.sleep(100)
        late = Ticked()
        connections.append(late)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert len(late.times) >= 1
