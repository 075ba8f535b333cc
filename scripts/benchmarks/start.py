"""From exec to readiness 200, on a data directory that was used before."""

from __future__ import annotations

import time

from scripts.benchmarks.client import Client, key
from scripts.benchmarks.load import store
from scripts.benchmarks.meter import Figures, use
from scripts.benchmarks.scene import Rooms
from scripts.benchmarks.target import serving, temporary_base

POLL_SECONDS = 0.005
STORED = 2000


def run(runs: int) -> list[Figures]:
    """The first start makes the cluster and stores some events; those after it are measured, to the first login too."""
    figures = []
    with temporary_base() as base:
        started = time.perf_counter()
        with serving(base, poll_seconds=POLL_SECONDS) as relay:
            first = time.perf_counter() - started
            [client] = Rooms(relay).connect([0])
            store(Rooms(relay).place(client), client, STORED)
            client.close()
        for _ in range(runs):
            started = time.perf_counter()
            with serving(base, poll_seconds=POLL_SECONDS) as relay:
                ready = time.perf_counter() - started
                used = use(relay.pid)
                Client(relay.host, relay.port, key(0)).close()
                login = time.perf_counter() - started
                stopping = time.perf_counter()
            figures.append(
                {
                    "ready_seconds": ready,
                    "login_seconds": login,
                    "relay_cpu_seconds": used.relay_seconds,
                    "postgres_cpu_seconds": used.postgres_seconds,
                    "stop_seconds": time.perf_counter() - stopping,
                    "first_start_seconds": first,
                }
            )
    return figures
