"""A throw-away PostgreSQL server for one test run, started without Trio because it outlives every test's event loop."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from relay.embedded.account import Account
from relay.embedded.binaries import candidates
from relay.embedded.process import environment, spawn

# The write-ahead log and the databases of one test; a container may have no more than 64 MB of memory for files.
BYTES_MIN = 2 << 30


def in_memory(bytes_min: int) -> str | None:
    """A directory whose files are kept in memory, if there is room; None = the usual one for temporary files.

    Making and removing a cluster or a database is hundreds of files, for every test: 20 ms for a database in memory,
    ten times that on a disk.
    """
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK | os.X_OK) or shutil.disk_usage(memory).free < bytes_min:
        return None
    return str(memory)


class PostgresServer:
    """One cluster in a temporary directory, listening on a Unix socket only."""

    def __init__(self, *, durable: bool = False) -> None:
        self.durable = durable  # fsync as in production, for measurements
        self.base = Path(tempfile.mkdtemp(prefix="relay-test-pg-", dir=None if durable else in_memory(BYTES_MIN)))
        self.data = self.base / "data"
        self.bin = candidates()[0]
        self.account = None
        if os.geteuid() == 0:
            self.account = pwd.getpwnam("nobody")
            os.chown(self.base, self.account.pw_uid, self.account.pw_gid)
        self._run(
            "initdb",
            "-D",
            self.data,
            "-U",
            "relay",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
        )
        self.process = self.start()

    def _identity(self) -> dict[str, object]:
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self.bin / program, *map(str, arguments)],
            cwd="/",
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
            **self._identity(),
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> subprocess.Popen[bytes]:
        with (self.base / "log").open("ab") as log:
            # Bound to this process: a test run that is killed leaves no server behind.
            process = spawn(
                [
                    self.bin / "postgres",
                    "-D",
                    self.data,
                    "-k",
                    self.base,
                    "-c",
                    "listen_addresses=",
                    "-c",
                    "max_connections=200",
                    "-c",
                    f"fsync={'on' if self.durable else 'off'}",
                    "-c",
                    "shared_buffers=64MB",
                    "-c",
                    "max_wal_size=256MB",
                ],
                account=self.account and Account("", self.account.pw_uid, self.account.pw_gid),
                output=log,
                death_signal=signal.SIGQUIT,
            )
        for _ in range(500):
            try:
                self.psql("postgres", "select 1")
            except AssertionError:
                time.sleep(0.02)
            else:
                return process
        raise AssertionError((self.base / "log").read_text())

    def dsn(self, database: str) -> str:
        return f"postgresql://relay@/{database}?host={self.base}"

    def psql(self, database: str, statement: str) -> str:
        address = ["-h", self.base, "-U", "relay", "-d", database]
        done = subprocess.run(
            [self.bin / "psql", "-XAtq", *address, "-c", statement],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def create_database(self, template: str = "template0") -> str:
        name = f"t_{uuid.uuid4().hex[:12]}"
        strategy = "WAL_LOG" if self.durable else "FILE_COPY"
        self.psql("postgres", f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY {strategy}')
        return name

    def drop_database(self, name: str) -> None:
        self.psql("postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def stop(self) -> None:
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(10)
        shutil.rmtree(self.base, ignore_errors=True)
