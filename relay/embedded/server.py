"""A PostgreSQL server as a child of this process: started, watched, started again, stopped.

`embedded_postgres()` is the outermost context of a relay: what is inside may use `server.dsn`, and when the inside has
ended, the server is stopped by steps that each have a deadline. It opens no nursery and starts no task. Somebody
should run `server.supervise()` in a nursery inside the context; it is what starts the server again after a crash.

A crash costs connections, never an answered commit: fsync and synchronous_commit are on. After a `kill -9` of the
relay the kernel tells the server to shut down; the next start waits for that, and ends by force what does not end.
Not done here: connecting, migrations, and deciding that a server which answers no more is to be killed (`abort`).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import trio

from relay.embedded import cluster
from relay.embedded.account import Account
from relay.embedded.binaries import Binaries
from relay.embedded.failures import ServerFailed
from relay.embedded.handshake import STARTING_OR_STOPPING, ask
from relay.embedded.lock import Purpose, data_dir_lock
from relay.embedded.place import enter_data_dir, make_cluster, programs_for, resolved
from relay.embedded.process import end_all_in, living_in, signal_each, spawn, wait_exit

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})

POLL_SECONDS = 0.005  # between two looks while the server starts; a start takes 30 ms
ANSWER_SECONDS = 5.0  # for one knock
PATIENCE_SECONDS = 1.0  # for a server that lost its relay and is shutting down by itself
CRASHES_MAX = 5  # within the window; systemd gives up after 5 starts too
CRASH_WINDOW_SECONDS = 60.0
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 0.1, 5.0
LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """`ready_seconds`: from the last spawn to its first answer. `restarts`: after crashes, since the start."""

    pid: int
    version: str
    restarts: int
    ready_seconds: float
    log_bytes: int


class Server:
    """The running server. Made by `embedded_postgres` only."""

    def __init__(
        self,
        data_dir: Path,
        binaries: Binaries,
        account: Account | None,
        settings: Mapping[str, str],
        ready_seconds_max: float,
        notes: list[str],
    ) -> None:
        self.data_dir = data_dir
        self.socket_dir = cluster.socket_dir_of(data_dir)
        self.dsn = cluster.dsn(self.socket_dir)
        self.version = binaries.version
        self.notes = notes
        """Sentences for the operator: what was done that nobody asked for."""

        self._directory = cluster.cluster_dir(data_dir)
        self._binaries = binaries
        self._account = account
        self._settings = settings
        self._ready_seconds_max = ready_seconds_max

        # Set by each `launch`; the log of this start begins at `_log_start`.
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._ready_seconds = 0.0
        self._restarts = 0
        self._stopping = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def statistics(self) -> ServerStatistics:
        log = cluster.log_path(self.data_dir)
        log_bytes = log.stat().st_size if log.exists() else 0
        return ServerStatistics(self.pid, self.version, self._restarts, self._ready_seconds, log_bytes)

    async def launch(self) -> None:
        """Spawn the server and wait until it is ready. Raises ServerFailed; the caller stops what is half started."""
        cluster.make_socket_dir(self.socket_dir, self._account)
        cluster.clear_stale_locks(self.data_dir, self.socket_dir)
        arguments = cluster.server_arguments(self._binaries, self._directory, self.socket_dir, self._settings)
        began = trio.current_time()
        with os.fdopen(cluster.open_log(self.data_dir), "ab") as log:
            self._log_start = os.fstat(log.fileno()).st_size
            # SIGINT is PostgreSQL's fast shutdown: sessions are ended, data is written.
            self._process = spawn(arguments, account=self._account, output=log, death_signal=signal.SIGINT)
        await self._wait_ready(self._process)
        self._ready_seconds = trio.current_time() - began

    async def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        with trio.move_on_after(self._ready_seconds_max):
            while process.poll() is None:
                answer = None
                if cluster.says_ready(self.data_dir, process.pid):
                    with trio.move_on_after(ANSWER_SECONDS):
                        answer = await ask(self.socket_dir)
                if answer is not None and answer.serves:
                    return
                if answer is not None and answer.sqlstate != STARTING_OR_STOPPING:
                    raise ServerFailed(f"PostgreSQL started but refuses us: {answer.text} ({answer.sqlstate}).")
                await trio.sleep(POLL_SECONDS)
            raise ServerFailed(f"PostgreSQL ended while it started. {self._last_words()}")
        raise ServerFailed(f"PostgreSQL was not ready within {self._ready_seconds_max:g} s. {self._last_words()}")

    def _last_words(self) -> str:
        path = cluster.log_path(self.data_dir)
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - LOG_TAIL_BYTES))
            return f"The end of {path}:\n{log.read().decode(errors='replace').strip()}"

    async def supervise(self, *, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the server again whenever it dies; runs until cancelled or until the server is being stopped.

        Raises ServerFailed after more than CRASHES_MAX deaths within CRASH_WINDOW_SECONDS, or if a restarted server
        does not become ready: then the data is as safe as it was, but somebody must look.
        """
        task_status.started(self)
        crashes: deque[float] = deque(maxlen=CRASHES_MAX + 1)
        while True:
            assert self._process is not None
            code = await wait_exit(self._process)
            if self._stopping:
                return
            crashes.append(trio.current_time())
            recent = [moment for moment in crashes if moment > crashes[-1] - CRASH_WINDOW_SECONDS]
            if len(recent) > CRASHES_MAX:
                raise ServerFailed(
                    f"PostgreSQL ended {len(recent)} times within {CRASH_WINDOW_SECONDS:g} s (last code {code}). "
                    f"{self._last_words()}"
                )
            if len(recent) > 1:
                await trio.sleep(min(BACKOFF_SECONDS * 2 ** (len(recent) - 2), BACKOFF_SECONDS_MAX))
            # Sessions of a dead postmaster may go on with their query for minutes, and as long as one of them has the
            # shared memory, no new server starts. With their postmaster dead there is nothing to be gentle for.
            await end_all_in(self._directory, (signal.SIGKILL, PATIENCE_SECONDS))
            self._restarts += 1
            try:
                await self.launch()
            except ServerFailed:
                if self._process.poll() is None:
                    raise
                # It died again: counted at the top of the loop.

    async def stop(self, stop_seconds: float, quit_seconds: float, kill_seconds: float) -> None:
        """Fast shutdown, immediate shutdown, kill: each with its deadline. Nothing of the server is left afterwards.

        Cancellation: takes the whole of its deadlines under a shield, since a server left behind holds the data.
        """
        self._stopping = True
        with trio.move_on_after(stop_seconds + quit_seconds + 2 * kill_seconds, shield=True):
            for signal_number, seconds in ((signal.SIGINT, stop_seconds), (signal.SIGQUIT, quit_seconds)):
                if self._process is None or self._process.poll() is not None:
                    break
                self._process.send_signal(signal_number)
                with trio.move_on_after(seconds):
                    await wait_exit(self._process)
            if self._process is not None and self._process.poll() is None:
                self.abort()
                with trio.move_on_after(kill_seconds):
                    await wait_exit(self._process)
            await end_all_in(self._directory, (signal.SIGKILL, kill_seconds))

    def abort(self) -> None:
        """Kill the server and all its sessions now. Never blocks; safe in any thread (the watchdog's)."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            signal_each([process.pid], signal.SIGKILL)  # alone in its group, see process.py
        signal_each(living_in(self._directory), signal.SIGKILL)


@asynccontextmanager
async def embedded_postgres(
    data_dir: Path,
    *,
    binaries: Path | None = None,
    cache_dir: Path = Path("/var/cache/relay"),
    settings: Mapping[str, str] = NO_SETTINGS,
    stop_seconds: float = 1.0,
    quit_seconds: float = 1.0,
    kill_seconds: float = 1.0,
    ready_seconds: float = 60.0,
    purpose: Purpose = "relay",
) -> AsyncIterator[Server]:
    """Run PostgreSQL on `data_dir` for the time of the context; makes directory and cluster where there are none.

    `settings` go over ours (see `cluster.SETTINGS`). `purpose="command"` tells others that this server is stopped
    again soon, so that they wait for it to end and do not connect to it.

    Raises any EmbeddedError. Cancellation: at any moment; a cluster half made is swept, a server half started stopped.
    Must be entered in the thread that runs Trio (see process.py).
    """
    data_dir = resolved(data_dir)
    account, notes = await enter_data_dir(data_dir)
    with data_dir_lock(data_dir, cluster.socket_dir_of(data_dir), purpose):
        programs, more_notes = await programs_for(data_dir, binaries, account, cache_dir)
        if cluster.cluster_major(data_dir) is None:
            await make_cluster(data_dir, programs, account)
        left = await end_all_in(
            cluster.cluster_dir(data_dir),
            (None, PATIENCE_SECONDS),
            (signal.SIGQUIT, PATIENCE_SECONDS / 2),
            (signal.SIGKILL, PATIENCE_SECONDS),
        )
        if left:
            raise ServerFailed(f"Process {left[0]} still works in {data_dir} and does not end when killed.")
        server = Server(data_dir, programs, account, settings, ready_seconds, notes + more_notes)
        try:
            await server.launch()
            yield server
        finally:
            await server.stop(stop_seconds, quit_seconds, kill_seconds)
