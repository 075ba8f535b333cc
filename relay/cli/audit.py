"""`relay audit`: questions to the audit log from the outside.

    relay audit verify [--from N] [--to N] [--json] [--data-dir DIRECTORY] [--database-url URL]

Exit codes: 0 the chain is intact, 1 it is broken, 2 it could not be checked. The answer goes to stdout, progress and
errors to stderr, so that `--json` can be piped.
"""

from __future__ import annotations

import sys
from typing import Annotated

import orjson
import trio
import typer

from relay import logs
from relay.asyncpg_trio import ConnectionLost, PostgresError
from relay.audit.verify import VerifyReport, verify
from relay.cli.options import DatabaseUrl, DataDir, load_settings
from relay.config import Settings
from relay.errors import RelayError

EXIT_BROKEN = 1
EXIT_NOT_CHECKED = 2

audit_app = typer.Typer(help="The audit log.", no_args_is_help=True)


@audit_app.callback()
def _group() -> None:
    """The audit log."""  # without a callback a single command would swallow its own name


@audit_app.command("verify")
def verify_command(
    from_seq: Annotated[int | None, typer.Option("--from", min=1, help="First entry to check.")] = None,
    to_seq: Annotated[int | None, typer.Option("--to", min=1, help="Last entry to check.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Recompute the chain of hashes. Exit code 0: intact, 1: broken, 2: could not be checked."""
    report: VerifyReport | None = None
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    # Without this, a line about a slow database would land on stdout, in the middle of the JSON.
    logs.configure(settings.log_level, settings.log_format)
    # except*: the embedded server, if it is started for us, runs in a nursery.
    try:
        report = trio.run(_verify, settings, from_seq, to_seq)
    except* (RelayError, PostgresError, ConnectionLost, OSError) as group:
        for error in _leaves(group):
            typer.echo(f"could not check: {error}", err=True)
    if report is None:
        raise typer.Exit(EXIT_NOT_CHECKED)
    typer.echo(orjson.dumps(report.as_dict()).decode() if as_json else report.summary())
    raise typer.Exit(0 if report.ok else EXIT_BROKEN)


async def _verify(settings: Settings, from_seq: int | None, to_seq: int | None) -> VerifyReport:
    # Here, so that asking for help does not load the embedded server's machinery.
    from relay.cli.database import open_database

    async with open_database(settings) as con:
        progress = _show_progress if sys.stderr.isatty() else None
        return await verify(con, from_seq=from_seq, to_seq=to_seq, progress=progress)


def _show_progress(done: int, total: int) -> None:
    typer.echo(f"\r{done} of {total}", err=True, nl=done >= total)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
