"""A PostgreSQL of a test's own: TCP with passwords, and it may be killed and started again."""

from __future__ import annotations

import signal
import socket
import subprocess
import time

from tests.support.postgres import PostgresServer

PASSWORD = "päss word"


class Cluster(PostgresServer):
    """Listens on a Unix socket (trust) and on 127.0.0.1 (SCRAM)."""

    port = 0

    def start(self) -> subprocess.Popen[bytes]:
        if not self.port:
            self._configure()
        process = self._launch()
        for _ in range(500):
            try:
                self.psql("postgres", "select 1")
            except AssertionError:
                time.sleep(0.02)
            else:
                return process
        raise AssertionError((self.base / "log").read_text())

    def _configure(self) -> None:
        (self.data / "pg_hba.conf").write_text(
            "local all all trust\nhost all banned 127.0.0.1/32 reject\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (self.data / "postgresql.auto.conf").write_text(
            f"listen_addresses='127.0.0.1'\nport={self.port}\nunix_socket_directories='{self.base}'\nfsync=off\n"
        )

    def _launch(self) -> subprocess.Popen[bytes]:
        with (self.base / "log").open("ab") as log:
            return subprocess.Popen(
                [self.bin / "postgres", "-D", self.data],
                cwd="/",
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={"LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
                **self._identity(),
            )

    def psql(self, database: str, statement: str) -> str:
        done = subprocess.run(
            [
                *(self.bin / "psql", "-XAtq", "-h", str(self.base), "-p", str(self.port)),
                *("-U", "relay", "-d", database, "-c", statement),
            ],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://relay@/{database}?host={self.base}&port={self.port}"

    def tcp_dsn(self, options: str = "?sslmode=disable") -> str:
        return f"postgresql://guest:p%C3%A4ss%20word@127.0.0.1:{self.port}/postgres{options}"

    def kill(self) -> None:
        """SIGKILL of the postmaster; its children notice and go."""
        self.process.kill()
        self.process.wait(10)

    def revive(self) -> None:
        """Start again on the same data: crash recovery included. Returns once the server answers."""
        self.process = self.start()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
        super().stop()
