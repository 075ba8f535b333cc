"""`relay serve`: run a relay in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relay import launch
from relay.assembly import assemble
from relay.cli.options import DatabaseUrl, DataDir, load_settings


def serve(
    bind: Annotated[
        str | None, typer.Option("--bind", help="Address of HTTP and WebSocket; port 0 = any.", metavar="HOST:PORT")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    relay_url: Annotated[
        str | None, typer.Option("--relay-url", help="Public address, as clients know it.", metavar="URL")
    ] = None,
    uds: Annotated[Path | None, typer.Option("--uds", help="Also listen on this Unix socket.", metavar="PATH")] = None,
    health_port: Annotated[int | None, typer.Option("--health-port", help="Health listener; 0 = none.")] = None,
    metrics_port: Annotated[int | None, typer.Option("--metrics-port", help="Metrics listener; 0 = none.")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="auto, json or console.")] = None,
) -> None:
    """Run the relay until SIGTERM or Ctrl-C.

    Without options it listens on 127.0.0.1:3000 and brings its own PostgreSQL in ./relay-data. Every setting can also
    come from the environment or relay.toml (see `relay config docs`); the command line wins.

    Exit codes: 0 everything was drained, 2 refused to start, 70 a part crashed, 75 entries are left to the next start.
    """
    settings = load_settings(
        bind_addr=bind,
        data_dir=data_dir,
        database_url=database_url,
        relay_url=relay_url,
        uds_path=uds,
        health_port=health_port,
        metrics_port=metrics_port,
        log_level=log_level,
        log_format=log_format,
    )
    raise typer.Exit(int(launch.serve(settings, assemble)))
