"""A subscriber that stops reading beside ten that read: what the others notice, and how soon it is dropped.

The same load without and with it, by turns. From outside one sees that it was dropped by a socket less in the relay.
"""

from __future__ import annotations

import os
import time
from uuid import uuid4

from scripts.benchmarks.client import Client, Poller, key, masked, split_frames
from scripts.benchmarks.load import frame_bytes, quantile, subscribe
from scripts.benchmarks.meter import Figures
from scripts.benchmarks.scene import Place, Rooms
from scripts.benchmarks.target import Target

HEALTHY = 10
CONTENT_BYTES = 4000
SECONDS = 9.0
"""Longer than a client may stand still (5 s by default), and a while after."""
PERIOD_SECONDS = 0.002
"""One event in so many: a fixed rate, so that the load is the same on both sides."""
KERNEL_BYTES = 16_384
"""What the stopped client's own kernel takes in; the relay's kernel takes in what it likes."""


def stopped(target: Target) -> Figures:
    assert target.pid, "stopped: needs the relay's process id (--pid)"
    scene = Rooms(target)
    [publisher] = scene.connect([0])
    healthy = scene.connect(range(1, HEALTHY + 1))
    place = scene.place(publisher, range(1, HEALTHY + 2))
    subscribe(place, healthy)
    text = uuid4().hex[:12] + " " + "x" * CONTENT_BYTES
    size = frame_bytes(place, publisher, healthy, f"{0:06} {text}")
    _run(target, place, publisher, healthy, text, size, seconds=1)  # warm
    memory = target.rss_kib()
    without = _run(target, place, publisher, healthy, text, size)
    grown = target.rss_kib() - memory
    deaf = Client(target.host, target.port, key(HEALTHY + 1), buffer_bytes=KERNEL_BYTES)
    subscribe(place, [deaf])
    memory = target.rss_kib()
    beside = _run(target, place, publisher, healthy, text, size)
    for client in (publisher, *healthy, deaf):
        client.close()
    assert beside.dropped_seconds is not None, "the client that stopped reading was not dropped"
    return {
        "dropped_after_seconds": beside.dropped_seconds,
        "healthy_p50_ms_without": 1000 * quantile(without.taken, 0.5),
        "healthy_p50_ms_beside": 1000 * quantile(beside.until_dropped, 0.5),
        "healthy_p99_ms_without": 1000 * quantile(without.taken, 0.99),
        "healthy_p99_ms_beside": 1000 * quantile(beside.until_dropped, 0.99),
        "healthy_p99_ratio": quantile(beside.until_dropped, 0.99) / quantile(without.taken, 0.99),
        "relay_kib_grown_without": float(grown),
        "relay_kib_most_grown_beside": float(beside.rss_kib_most - memory),
    }


class _Seen:
    def __init__(self) -> None:
        self.taken: list[float] = []
        self.until_dropped: list[float] = []
        self.dropped_seconds: float | None = None
        self.rss_kib_most = 0


def _sockets(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _run(
    target: Target, place: Place, publisher: Client, healthy: list[Client], text: str, size: int, *,
    seconds: float = SECONDS,
) -> _Seen:  # fmt: skip
    """Publishes at a fixed rate for a while and waits for all deliveries to the healthy."""
    assert target.pid is not None
    events = int(seconds / PERIOD_SECONDS)
    frames = [masked(place.frame(publisher, f"{n:06} {text}")) for n in range(1, events + 1)]
    seen = _Seen()
    sent_at: list[float] = []
    have = dict.fromkeys(healthy, 0)
    answered = 0

    def on_data(client: Client, data: bytes) -> None:
        nonlocal answered
        oks, client.rest = split_frames(client.rest + data)
        assert all(b",true," in ok for ok in oks), oks
        answered += len(oks)

    def on_size(client: Client, count: int) -> None:
        now = time.perf_counter()
        had = have[client]
        have[client] = had + count
        for number in range(had // size, (had + count) // size):
            seen.taken.append(now - sent_at[number])

    poller = Poller([publisher], on_data, counted=healthy, on_size=on_size)
    sockets, looked = _sockets(target.pid), 0.0
    started = time.perf_counter()
    while answered < events or any(count < events * size for count in have.values()):
        now = time.perf_counter()
        assert now - started < seconds + 60, "the relay did not answer in time"
        while len(sent_at) < events and now >= started + len(sent_at) * PERIOD_SECONDS:
            publisher.sock.setblocking(True)
            sent_at.append(time.perf_counter())
            publisher.sock.sendall(frames[len(sent_at) - 1])
            publisher.sock.setblocking(False)
        poller.poll(PERIOD_SECONDS / 4)
        if now - looked > 0.05:
            looked = now
            seen.rss_kib_most = max(seen.rss_kib_most, target.rss_kib())
            if seen.dropped_seconds is None and _sockets(target.pid) < sockets:
                seen.dropped_seconds = now - started
                seen.until_dropped = list(seen.taken)
    poller.close()
    seen.until_dropped = seen.until_dropped or seen.taken
    return seen
