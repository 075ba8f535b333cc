"""What can go wrong with the PostgreSQL that comes along.

Every text is written for the operator who reads it on the first line of a failed start: what was found, and what to do.

    EmbeddedError
    ├── AccountMissing        root, and no unprivileged account to run PostgreSQL as
    ├── BinariesMissing       no PostgreSQL programs anywhere
    ├── BinariesUnreadable    found, but the account that must run them cannot
    ├── DataDirBusy           another process holds the data directory
    ├── DataDirUnusable       cannot be created, entered or written, or belongs to another version or account
    ├── ClusterFailed         initdb did not succeed; carries its output
    └── ServerFailed          the server did not start, or keeps crashing; carries the end of its log
"""

from __future__ import annotations

from pathlib import Path

from relay.errors import RelayError


class EmbeddedError(RelayError):
    """The embedded PostgreSQL cannot be used."""


class AccountMissing(EmbeddedError):
    """PostgreSQL refuses to run as root, and there is no account to switch to."""


class BinariesMissing(EmbeddedError):
    """No PostgreSQL programs were found."""


class BinariesUnreadable(EmbeddedError):
    """The programs exist, but the account that must run them cannot."""


class DataDirBusy(EmbeddedError):
    """Another process holds the data directory. `pid` is None if it had not yet written its name."""

    def __init__(self, data_dir: Path, pid: int | None, socket_dir: Path | None, *, serves: bool) -> None:
        who = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"The data directory {data_dir} is in use by {who}. Stop it first, or use another directory.")
        self.data_dir = data_dir
        self.pid = pid
        self.socket_dir = socket_dir
        self.serves = serves
        """Whether the holder is a relay that others may connect to, not a command that will stop the server again."""


class DataDirUnusable(EmbeddedError):
    """The data directory cannot hold our cluster."""


class ClusterFailed(EmbeddedError):
    """Making the cluster failed; the text carries the output of the program that failed."""


class ServerFailed(EmbeddedError):
    """The server does not start, does not answer, or keeps crashing."""
