"""asyncpg's compiled protocol, driven by Trio alone: no asyncio loop, no bridge, no background task.

    async with Pool("postgresql://relay@/relay?host=/run/postgresql") as pool:
        async with pool.transaction() as connection:
            await connection.execute("INSERT INTO t SELECT * FROM unnest($1::int[])", [1, 2, 3])
        rows = await pool.fetch("SELECT x FROM t WHERE x = ANY($1)", [1, 2])

Layers, each knowing only those below: pool → connect → connection (verbs) → transaction, listen → driver (asyncpg's
private names) → wire (socket, pump) → waiter, tls, errors. Nothing here knows what it is used for.
"""

from . import errors
from .connect import connect, connect_retrying
from .connection import Connection
from .driver import Record
from .errors import (
    CommitOutcomeUnknown,
    ConnectFailed,
    ConnectionLost,
    PoolClosed,
    PoolTimeout,
    PostgresError,
    StatementTimeout,
)
from .listen import Notification, Notifications
from .pool import Pool, PoolStatistics
from .transaction import Transaction

__all__ = [
    "CommitOutcomeUnknown",
    "ConnectFailed",
    "Connection",
    "ConnectionLost",
    "Notification",
    "Notifications",
    "Pool",
    "PoolClosed",
    "PoolStatistics",
    "PoolTimeout",
    "PostgresError",
    "Record",
    "StatementTimeout",
    "Transaction",
    "connect",
    "connect_retrying",
    "errors",
]
