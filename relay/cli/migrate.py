"""`relay migrate up` and `relay migrate status`: the schema without a relay. `relay serve` migrates by itself."""

from __future__ import annotations

import trio
import typer

from relay.cli.database import open_database
from relay.cli.options import DatabaseUrl, DataDir, load_settings
from relay.config import Settings
from relay.store import migrate

migrate_app = typer.Typer(help="Look at the database schema, or bring it up to date.", no_args_is_help=True)


@migrate_app.command("up")
def up(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Apply every pending migration, each in a transaction of its own."""
    for name in trio.run(_up, load_settings(data_dir=data_dir, database_url=database_url)):
        typer.echo(f"applied {name}")
    typer.echo("the schema is up to date")


async def _up(settings: Settings) -> list[str]:
    async with open_database(settings) as connection:
        return await migrate.up(connection)


@migrate_app.command("status")
def status(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """List the migrations. Exit code 1 if the schema is not that of this version. Writes nothing."""
    rows = trio.run(_status, load_settings(data_dir=data_dir, database_url=database_url))
    for row in rows:
        typer.echo(f"{row.number:04} {row.name:24} {row.state:8} {row.applied_at or ''}".rstrip())
    if any(row.state != "applied" for row in rows):
        raise typer.Exit(1)


async def _status(settings: Settings) -> list[migrate.MigrationStatus]:
    async with open_database(settings) as connection:
        return await migrate.status(connection)
