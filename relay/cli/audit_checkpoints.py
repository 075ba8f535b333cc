"""`relay audit checkpoint` and `relay audit accept-loss`: what the relay has signed about its log.

    relay audit checkpoint [--make] [--size N] [--json]
    relay audit accept-loss --reason TEXT

The signed note goes to stdout byte for byte, so that it can be kept elsewhere and held against the log later
(`relay audit verify --against FILE`). Exit codes: 0 done, 1 there is no such checkpoint or the log is not what was
signed, 2 it could not be said.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

import orjson
import trio
import typer

from relay.asyncpg_trio import Connection
from relay.audit import checkpoint_file, checkpoints, start
from relay.audit.checkpoints import Stored
from relay.audit.note import Checkpoint
from relay.audit.signing import sign_next
from relay.cli.audit_shared import own_key, telling, with_database
from relay.cli.options import DatabaseUrl, DataDir, load_settings
from relay.config import Settings
from relay.errors import AuditError
from relay.store import relay_identity


def register(app: typer.Typer) -> None:
    app.command("checkpoint")(checkpoint)
    app.command("accept-loss")(accept_loss)


def checkpoint(
    make: Annotated[bool, typer.Option("--make", help="Sign one now, if there is anything new.")] = False,
    size: Annotated[int | None, typer.Option(min=0, help="That of so many entries; unset = the newest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the newest checkpoint of the log, signed by the relay, with the cosignatures of witnesses."""
    if make and size is not None:
        raise typer.BadParameter("what is made covers the whole log", param_hint="--size")
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    with telling("no checkpoint", no=AuditError):
        work = partial(_make, settings=settings) if make else partial(_find, size=size)
        stored = with_database(settings, work)
        if as_json:
            typer.echo(orjson.dumps(_as_dict(stored)).decode())
        else:
            typer.echo(stored.checkpoint.note, nl=False)


def accept_loss(
    reason: Annotated[str, typer.Option(help="Why; kept in the log, for ever.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Let the log go on without entries that were signed for and are gone: under a new name. Stop the relay first."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    with telling("not accepted", no=AuditError):
        made = with_database(settings, partial(_accept_loss, settings=settings, reason=reason))
        typer.echo(f"the log goes on as {made.origin}, with {made.size} entries; its first checkpoint is", err=True)
        typer.echo(made.note, nl=False)


async def _find(con: Connection, *, size: int | None) -> Stored:
    pubkey = await relay_identity.get(con)
    if pubkey is None:
        raise AuditError("no relay has ever started on this database")
    origin = await checkpoints.origin(con, pubkey)
    newest = partial(checkpoints.newest, con, origin)
    found = await (newest() if size is None else checkpoints.at(con, origin, size))
    if found is None:
        raise AuditError("the log has none yet" if size is None else f"the log has none of {size} entries")
    return found


async def _make(con: Connection, *, settings: Settings) -> Stored:
    """As the running relay makes them: compared with all that was signed before, kept in the database and the file.
    Published by the relay, when it makes its next or starts."""
    key, data_dir = await own_key(con, settings)
    path = checkpoint_file.place(settings, data_dir)
    await start.check(con, key.public_hex, path, _now_us)
    latest = await sign_next(con, key, _now_us)
    if latest is None:
        raise AuditError("the log is empty")
    if latest.made:
        await trio.to_thread.run_sync(checkpoint_file.append, path, latest.checkpoint)
    return latest.stored


async def _accept_loss(con: Connection, *, settings: Settings, reason: str) -> Checkpoint:
    key, data_dir = await own_key(con, settings)
    return await start.accept_loss(con, key, checkpoint_file.place(settings, data_dir), reason, _now_us)


def _as_dict(stored: Stored) -> dict[str, Any]:
    found = stored.checkpoint
    return {
        "origin": found.origin,
        "size": found.size,
        "root": found.root.hex(),
        "time_us": stored.time_us,
        "event_id": stored.event_id,
        "signed_by": [each.name for each in found.signatures],
        "note": found.note,
    }


def _now_us() -> int:
    return time.time_ns() // 1000
