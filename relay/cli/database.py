"""The database for a command: DATABASE_URL, else the running relay's, else started for the time of the command."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.asyncpg_trio import Connection
from relay.config import Settings
from relay.database import connect_patiently, effective_data_dir
from relay.embedded import attach_or_start

# A command is typed by somebody who waits: long enough for a server that is just starting, no longer.
WAIT_SECONDS = 10.0


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Connection]:
    """One connection. The schema is whatever the database has: `relay migrate` and `relay serve` bring it up to date.

    Raises:
        ConfigError, DatabaseUnreachable: DATABASE_URL is wrong, or nobody answers there.
        EmbeddedError: The embedded server cannot be used.
    """
    wait_seconds = min(WAIT_SECONDS, settings.database_wait_seconds)
    if settings.database_url is not None:
        connection = await connect_patiently(settings.database_url.get_secret_value(), wait_seconds)
        try:
            yield connection
        finally:
            await connection.close()
        return
    data_dir, _ = await effective_data_dir(settings)
    async with attach_or_start(data_dir, binaries=settings.postgres_binaries) as dsn:
        connection = await connect_patiently(dsn, wait_seconds)
        try:
            yield connection
        finally:
            await connection.close()
