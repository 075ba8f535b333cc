"""The only place that touches asyncpg's private parts, and the list of them.

asyncpg's `Connection` keeps what is worth keeping: statement cache, type introspection, COPY's statement building.
Its transactions, pool, timeouts, cursors and background tasks belong to asyncio and are replaced or left out.
`CONTRACT` names every private thing that this package rests on; `broken_contract()` says in plain words which of them
has changed.
"""

from __future__ import annotations

import collections
import inspect
from collections.abc import Callable
from typing import Any

import asyncpg
from asyncpg import connect_utils, protocol, utils
from asyncpg import connection as asyncpg_connection
from asyncpg import exceptions as asyncpg_exceptions

Record = asyncpg.Record
SSLMode = connect_utils.SSLMode
NO_TIMEOUT = protocol.NO_TIMEOUT
can_use_connection = connect_utils._can_use_connection
quote_identifier: Callable[[str], str] = utils._quote_ident
PARSE_ARGUMENTS = connect_utils._parse_connect_arguments

ConnectionDoesNotExistError = asyncpg_exceptions.ConnectionDoesNotExistError
InvalidCachedStatementError = asyncpg_exceptions.InvalidCachedStatementError
OutdatedSchemaCacheError = asyncpg_exceptions.OutdatedSchemaCacheError

# Attributes that must exist, by owner.
CONTRACT: list[tuple[Any, str]] = [
    *((connect_utils, name) for name in ("_parse_connect_arguments", "_can_use_connection", "SSLMode")),
    *((utils, name) for name in ("_quote_ident",)),
    *((protocol, name) for name in ("Protocol", "NO_TIMEOUT")),
    *(
        (protocol.Protocol, name)
        for name in (
            "backend_pid", "backend_secret", "bind_execute", "connection_lost", "connection_made", "copy_in",
            "data_received", "get_settings", "is_connected", "is_in_transaction", "prepare", "query", "set_connection",
        )
    ),
    *(
        (asyncpg_connection.Connection, name)
        for name in (
            "_cancel_current_command", "_drop_local_statement_cache", "_execute", "_process_notification",
            "_stmt_cache", "copy_records_to_table", "is_closed", "reload_schema_state", "terminate",
        )
    ),
    *((asyncpg_connection._StatementCache, name) for name in ("get",)),
]  # fmt: skip


def broken_contract() -> list[str]:
    """Return a sentence for each private name of asyncpg that is missing or has another shape; normally none."""
    broken = [
        f"asyncpg {asyncpg.__version__} has no {getattr(owner, '__name__', owner)}.{name} any more"
        for owner, name in CONTRACT
        if not hasattr(owner, name)
    ]
    if broken:
        return broken
    shapes = [
        (asyncpg_connection.Connection.__init__, ["self", "protocol", "transport", "loop", "addr", "config", "params"]),
        (asyncpg_connection.Connection._execute, ["self", "query", "args", "limit", "timeout"]),
        (asyncpg_connection.Connection._process_notification, ["self", "pid", "channel", "payload"]),
        (asyncpg_connection._StatementCache.get, ["self", "query"]),
    ]
    for function, expected in shapes:
        found = list(inspect.signature(function).parameters)[: len(expected)]
        if found != expected:
            broken.append(f"{function.__qualname__} takes {found} where {expected} was expected")
    return broken


class Protocol(protocol.Protocol):  # type: ignore[misc]
    """asyncpg's protocol, which remembers that a Parse went out without a Sync.

    asyncpg ends Parse/Describe with Flush and leaves the Sync to the Execute that follows. If nothing follows
    (cancelled, arguments that cannot be encoded), the server stays in an implicit transaction and keeps its locks.
    """

    # What would end that transaction; empty if there is none.
    unsynced = ""

    async def prepare(self, name: str, query: str, timeout: Any, **options: Any) -> Any:
        self.unsynced = "SELECT"
        try:
            return await super().prepare(name, query, timeout, **options)
        except BaseException as error:
            if name and not isinstance(error, Exception):
                # Cancelled, but the server may have prepared it: nobody else will ever know that name.
                self.unsynced = f"DEALLOCATE {name}"
            raise


class Session(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's connection as an inner part of ours: nobody outside the package sees it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Set while somebody listens: where notifications go.
        self.notified: collections.deque[tuple[str, str, int]] | None = None
        # A COPY that asyncpg gave up itself leaves its protocol waiting for asyncio.
        self.spoilt = False

    def _process_notification(self, pid: int, channel: str, payload: str) -> None:
        if self.notified is not None:
            self.notified.append((channel, payload, pid))

    def _cancel_current_command(self, *_: Any) -> None:
        self.spoilt = True

    def use_jsonb_bytes(self) -> None:
        """Let jsonb pass as bytes: no decoding of what is only handed on. Text and bytes are accepted as parameters."""
        self._protocol.get_settings().add_python_codec(
            _JSONB_OID, "jsonb", "pg_catalog", [], "scalar", _jsonb_encode, _jsonb_decode, "binary"
        )


_JSONB_OID = 3802
_JSONB_VERSION = b"\x01"  # the only one so far, first byte of jsonb's binary form


def _jsonb_encode(value: str | bytes) -> bytes:
    return _JSONB_VERSION + (value.encode() if isinstance(value, str) else value)


def _jsonb_decode(value: bytes) -> bytes:
    return value[1:]


def parse_dsn(dsn: str, server_settings: dict[str, str] | None, statement_cache_size: int) -> tuple[Any, Any, Any]:
    """Return (addresses, parameters, configuration) as asyncpg reads them from a DSN and the PG* environment.

    Raises ValueError or InterfaceError for a DSN that makes no sense.
    """
    # The list of arguments grows with each minor version of asyncpg; all that we do not name are absent.
    arguments: dict[str, Any] = dict.fromkeys(inspect.signature(PARSE_ARGUMENTS).parameters)
    arguments.update(
        dsn=dsn,
        server_settings=server_settings or None,
        statement_cache_size=statement_cache_size,
        max_cached_statement_lifetime=0,  # expiry is a timer
        max_cacheable_statement_size=15 * 1024,  # asyncpg's default
    )
    addresses, parameters, configuration = PARSE_ARGUMENTS(**arguments)
    # An infinite command timeout of asyncpg's own would be a timer as well.
    assert configuration.command_timeout is None, "command_timeout is not supported: use trio.fail_after()"
    return addresses, parameters, configuration
