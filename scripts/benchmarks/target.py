"""The relay to be measured: one that runs already, or one started here on a core of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

RELAY_CORE, GENERATOR_CORE = 0, 1
RATES = ("SPROUT_RATE_MESSAGES", "SPROUT_RATE_EVENTS", "SPROUT_RATE_REQUESTS", "SPROUT_RATE_CONNECTIONS")


@dataclass
class Target:
    """Where the relay is; `pid` and `data_dir` only for one that was started here."""

    host: str
    port: int
    pid: int | None = None
    data_dir: Path | None = None

    def rss_kib(self) -> int:
        """Resident memory of the relay's process, without PostgreSQL."""
        assert self.pid is not None
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")

    def cpu_seconds(self) -> float:
        """CPU time of the relay's process and its children that still run (PostgreSQL)."""
        assert self.pid is not None
        ticks = 0
        wanted = {self.pid}
        stats = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                stats.append((int(entry.name), int(fields[1]), int(fields[11]) + int(fields[12])))
        for _ in range(3):  # the postmaster is a child, its backends are grandchildren
            wanted |= {pid for pid, parent, _ in stats if parent in wanted}
        ticks = sum(used for pid, _, used in stats if pid in wanted)
        return ticks / os.sysconf("SC_CLK_TCK")


def pin(core: int) -> None:
    """Puts this process on one core, where there is more than one."""
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {core})


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
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
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@contextmanager
def target(url: str | None, **settings: str) -> Iterator[Target]:
    """The relay at `url`, or a fresh one with its own PostgreSQL in a temporary directory, both on one core."""
    if url is not None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        yield Target(parts.hostname, parts.port or 80)
        return
    base = Path(tempfile.mkdtemp(prefix="relay-bench-"))
    base.chmod(0o755)
    port = free_port()
    environment = os.environ | {
        "RELAY_URL": f"ws://127.0.0.1:{port}",
        "SPROUT_BIND_ADDR": f"127.0.0.1:{port}",
        "SPROUT_DATA_DIR": str(base / "data"),
        "SPROUT_HEALTH_PORT": "0",
        "SPROUT_METRICS_PORT": "0",
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
        _wait_ready(process, port, log)
        yield Target("127.0.0.1", port, process.pid, base / "data")
    except (AssertionError, OSError):
        sys.stderr.write(log.read_text()[-4000:])
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(base, ignore_errors=True)
