"""The `relay` command line.

A command is a function in a file of its own; what it shares with others is in `database.py`. Exit codes: 0 done, 1 the
command's own "no", 2 wrong usage or configuration (typer's, too); `serve` has those of relay/shutdown.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from relay import __version__
from relay.cli.audit import audit_app
from relay.cli.config import config_app
from relay.cli.migrate import migrate_app
from relay.cli.serve import serve
from relay.cli.token import token_app
from relay.embedded import EmbeddedError
from relay.errors import ConfigError, RelayError, leaves

app = typer.Typer(
    name="relay",
    help="A self-hosted Nostr relay for teams of people and agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve)
app.add_typer(audit_app, name="audit")
app.add_typer(config_app, name="config")
app.add_typer(migrate_app, name="migrate")
app.add_typer(token_app, name="token")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"relay {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the `relay` script. Always ends by SystemExit."""
    try:
        app(list(arguments) if arguments is not None else None, prog_name="relay")
    except* RelayError as group:
        sys.exit(_explain(group))


def _explain(group: BaseExceptionGroup[RelayError]) -> int:
    code = 1
    for error in leaves(group):
        sys.stderr.write(f"relay: {error}\n")
        if isinstance(error, ConfigError | EmbeddedError):
            code = 2
    return code
