"""`relay audit import`: the audit log of the original, taken over into an empty log.

    relay audit import SOURCE [--check] [--json]

SOURCE is the `postgresql://` address of the original's database, or a file that was made there with

    psql -XAtc "SELECT row_to_json(audit_log) FROM audit_log ORDER BY seq" > audit.jsonl

Exit codes: 0 the rows verify (and were taken over, without --check), 1 they do not, 2 it could not be done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import orjson
import trio
import typer

from relay.asyncpg_trio import Connection, connect
from relay.asyncpg_trio.errors import InterfaceError
from relay.audit.original_import import Batches, NotImported, Report, check, rows_of_database, rows_of_file, take_over
from relay.cli.audit_shared import EXIT_NO, counter, telling, with_database
from relay.cli.options import DatabaseUrl, DataDir, load_settings
from relay.database import UNREADABLE
from relay.errors import ConfigError

CONNECT_SECONDS = 10.0
_SCHEMES = ("postgresql://", "postgres://")


def register(app: typer.Typer) -> None:
    app.command("import")(import_log)


def import_log(
    source: Annotated[
        str, typer.Argument(help="The original's database (postgresql://…), or a file of its rows as JSON lines.")
    ],
    only_check: Annotated[bool, typer.Option("--check", help="Only verify them; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Take over the audit log of the original into an empty log: all of it, or nothing."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    with telling("not checked" if only_check else "not imported"):
        if only_check:
            report = trio.run(_check, source)
        else:
            report = with_database(settings, partial(_import, source=source))
        typer.echo(orjson.dumps(report.as_dict()).decode() if as_json else report.summary())
        if not only_check:
            typer.echo("imported; the relay's own entries follow" if report.ok else "nothing was imported", err=True)
        if not report.ok:
            raise typer.Exit(EXIT_NO)


async def _check(source: str) -> Report:
    async with _rows(source) as batches:
        return await check(batches)


async def _import(con: Connection, *, source: str) -> Report:
    async with _rows(source) as batches:
        try:
            return await take_over(con, batches)
        except NotImported as error:
            return error.report


@asynccontextmanager
async def _rows(source: str) -> AsyncIterator[Batches]:
    if not source.startswith(_SCHEMES):
        with Path(source).open("rb") as file:  # noqa: ASYNC230 -- a command: nothing else runs that could wait
            yield _counted(rows_of_file(file))
        return
    con = await _connected(source)
    try:
        yield _counted(rows_of_database(con))
    finally:
        await con.close()


async def _connected(source: str) -> Connection:
    try:
        return await connect(source, connect_seconds=CONNECT_SECONDS)
    except ValueError:
        # Its text quotes pieces of the address, and there may be a password in it.
        raise ConfigError(UNREADABLE.replace("DATABASE_URL:", "SOURCE")) from None
    except InterfaceError as error:
        raise ConfigError(f"SOURCE: {error}") from None


async def _counted(batches: Batches) -> Batches:
    """The same, and a counter on the terminal: finding the digits of a million rows takes minutes."""
    show, rows = counter(), 0
    async with aclosing(batches):
        async for batch in batches:
            yield batch
            rows += len(batch)
            if show is not None:
                show(rows)
    if show is not None:
        typer.echo(err=True)
