"""A reachable place, a finished cluster that is copied for each test, and a relay process to kill."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from relay.embedded import cluster, embedded_postgres
from relay.embedded.binaries import candidates
from tests.support.postgres import in_memory

RELAY = Path(__file__).parents[1] / "support" / "embedded_relay.py"


def psql(dsn: str, statement: str) -> str:
    done = subprocess.run(
        [candidates()[0] / "psql", "-XAtq", "-d", dsn, "-c", statement], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextlib.contextmanager
def reachable_directory() -> Iterator[Path]:
    """pytest's own temporary directories are 0700: the server's account could not enter them."""
    path = Path(tempfile.mkdtemp(prefix="relay-embedded-", dir=in_memory(512 << 20)))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def place() -> Iterator[Path]:
    with reachable_directory() as path:
        yield path


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    async def make() -> None:
        async with embedded_postgres(path / "data"):
            pass

    with reachable_directory() as path:
        trio.run(make)
        with (path / "data" / "postgres" / "postgresql.conf").open("a") as file:
            # A killed server leaves its shared memory until its next start: let it leave it in the test's directory.
            file.write("dynamic_shared_memory_type = mmap\n")
        yield path / "data"


@pytest.fixture
def data_dir(template: Path, place: Path) -> Iterator[Path]:
    """A data directory with a cluster that was stopped cleanly: what a second start finds."""
    subprocess.run(["cp", "-a", template, place / "data"], check=True)
    yield place / "data"
    with contextlib.suppress(FileNotFoundError):
        # Killed and not started again: its System V segment (key and id in the seventh line) would stay for ever.
        _, identifier = cluster.pid_file(place / "data").read_text().split("\n")[6].split()
        subprocess.run(["ipcrm", "-m", identifier], check=False, capture_output=True)


class RelayProcess:
    """See tests/support/embedded_relay.py. `ready` is the line that it printed."""

    def __init__(self, data_dir: Path, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, RELAY, data_dir, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def wait_ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        self.ready: dict[str, Any] = json.loads(self.process.stdout.readline())
        return self.ready

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def relay_process() -> Iterator[Callable[..., RelayProcess]]:
    started: list[RelayProcess] = []

    def start(data_dir: Path, *arguments: str | Path) -> RelayProcess:
        started.append(RelayProcess(data_dir, *arguments))
        return started[-1]

    yield start
    for relay in started:
        relay.close()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="switches accounts, which only root may")
