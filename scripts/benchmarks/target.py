"""The relay to be measured: one that runs already, or one started here on a core of its own.

A relay that is started here has its PostgreSQL on the same core, so that a figure is what one core does; with
`postgres="free"` PostgreSQL may run wherever the system puts it, beside the generator too.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.benchmarks import meter

RELAY_CORE, GENERATOR_CORE = 0, 1
ALL_CORES: Collection[int] = os.sched_getaffinity(0)
RATES = ("SPROUT_RATE_MESSAGES", "SPROUT_RATE_EVENTS", "SPROUT_RATE_REQUESTS", "SPROUT_RATE_CONNECTIONS")

READY_POLL_SECONDS = 0.05


@dataclass
class Target:
    """Where the relay is; `pid` where it is on this machine and known, the rest only for one that was started here."""

    host: str
    port: int
    pid: int | None = None
    data_dir: Path | None = None
    metrics_port: int | None = None
    path: str = "/"
    rss_before: int | None = None
    """KiB before the first run that looks at memory: later ones take what earlier ones gave back."""

    @property
    def url(self) -> str:
        return f"ws://{self.host}:{self.port}{self.path.rstrip('/')}"

    def rss_kib(self) -> int:
        """Resident memory of the relay's process, without PostgreSQL."""
        assert self.pid is not None
        return meter.rss_kib(self.pid)

    def cpu_seconds(self) -> float:
        """CPU time of the relay's process and its children that still run (PostgreSQL)."""
        assert self.pid is not None
        used = meter.use(self.pid)
        return used.relay_seconds + used.postgres_seconds

    def metrics(self) -> dict[str, float]:
        """What the relay counts of itself; empty where it is not known how to ask."""
        return meter.scrape(self.metrics_port) if self.metrics_port else {}

    def dsn(self) -> str | None:
        """Its PostgreSQL, if we started it."""
        from relay.embedded import cluster

        return cluster.dsn(cluster.socket_dir_of(self.data_dir)) if self.data_dir else None


def pin(core: int) -> None:
    """Puts this process on one core, where there is more than one."""
    if len(ALL_CORES) > 1:
        os.sched_setaffinity(0, {core})


def raise_file_limit() -> None:
    """As many sockets as the system allows; a relay started after this has the same limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path, poll_seconds: float) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as sock:
                sock.sendall(b"GET /_readiness HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if b" 200 " in sock.recv(100):
                    return
        except OSError:
            pass
        time.sleep(poll_seconds)
    raise AssertionError(log.read_text())


@contextmanager
def temporary_base() -> Iterator[Path]:
    """A directory that the account of an embedded PostgreSQL can reach; removed at the end."""
    base = Path(tempfile.mkdtemp(prefix="relay-bench-"))
    base.chmod(0o755)
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


@contextmanager
def serving(base: Path, poll_seconds: float = READY_POLL_SECONDS, **settings: str) -> Iterator[Target]:
    """A relay on the data in `base`, pinned with its PostgreSQL to one core; entered when it is ready."""
    port, metrics_port = free_port(), free_port()
    environment = os.environ | {
        "RELAY_URL": f"ws://127.0.0.1:{port}",
        "SPROUT_BIND_ADDR": f"127.0.0.1:{port}",
        "SPROUT_DATA_DIR": str(base / "data"),
        "SPROUT_HEALTH_PORT": "0",
        "SPROUT_METRICS_PORT": str(metrics_port),
        "SPROUT_LOG_LEVEL": "warning",
        # The load has a handful of keys and one address.
        **dict.fromkeys(RATES, "0"),
        **settings,
    }
    log = base / "relay.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "relay", "serve"],
            env=environment,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: pin(RELAY_CORE),
        )
    try:
        _wait_ready(process, port, log, poll_seconds)
        yield Target("127.0.0.1", port, process.pid, base / "data", metrics_port)
    except (AssertionError, OSError):
        sys.stderr.write(log.read_text()[-4000:])
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def running(url: str, pid: int | None = None) -> Target:
    """A relay that runs already, at ws://host:port/path."""
    parts = urlsplit(url)
    if parts.scheme != "ws" or parts.hostname is None:
        raise SystemExit(f"{url}: not a ws:// address")
    return Target(parts.hostname, parts.port or 80, pid, path=parts.path or "/")


@contextmanager
def target(url: str | None, *, pid: int | None = None, postgres: str = "same", **settings: str) -> Iterator[Target]:
    """The relay at `url`, or a fresh one with its own PostgreSQL in a temporary directory."""
    if url is not None:
        yield running(url, pid)
        return
    with temporary_base() as base, serving(base, READY_POLL_SECONDS, **settings) as started:
        if postgres == "free":
            place_postgres(started, ALL_CORES)
        yield started


def place_postgres(relay: Target, cores: Collection[int]) -> None:
    """Where PostgreSQL may run from now on; those that come later are the postmaster's children and inherit from it."""
    assert relay.pid is not None
    for member in meter.postgres_pids(relay.pid):
        with suppress(OSError):
            os.sched_setaffinity(member, cores)
