"""`relay config docs` and `relay config check`: the settings as a table, and whether the present ones make sense."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relay import config
from relay.cli.options import load_settings

BEGIN, END = "<!-- settings: begin (scripts/check compares; relay config docs --write) -->", "<!-- settings: end -->"

config_app = typer.Typer(help="The settings: documentation and check.", no_args_is_help=True)

File = Annotated[Path, typer.Option("--file", help="The document that holds the table.", metavar="PATH")]


@config_app.command("docs")
def docs(
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 if the table in the file is not this one.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="Put the table into the file, between its two marks.")] = False,
    file: File = Path("README.md"),
) -> None:
    """Print the table of all settings as Markdown."""
    table = markdown()
    if not check and not write:
        typer.echo(table)
        return
    text = file.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        typer.echo(f"{file} has no marks for the table of settings:\n{BEGIN}\n{END}", err=True)
        raise typer.Exit(1)
    wanted = f"{before}{BEGIN}\n{table}\n{END}{after}"
    if write:
        file.write_text(wanted, "utf-8")
    elif text != wanted:
        typer.echo(f"the table of settings in {file} is not up to date: relay config docs --write", err=True)
        raise typer.Exit(1)


@config_app.command("check")
def check_settings() -> None:
    """Read the environment and relay.toml as `relay serve` would. Exit code 2, and every wrong value, if any is."""
    load_settings()
    typer.echo("the configuration is valid")


def markdown() -> str:
    """One row a setting, in the order of relay/config.py."""
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for _, variable, default, text in config.describe():
        lines.append(f"| `{variable}` | {f'`{default}`' if default else ''} | {text} |")
    return "\n".join(lines)
