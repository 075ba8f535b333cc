"""Child processes: spawn, wait, find what is left over, end it.

Rules
- Children are spawned by `subprocess.Popen` in the thread that runs Trio, never in a worker thread. The kernel sends
  the parent-death signal when the *thread* that forked ends, and Trio lets idle worker threads end after ten seconds:
  a server spawned there is shut down for no visible reason.
- A child gets a session of its own, so that a Ctrl-C at the terminal reaches only the relay, which then decides.
- A child gets a short list of environment variables. Nothing that starts with `PG` may steer the server, and the
  relay's own secrets have no business in the environment of another account's process.
- PostgreSQL's children each lead a session of their own: a signal to the postmaster's group reaches the postmaster
  alone. Whoever wants all of them looks for the cluster's name in the command lines (`living_in`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import trio

from relay.embedded.account import Account

POLL_SECONDS = 0.01

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ENVIRONMENT_KEPT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")

# Looked up here, since nothing should be imported or resolved between fork and exec.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def environment() -> dict[str, str]:
    """The environment of every PostgreSQL program: messages in plain English, times in UTC."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def spawn(
    arguments: Sequence[str | Path],
    *,
    account: Account | None,
    output: IO[bytes],
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    death_signal: signal.Signals,
) -> subprocess.Popen[bytes]:
    """Start a program as `account` (None: as ourselves); the kernel sends it `death_signal` when we die.

    Returns at once; the caller waits and reaps. Raises OSError (PermissionError if `account` may not execute it).
    """
    return subprocess.Popen(  # noqa: S603 -- an argument list of our own, no shell
        [os.fspath(argument) for argument in arguments],
        stdin=stdin,
        stdout=output,
        stderr=output,
        env=environment(),
        cwd="/",  # ours may be a directory that the account cannot be in
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        preexec_fn=_binding(death_signal),
    )


def _binding(death_signal: signal.Signals) -> Callable[[], None] | None:
    """What the child does between fork and exec; after the change of account, which clears the death signal."""
    if _prctl is None:
        return None
    parent = os.getpid()

    def bind_to_parent() -> None:
        _prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:  # we died before the call: no signal will come any more
            os._exit(1)

    return bind_to_parent


async def wait_exit(process: subprocess.Popen[bytes]) -> int:
    """Wait until the child has ended, reap it, return its code (negative: a signal). Several tasks may wait at once."""
    while (code := process.poll()) is None:
        try:
            watched = os.pidfd_open(process.pid)
        except (AttributeError, OSError):  # not Linux, or a sandbox without the system call
            await trio.sleep(POLL_SECONDS)
            continue
        try:
            await trio.lowlevel.wait_readable(watched)
        finally:
            os.close(watched)
    return code


async def run(arguments: Sequence[str | Path], *, account: Account | None, stdin: bytes = b"") -> tuple[int, str]:
    """Run a program to its end: (code, everything it wrote). Raises OSError if it cannot be executed.

    Cancellation: the program and its group are killed and reaped before Cancelled goes on (at most a second). Input
    and output are unnamed files: no pipe to fill, so no task or thread to serve one.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        process = spawn(arguments, account=account, output=output, stdin=given, death_signal=signal.SIGKILL)
        try:
            code = await wait_exit(process)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with trio.move_on_after(1, shield=True):
                    await wait_exit(process)
        output.seek(0)
        return code, output.read().decode(errors="replace").strip()


def cluster_name(directory: Path) -> str:
    """What the server shows in the command line of each of its processes; tells the clusters of a machine apart."""
    return f"relay-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"


def living_in(directory: Path) -> list[int]:
    """The server processes of this cluster: a postmaster, its children, orphans of a dead one. Safe in any thread.

    Told by cluster name and owner, since a pid in a file may long belong to somebody else. (Their working directory
    would tell too, but root in a container may not read another account's.) A server that somebody started by hand
    on this directory is not found, and neither is any without /proc: nobody is ever killed on a guess, and
    PostgreSQL's own lock file then refuses a second server.
    """
    name = cluster_name(directory).encode()
    try:
        owner = directory.stat().st_uid
        entries = os.listdir("/proc")  # noqa: PTH208 -- names are enough, thousands of them
    except OSError:
        return []
    found = []
    for entry in entries:
        if not entry.isdigit():
            continue
        process = Path("/proc", entry)
        try:
            if process.stat().st_uid == owner and name in _server_command(process):
                found.append(int(entry))
        except OSError:  # ended meanwhile
            continue
    return found


def _server_command(process: Path) -> bytes:
    """The command line of a PostgreSQL server process; empty for any other program and for a zombie."""
    command = (process / "cmdline").read_bytes()
    return command if command and (process / "comm").read_text().strip() == "postgres" else b""


def is_server(pid: int) -> bool:
    """Whether some PostgreSQL, ours or not, runs under this number. Without /proc every number may be one."""
    try:
        return bool(_server_command(Path(f"/proc/{pid}")))
    except OSError:
        return not Path("/proc/self").exists()


def signal_each(pids: Sequence[int], signal_number: signal.Signals) -> None:
    """Signal processes that may be gone already. Safe in any thread."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)


async def end_all_in(directory: Path, *steps: tuple[signal.Signals | None, float]) -> list[int]:
    """Take the steps (signal or None to only wait, seconds) until nobody works in this cluster; returns who is left."""
    left = living_in(directory)
    for signal_number, seconds in steps:
        if not left:
            break
        if signal_number is not None:
            signal_each(left, signal_number)
        with trio.move_on_after(seconds):
            while left := living_in(directory):  # noqa: ASYNC110 -- not all are our children: no event to wait for
                await trio.sleep(POLL_SECONDS)
    return left
