"""A connection that belongs to one task, outside the pool, and comes back when the server does.

Slow requests must not stop ingest, and a full pool must not stop it either: whoever commits has a line of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from relay.asyncpg_trio import ConnectFailed, Connection
from relay.asyncpg_trio.errors import ConnectionLost, PostgresError
from relay.errors import StoreGone

log = structlog.get_logger()

BACKOFF_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5)

Connect = Callable[[], Awaitable[Connection]]


class OwnConnection:
    """Used by one task at a time. `patience_seconds` bounds one `get` while the server is away."""

    def __init__(self, connect: Connect, *, name: str, patience_seconds: float) -> None:
        self._connect = connect
        self._name = name
        self._patience = patience_seconds
        self._con: Connection | None = None

    async def get(self) -> Connection:
        """The connection, made anew if the old one is gone.

        Raises:
            StoreGone: The server could not be reached in time.
        """
        con = self._con
        if con is not None and not con.is_closed():
            return con
        deadline = trio.current_time() + self._patience
        attempt = 0
        while True:
            try:
                self._con = await self._connect()
            except (OSError, ConnectFailed, ConnectionLost, PostgresError) as error:
                if trio.current_time() >= deadline:
                    raise StoreGone(f"{self._name}: the database cannot be reached: {error}") from error
                await trio.sleep(BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)])
                attempt += 1
            else:
                if con is not None:
                    log.info("connected to the database again", connection=self._name)
                return self._con

    def close(self) -> None:
        """Drops the connection at once."""
        if self._con is not None:
            self._con.terminate()
            self._con = None
