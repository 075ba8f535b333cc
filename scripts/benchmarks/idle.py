"""Ten thousand connections that only answer pings: memory of each, and what they take of a core."""

from __future__ import annotations

import time

from scripts.benchmarks.client import Client, Poller
from scripts.benchmarks.meter import Figures, rss_kib, use
from scripts.benchmarks.scene import Rooms
from scripts.benchmarks.target import Target

CONNECTIONS = 10_000
SECONDS = 65.0
"""Two periods of the relay's ping, and a little."""
PING, PONG = 0x89, b"\x8a\x80\0\0\0\0"


def idle(target: Target, *, connections: int = CONNECTIONS, seconds: float = SECONDS) -> Figures:
    """Logged in, no subscription."""
    assert target.pid, "idle: needs the relay's process id (--pid)"
    scene = Rooms(target)
    for client in scene.connect(range(50)):
        client.close()
    time.sleep(1)
    memory = rss_kib(target.pid)
    database = rss_kib(target.pid, postgres=True)
    clients: list[Client] = []
    pings = 0

    def on_data(client: Client, data: bytes) -> None:
        nonlocal pings
        # A relay's pings carry at most a few bytes; nothing else comes to a client without subscriptions.
        at = 0
        while at < len(data):
            assert data[at] == PING, data
            size = data[at + 1]
            payload = data[at + 2 : at + 2 + size]
            client.sock.send(PONG[:1] + bytes((0x80 | size,)) + PONG[2:] + payload)
            pings += 1
            at += 2 + size

    opened = time.perf_counter()
    # In groups, and those that are open answer their pings meanwhile.
    for start in range(0, connections, 1000):
        clients += scene.connect(range(start, min(connections, start + 1000)))
        poller = Poller(clients, on_data)
        poller.poll(0)
        poller.close()
    opened = time.perf_counter() - opened
    poller = Poller(clients, on_data)
    poller.poll(0.1)
    grown = rss_kib(target.pid) - memory
    pings = 0
    before = use(target.pid)
    deadline = time.perf_counter() + seconds
    while (left := deadline - time.perf_counter()) > 0:
        poller.poll(left)
    used = use(target.pid) - before
    after = rss_kib(target.pid) - memory
    poller.close()
    for client in clients:
        client.close()
    return {
        "idle_kib_per_connection": grown / connections,
        "idle_kib_per_connection_after_pings": after / connections,
        "relay_mib": rss_kib(target.pid) / 1024,
        "relay_mib_before": memory / 1024,
        "postgres_own_mib": database / 1024,
        "pings_per_connection": pings / connections,
        "connects_per_second": connections / opened,
        **used.shares(),
    }
