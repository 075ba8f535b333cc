"""What the commands of `relay audit` have in common: the database, the relay's key, sentences instead of tracebacks."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import trio
import typer

from relay import logs
from relay.access import relay_key
from relay.asyncpg_trio import Connection, ConnectionLost, PostgresError
from relay.asyncpg_trio.errors import CommitOutcomeUnknown, UndefinedTableError
from relay.config import Settings
from relay.database import effective_data_dir
from relay.errors import AuditError, ConfigError, RelayError, leaves
from relay.nostr.keys import SecretKey
from relay.store import relay_identity

EXIT_NO = 1
EXIT_NOT_DONE = 2

T = TypeVar("T")


@contextmanager
def telling(what: str, no: type[Exception] | tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Errors become sentences on stderr that begin with `what`, and exit code 2; 1 where they are of the kind `no`."""
    code = 0
    # except*: the embedded server, if it is started for us, runs in a nursery.
    try:
        yield
    except* UndefinedTableError:
        typer.echo(f"{what}: this database lacks tables of this version, run `relay migrate up` first", err=True)
        code = EXIT_NOT_DONE
    except* (RelayError, PostgresError, ConnectionLost, CommitOutcomeUnknown, OSError) as group:
        errors = leaves(group)
        for error in errors:
            typer.echo(f"{what}: {error}", err=True)
        code = EXIT_NO if all(isinstance(error, no) for error in errors) else EXIT_NOT_DONE
    if code:
        raise typer.Exit(code)


def with_database(settings: Settings, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run `work` with a connection, in a Trio of its own."""
    # A line about a slow database must not land on stdout, in the middle of the answer.
    logs.configure(settings.log_level, settings.log_format)
    return trio.run(_with_database, settings, work)


async def _with_database(settings: Settings, work: Callable[[Connection], Awaitable[T]]) -> T:
    # Here, so that asking for help does not load the embedded server's machinery.
    from relay.cli.database import open_database

    async with open_database(settings) as con:
        return await work(con)


async def own_key(con: Connection, settings: Settings) -> tuple[SecretKey, Path]:
    """The key of the relay whose database this is, and its data directory. Never makes one.

    Raises:
        ConfigError: it is not here, or it is another relay's.
        AuditError: no relay has ever started on this database.
    """
    data_dir = settings.data_dir
    if settings.database_url is None:
        data_dir, _ = await effective_data_dir(settings)
    if await relay_identity.get(con) is None:
        raise AuditError("no relay has ever started on this database")
    path = data_dir / relay_key.FILE_NAME
    if settings.relay_private_key is None and not await trio.Path(path).exists():
        raise ConfigError(f"the relay's key is not here: neither SPROUT_RELAY_PRIVATE_KEY is set nor is there {path}")
    key = relay_key.obtain(settings, data_dir)
    await relay_key.confirm(con, key)
    return key, data_dir


def show_count(done: int, total: int | None = None) -> None:
    """A counter that stays in its line, on stderr."""
    typer.echo(
        f"\r{done}" if total is None else f"\r{done} of {total}", err=True, nl=total is not None and done >= total
    )


def counter() -> Callable[..., None] | None:
    """`show_count`, where somebody looks."""
    return show_count if sys.stderr.isatty() else None
