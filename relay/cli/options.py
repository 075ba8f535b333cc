"""Options that several commands share, and the settings that result from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from relay import config
from relay.config import Settings

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where the embedded PostgreSQL and the relay's key are.", metavar="DIRECTORY"),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", help="PostgreSQL to use instead of the embedded one.", metavar="URL"),
]


def load_settings(**overrides: Any) -> Settings:
    """The settings, with what the command line gave on top (None = not given).

    Raises:
        ConfigError: With every wrong value.
    """
    return config.load(overrides)
