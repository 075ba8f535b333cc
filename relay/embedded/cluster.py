"""The cluster on disk and the command lines that make and serve it. Nothing here waits, runs or knows Trio.

<data_dir>/
    relay.lock          who holds the directory (lock.py)
    postgres/           the cluster, the server account's own, 0700
    postgres.making-*   a cluster that was never finished; swept at the next start
    postgres.log        what the server says, postgres.log.1 the one before
    socket/             the Unix socket, 0700; in the temporary directory where this path is too long
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from relay.embedded.account import Account, give
from relay.embedded.binaries import Binaries
from relay.embedded.failures import DataDirUnusable
from relay.embedded.lock import open_beside
from relay.embedded.process import cluster_name, is_server

ROLE = "relay"  # the name of the database and of its user
PORT = 5432  # only part of the socket's name
LOG_BYTES_MAX = 10 * 1024 * 1024

_MAKING_PREFIX = "postgres.making-"
_SOCKET_PATH_BYTES_MAX = 103  # sun_path: 104 bytes on macOS and the BSDs, 108 on Linux, one of them NUL

SETTINGS: Mapping[str, str] = {
    # One machine, one client: no TCP at all, and the socket in a directory of its own account.
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # An answered OK means kept, so both stay on: a commit that returned is on the disk.
    "fsync": "on",
    "synchronous_commit": "on",
    # Modest, since the relay and the page cache live on the same machine.
    "shared_buffers": "128MB",
    # The pools and single connections of one relay come to about 35; the rest is for commands and an operator.
    "max_connections": "60",
    # Bounds the disk that the log takes and, with it, the seconds that recovery takes after a crash.
    "max_wal_size": "1GB",
    # After a crash one syncfs instead of an fsync for each of a thousand files: a quarter of a second, not two.
    **({"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" else {}),
    # Full page images are most of the write-ahead log of a small database; pglz is in every build.
    "wal_compression": "on",
    # Our statements run for milliseconds: compiling one costs more than it saves.
    "jit": "off",
    # One query must not take every core from the relay; and /dev/shm, which workers share, has 64 MB under Docker.
    "max_parallel_workers_per_gather": "0",
    # Statements hold what people wrote. The log says what failed, not with which content, and idles without a line.
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}


def cluster_dir(data_dir: Path) -> Path:
    return data_dir / "postgres"


def cluster_major(data_dir: Path) -> int | None:
    """The PostgreSQL version that made the cluster; None if there is none yet. Raises DataDirUnusable."""
    directory = cluster_dir(data_dir)
    try:
        return int((directory / "PG_VERSION").read_text())
    except FileNotFoundError:
        if directory.exists():
            raise DataDirUnusable(
                f"{directory} exists but holds no database (PG_VERSION is missing). Restore it from a backup, or move "
                f"it away to start with an empty one."
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise DataDirUnusable(f"{directory / 'PG_VERSION'} cannot be read: {error}.") from error


def initdb_arguments(binaries: Binaries, directory: Path) -> list[str | Path]:
    """Make a cluster in an empty directory. Search folds case by the database's character type, and plain C knows
    ASCII only: the built-in provider where there is one, else the C library's C.UTF-8."""
    if binaries.major >= 18:
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    else:
        locale = ["--locale=C.UTF-8"]
    # Trust is for those who can reach the socket, which is the server's own account and root; never for TCP.
    access = ["--username", ROLE, "--auth-local=trust", "--auth-host=reject"]
    return [binaries.program("initdb"), "-D", directory, *access, "--encoding=UTF8", *locale, "--data-checksums"]


def create_database_arguments(binaries: Binaries, directory: Path) -> list[str | Path]:
    """Single-user mode: reads SQL from standard input without a server, so the database is there before the rename."""
    return [binaries.program("postgres"), "--single", "-D", directory, "-c", "exit_on_error=on", "postgres"]


CREATE_DATABASE = f"CREATE DATABASE {ROLE}\n".encode()


def server_arguments(
    binaries: Binaries, directory: Path, socket_dir: Path, settings: Mapping[str, str]
) -> list[str | Path]:
    """The server's command line; `settings` go over our own, and both over postgresql.conf."""
    arguments: list[str | Path] = [binaries.program("postgres"), "-D", directory, "-k", socket_dir, "-p", str(PORT)]
    # By its name we find the server again, so that one is not to be chosen.
    for name, value in {**SETTINGS, **settings, "cluster_name": cluster_name(directory)}.items():
        arguments += ["-c", f"{name}={value}"]
    return arguments


def dsn(socket_dir: Path, database: str = ROLE) -> str:
    """A libpq URI. The port is written out because clients would take it from PGPORT."""
    return f"postgresql://{ROLE}@/{database}?host={quote(os.fsencode(socket_dir))}&port={PORT}"


def new_cluster(data_dir: Path, account: Account | None) -> Path:
    """An empty directory for initdb, the account's; what an interrupted initdb left before is removed."""
    for left_over in data_dir.glob(f"{_MAKING_PREFIX}*"):
        # An orphan of a killed initdb may still be writing there: what it leaves is swept the next time.
        shutil.rmtree(left_over, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=_MAKING_PREFIX, dir=data_dir))
    give(making, account)
    return making


def adopt_cluster(making: Path, data_dir: Path) -> None:
    """The finished cluster gets its name: a crash before leaves no cluster, a crash after a whole one."""
    making.rename(cluster_dir(data_dir))
    descriptor = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)  # the rename too must outlive a power failure
    finally:
        os.close(descriptor)


def socket_dir_of(data_dir: Path) -> Path:
    """Where the socket of this data directory is: always the same place for the same TMPDIR."""
    beside = data_dir / "socket"
    if len(os.fsencode(socket_path(beside))) <= _SOCKET_PATH_BYTES_MAX:
        return beside
    return Path(tempfile.gettempdir()) / f"relay-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}"


def socket_path(socket_dir: Path) -> Path:
    return socket_dir / f".s.PGSQL.{PORT}"


def make_socket_dir(socket_dir: Path, account: Account | None) -> None:
    """Make it, or make sure that it is ours: in the temporary directory anybody can take the name first."""
    with suppress(FileExistsError):
        socket_dir.mkdir(mode=0o700)
    found = socket_dir.lstat()
    ours = {os.geteuid(), account.uid if account else os.geteuid()}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in ours:
        raise DataDirUnusable(f"{socket_dir}, where the database's socket belongs, is not ours. Remove it.")
    give(socket_dir, account)


def clear_stale_locks(data_dir: Path, socket_dir: Path) -> None:
    """Remove lock files of a server known to be gone, where PostgreSQL would take them for a living one's.

    It asks only whether *some* process has the number in the file, and in a container that was killed and starts again
    numbers recur at once: it would refuse for ever, as it does for a zombie that nobody reaps. Whoever calls
    this holds the data directory and has seen that no server of ours works in it. PostgreSQL still refuses to start
    while another server has the shared memory that goes with the directory.
    """
    for path in (pid_file(data_dir), Path(f"{socket_path(socket_dir)}.lock")):
        try:
            named = path.read_text().split("\n")[0]
        except FileNotFoundError:
            continue
        if not named.isdigit() or not is_server(int(named)):
            path.unlink(missing_ok=True)


def says_ready(data_dir: Path, pid: int) -> bool:
    """Whether the lock file of the server `pid` says that it accepts connections, as `pg_ctl --wait` reads it.

    Only a hint when to knock: knocks before that fill the log with refusals, hundreds in a long recovery.
    """
    try:
        lines = pid_file(data_dir).read_text().split("\n")
    except OSError:
        return False
    return lines[0] == str(pid) and len(lines) > 7 and lines[7].strip() == "ready"


def pid_file(data_dir: Path) -> Path:
    return cluster_dir(data_dir) / "postmaster.pid"


def open_log(data_dir: Path) -> int:
    """The descriptor of the server's log, opened for appending; a log over the limit is put aside first."""
    path = log_path(data_dir)
    with suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_name(f"{path.name}.1"))
    return open_beside(path, os.O_WRONLY | os.O_APPEND)


def log_path(data_dir: Path) -> Path:
    return data_dir / "postgres.log"
