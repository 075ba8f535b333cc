"""What can go wrong, under one roof, so that nobody else imports asyncpg.

    Exception
    ├── PostgresError               the server answered with an error; `.sqlstate`. An argument that cannot
    │   │                           be encoded is a DataError too, though only asyncpg saw it
    │   ├── UniqueViolationError 23505, DeadlockDetectedError 40P01, SerializationError 40001,
    │   └── DataError 22000, QueryCanceledError 57014, LockNotAvailableError 55P03, …
    ├── InterfaceError              a call that never reached the server: wrong number of arguments, a bad DSN
    ├── ConnectionLost              the connection died, or was terminated, before or during the call
    │   └── ConnectFailed           no session could be opened; nothing of the caller's was sent
    ├── CommitOutcomeUnknown        COMMIT was sent and its answer never came: neither done nor undone
    ├── PoolTimeout                 no connection within `acquire_seconds`
    ├── StatementTimeout            a verb of the pool was not answered within `statement_seconds`
    └── PoolClosed                  the pool is closing or closed

`CommitOutcomeUnknown` is deliberately no `ConnectionLost`: code that retries after a lost connection must not retry it.
"""

from __future__ import annotations

from asyncpg.exceptions import (
    CannotConnectNowError,
    CheckViolationError,
    DataError,
    DeadlockDetectedError,
    ForeignKeyViolationError,
    InFailedSQLTransactionError,
    InterfaceError,
    InvalidCatalogNameError,
    InvalidPasswordError,
    LockNotAvailableError,
    NotNullViolationError,
    PostgresError,
    QueryCanceledError,
    ReadOnlySQLTransactionError,
    SerializationError,
    TooManyConnectionsError,
    UndefinedTableError,
    UniqueViolationError,
)

__all__ = [
    "CannotConnectNowError",
    "CheckViolationError",
    "CommitOutcomeUnknown",
    "ConnectFailed",
    "ConnectionLost",
    "DataError",
    "DeadlockDetectedError",
    "ForeignKeyViolationError",
    "InFailedSQLTransactionError",
    "InterfaceError",
    "InvalidCatalogNameError",
    "InvalidPasswordError",
    "LockNotAvailableError",
    "NotNullViolationError",
    "PoolClosed",
    "PoolTimeout",
    "PostgresError",
    "QueryCanceledError",
    "ReadOnlySQLTransactionError",
    "SerializationError",
    "StatementTimeout",
    "TooManyConnectionsError",
    "UndefinedTableError",
    "UniqueViolationError",
    "sqlstate",
    "sqlstate_class",
]


class ConnectionLost(Exception):
    """The connection is gone. What it was doing may or may not have been done; `__cause__` says how it died."""


class ConnectFailed(ConnectionLost):
    """No session could be opened. `transient` is true where a server that is starting or restarting looks like this."""

    def __init__(self, text: str, *, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient


class CommitOutcomeUnknown(Exception):
    """COMMIT was sent, its answer never came. Ask `Connection.transaction_status(xid)` on a new connection."""

    def __init__(self, text: str, *, xid: str | None = None) -> None:
        super().__init__(text)
        self.xid = xid


class PoolTimeout(Exception):
    """Nothing came free, or could be opened, within the pool's `acquire_seconds`."""


class StatementTimeout(Exception):
    """A verb of the pool was given up after `statement_seconds`. Outside a transaction it may still have happened."""


class PoolClosed(Exception):
    """The pool has been closed or aborted."""


def sqlstate(error: BaseException | None) -> str:
    """Return the five-character SQLSTATE that `error`, or what caused it, came with; empty where there is none."""
    while error is not None:
        code = getattr(error, "sqlstate", None)
        if isinstance(code, str):
            return code
        error = error.__cause__
    return ""


def sqlstate_class(error: BaseException | None) -> str:
    """Return the first two characters of the SQLSTATE: "23" integrity, "40" rollback, "53" resources, "57" operator."""
    return sqlstate(error)[:2]
