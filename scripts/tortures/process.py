"""A relay that is started, killed and started again on one data directory; and somebody who watches its readiness."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from relay.audit.checkpoint_file import FILE_NAME
from relay.embedded import cluster
from relay.embedded.process import living_in
from scripts.benchmarks.target import RATES, free_port

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 60.0
VERIFY_SECONDS = 120.0
PROBE_SECONDS = 0.01

_BIN = Path(sys.executable).parent
_BIND = "127.0.0.1:{port}"
FORMS: Mapping[str, tuple[str, ...]] = {
    "relay serve": (str(_BIN / "relay"), "serve"),
    "python -m relay": (sys.executable, "-m", "relay"),
    "hypercorn -c": (str(_BIN / "hypercorn"), "-c", str(ROOT / "hypercorn.toml"), "-b", _BIND, "relay.asgi:app"),
    "hypercorn -w 0": (str(_BIN / "hypercorn"), "-k", "trio", "-w", "0", "-b", _BIND, "relay.asgi:app"),
    "hypercorn -w 1": (str(_BIN / "hypercorn"), "-k", "trio", "-w", "1", "-b", _BIND, "relay.asgi:app"),
}


class NotReadyError(Exception):
    """The relay ended at its start, or takes for ever; the text is the end of its log."""


@dataclass
class Relay:
    """The data directory with whatever process serves it at the moment. The log is one file for all of them."""

    base: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    command: Sequence[str] = (sys.executable, "-m", "relay", "serve")
    """How the next process is started, in `base`."""
    settings: dict[str, str] = field(default_factory=dict)
    """Over those that every relay here has."""
    own_dsn: str | None = None
    """For questions, where the database is not the embedded one."""
    others: list[Relay] = field(default_factory=list)
    """On the same database."""

    @property
    def data_dir(self) -> Path:
        return self.base / "data"

    @property
    def log_path(self) -> Path:
        return self.base / "relay.log"

    @property
    def _environment(self) -> dict[str, str]:
        # An operator's own settings, and his database above all, are none of this.
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return inherited | {
            "PYTHONPATH": str(ROOT),
            "RELAY_URL": f"ws://127.0.0.1:{self.port}",
            "SPROUT_BIND_ADDR": f"127.0.0.1:{self.port}",
            "SPROUT_DATA_DIR": str(self.data_dir),
            "SPROUT_HEALTH_PORT": "0",
            "SPROUT_METRICS_PORT": "0",
            "SPROUT_LOG_LEVEL": "info",
            "SPROUT_LOG_FORMAT": "json",
            # A few keys write as fast as they can, all of them from one address.
            **dict.fromkeys(RATES, "0"),
            **self.settings,
        }

    @property
    def dsn(self) -> str:
        """Where the database can be asked, by us."""
        return self.own_dsn or cluster.dsn(cluster.socket_dir_of(self.data_dir))

    def spawn(self) -> None:
        assert self.process is None
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [part.format(port=self.port) for part in self.command],
                env=self._environment, cwd=self.base, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def start(self) -> float:
        """Returns when it is ready: how many seconds that took."""
        began = time.monotonic()
        self.spawn()
        assert self.process is not None
        while readiness(self.port, 5) != 200:
            if self.process.poll() is not None or time.monotonic() > began + READY_SECONDS:
                raise NotReadyError(self.last_words())
            time.sleep(PROBE_SECONDS)
        return time.monotonic() - began

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Safe in any thread; nothing happens to a process that has ended. `group`: as a terminal does it."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        if group:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        else:
            process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit code (negative: a signal)."""
        assert self.process is not None
        code = self.process.wait(seconds)
        self.process = None
        return code

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.wait(10)

    def postmaster(self) -> int:
        return int((self.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])

    def postgres(self) -> list[int]:
        """Every process of the embedded server."""
        return living_in(self.data_dir / "postgres")

    def verify(self) -> tuple[int, str]:
        """`relay audit verify`: exit code and everything it said."""
        done = subprocess.run(
            [sys.executable, "-m", "relay", "audit", "verify"],
            env=self._environment | ({"DATABASE_URL": self.own_dsn} if self.own_dsn else {}),
            cwd=self.base, capture_output=True, text=True, timeout=VERIFY_SECONDS, check=False,
        )  # fmt: skip
        return done.returncode, (done.stdout + done.stderr).strip()

    def checkpoint_files(self) -> list[Path]:
        """Its own, and those of other relays on the same database."""
        return [*self.base.glob(f"data/{FILE_NAME}"), *self.base.glob(f"*/data/{FILE_NAME}")]

    def crashes(self) -> list[str]:
        """Lines of the log that tell of a bug, whoever was killed meanwhile."""
        logs = [relay.log_path for relay in (self, *self.others) if relay.log_path.exists()]
        lines = [line for path in logs for line in path.read_text(errors="replace").splitlines()]
        return [line[:600] for line in lines if "a supervised task crashed" in line or line.startswith("Traceback")]

    def last_words(self) -> str:
        return self.log_path.read_text(errors="replace")[-4000:]

    def end(self) -> None:
        """Nothing of it is left afterwards."""
        for other in self.others:
            other.end()
        self.signal(signal.SIGKILL, group=True)  # Hypercorn's worker too
        self.kill()
        for pid in self.postgres():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def fresh_relay(*, keep: bool = False) -> Iterator[Relay]:
    """On a temporary directory that the embedded server's account may enter; with `keep` it stays."""
    base = Path(tempfile.mkdtemp(prefix="relay-torture-"))
    base.chmod(0o711)
    relay = Relay(base)
    try:
        yield relay
    finally:
        relay.end()
        if keep:
            print(f"kept: {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)


def kill_postgres(relay: Relay, chance: random.Random) -> str:
    """One of four ways for a server to die; says which."""
    everybody = relay.postgres()
    postmaster = relay.postmaster()
    others = [pid for pid in everybody if pid != postmaster]
    if chance.random() < 0.25:
        # PostgreSQL's immediate shutdown, as of `pg_ctl stop -m immediate`: no checkpoint, no farewell.
        with suppress(ProcessLookupError):
            os.kill(postmaster, signal.SIGQUIT)
        return "by an immediate stop"
    way, victims = chance.choice(
        [
            # What is in shared memory only is lost, with the transaction ids under which it was done.
            ("every process", everybody),
            ("the postmaster", [postmaster]),
            # The postmaster then ends all others and recovers by itself.
            ("one of its processes", [chance.choice(others)]),
        ]
    )
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return way


def readiness(port: int, seconds: float) -> int | None:
    """The status of `GET /_readiness`; None when nobody answers within `seconds`."""
    try:
        with socket.create_connection(("127.0.0.1", port), seconds) as sock:
            sock.settimeout(seconds)
            sock.sendall(b"GET /_readiness HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = sock.recv(100)
    except OSError:
        return None
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else None


class ReadinessWatch:
    """Asks all the time, in a thread of its own: `answers` are (moment of the answer, status)."""

    def __init__(self, port: int) -> None:
        self.answers: list[tuple[float, int | None]] = []
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(PROBE_SECONDS):
            status = readiness(self._port, 5)
            self.answers.append((time.monotonic(), status))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def outage(self, since: float) -> tuple[float | None, float | None]:
        """Seconds from `since` to the first answer that was not 200, and from `since` to the first 200 after that."""
        down = next((moment for moment, status in self.answers if moment > since and status != 200), None)
        if down is None:
            return None, None
        up = next((moment for moment, status in self.answers if moment > down and status == 200), None)
        return down - since, None if up is None else up - since
