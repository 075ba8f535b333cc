"""The PostgreSQL that comes along: found, initialised, run as a child, watched and stopped.

In: a data directory. Out: the DSN of a server that nobody else can reach. What uses the database knows only the DSN;
where `DATABASE_URL` is set, nothing of this package runs.
"""

from __future__ import annotations

from relay.embedded.attach import attach_or_start
from relay.embedded.failures import (
    AccountMissing,
    BinariesMissing,
    BinariesUnreadable,
    ClusterFailed,
    DataDirBusy,
    DataDirUnusable,
    EmbeddedError,
    ServerFailed,
)
from relay.embedded.place import FALLBACK_DATA_DIR, choose_data_dir
from relay.embedded.server import Server, ServerStatistics, embedded_postgres

__all__ = [
    "FALLBACK_DATA_DIR",
    "AccountMissing",
    "BinariesMissing",
    "BinariesUnreadable",
    "ClusterFailed",
    "DataDirBusy",
    "DataDirUnusable",
    "EmbeddedError",
    "Server",
    "ServerFailed",
    "ServerStatistics",
    "attach_or_start",
    "choose_data_dir",
    "embedded_postgres",
]
