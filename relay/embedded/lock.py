"""One server per data directory: a `flock` that names its holder.

The kernel drops the lock with the process that held it, however that ended, so that a stale lock cannot exist. The
file says who holds it, for the error message and for commands that want to connect: process id, purpose and socket
directory, one a line. It is never removed: whoever waits on a removed file holds a lock that nobody else sees.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from relay.embedded.failures import DataDirBusy, DataDirUnusable

Purpose = Literal["relay", "command"]

LOCK_NAME = "relay.lock"


def open_beside(path: Path, flags: int) -> int:
    """Open or make a file of ours (0600) in the data directory, for the owner of that directory.

    A command that root runs in a user's data directory would otherwise leave files there that the user's relay cannot
    open. Symbolic links are not followed, for the same case. Raises OSError.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        directory = path.parent.stat()
        os.fchown(descriptor, directory.st_uid, directory.st_gid)
    return descriptor


@contextmanager
def data_dir_lock(data_dir: Path, socket_dir: Path, purpose: Purpose) -> Iterator[None]:
    """Hold the data directory. Raises DataDirBusy (with the holder's name), DataDirUnusable."""
    try:
        descriptor = open_beside(data_dir / LOCK_NAME, os.O_RDWR)
    except OSError as error:
        raise DataDirUnusable(f"The data directory {data_dir} cannot be locked: {error}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(data_dir, os.pread(descriptor, 4096, 0)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n{purpose}\n{socket_dir}\n".encode("utf-8", "surrogateescape"), 0)
        yield
    finally:
        os.close(descriptor)


def _busy(data_dir: Path, content: bytes) -> DataDirBusy:
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    if len(lines) != 4 or not lines[0].isdigit():  # taken this very moment, not yet signed
        return DataDirBusy(data_dir, None, None, serves=False)
    pid, purpose, socket_dir, _ = lines
    return DataDirBusy(data_dir, int(pid), Path(socket_dir), serves=purpose == "relay")
