"""The database before there is a pool: brought up or waited for, and made fit for this version.

In: the settings. Out: a `Database` whose schema, key and audit log are as they must be, or an error that says what to
do. Used by the supervisor, and by the commands of `relay/cli` through `relay/cli/database.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from relay.asyncpg_trio import ConnectFailed, Connection, PostgresError, connect
from relay.asyncpg_trio.errors import InterfaceError, sqlstate_class
from relay.config import Settings
from relay.embedded import Server, choose_data_dir, embedded_postgres
from relay.errors import ConfigError, StoreGone

CONNECT_SECONDS = 5.0
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.1, 2.0
COMPLAIN_SECONDS = 5.0
# Insufficient resources (too many connections) and operator intervention (starting up, shutting down) pass by.
_PASSING = ("53", "57")

UNREADABLE = (
    "DATABASE_URL: cannot be read as postgresql://user:password@host:port/database. In the user and the password, "
    "/ is written as %2F, ? as %3F, # as %23, @ as %40, : as %3A, [ as %5B and % as %25."
)

log = structlog.get_logger(__name__)


class DatabaseUnreachable(StoreGone):
    """Nobody answered within the time that the start waits."""


@dataclass(frozen=True, slots=True)
class Database:
    """Where the data is. `server` is the child process of the embedded PostgreSQL, None with DATABASE_URL."""

    dsn: str
    data_dir: Path
    server: Server | None


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The embedded server for the time of the context, or the one of DATABASE_URL once it answers.

    Raises:
        EmbeddedError: The embedded server cannot be used.
        ConfigError: DATABASE_URL makes no sense, or its server refuses us.
        DatabaseUnreachable: It did not answer within `database_wait_seconds`.
    """
    if settings.database_url is not None:
        dsn = settings.database_url.get_secret_value()
        await (await connect_patiently(dsn, settings.database_wait_seconds)).close()
        yield Database(dsn, settings.data_dir, None)
        return
    data_dir, notes = await effective_data_dir(settings)
    log.info("starting PostgreSQL", data_dir=str(data_dir))
    async with embedded_postgres(data_dir, binaries=settings.postgres_binaries) as server:
        for note in (*notes, *server.notes):
            log.warning(note)
        log.info("PostgreSQL is ready", version=server.version, pid=server.pid)
        yield Database(server.dsn, data_dir, server)


async def effective_data_dir(settings: Settings) -> tuple[Path, list[str]]:
    """The data directory of the embedded server, and sentences for the operator.

    One that was asked for is taken as it is; the default gives way where the server's account cannot reach it.
    """
    if "data_dir" in settings.model_fields_set:
        return settings.data_dir, []
    return await choose_data_dir(settings.data_dir)


async def connect_patiently(dsn: str, wait_seconds: float) -> Connection:
    """A connection to a server that may still be starting, or not be reachable yet. Raises as `open_database`."""
    deadline = trio.current_time() + wait_seconds
    pause, complain_at = PAUSE_SECONDS, trio.current_time()
    while True:
        left = max(0.1, deadline - trio.current_time())
        try:
            return await connect(dsn, connect_seconds=min(CONNECT_SECONDS, left))
        except ConnectFailed as error:
            reason = str(error)
        except PostgresError as error:
            if sqlstate_class(error) not in _PASSING:
                raise ConfigError(f"DATABASE_URL: the server refuses the connection: {error}") from error
            reason = str(error)
        except InterfaceError as error:
            raise ConfigError(f"DATABASE_URL: {error}") from error
        except ValueError:
            # Its text quotes what stands in the place of a port or a parameter: often enough a piece of the password.
            raise ConfigError(UNREADABLE) from None
        now = trio.current_time()
        if now + pause >= deadline:
            raise DatabaseUnreachable(
                f"The database of DATABASE_URL did not answer within {wait_seconds:g} s: {reason}. Is it running, and "
                "can this machine reach it? (SPROUT_DATABASE_WAIT_SECONDS sets how long the start waits.)"
            )
        if now >= complain_at:
            log.warning("waiting for the database", reason=reason, seconds_left=round(deadline - now))
            complain_at = now + COMPLAIN_SECONDS
        await trio.sleep(pause)
        pause = min(pause * 2, PAUSE_SECONDS_MAX)
