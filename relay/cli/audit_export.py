"""`relay audit export` and `relay audit tail`: the log as a file, and its last entries on the screen.

    relay audit export [--from N] [--to N] [--output FILE]
    relay audit tail [-n N] [--follow] [--json]

Exit codes: 0 done, 2 not done. The form of the file is that of relay/audit/export.py, and `relay audit verify --export`
checks it without a database.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import trio
import typer

from relay.asyncpg_trio import Connection
from relay.audit import log
from relay.audit.chain import ChainedEntry
from relay.audit.export import row_line, write
from relay.cli.audit_shared import counter, telling, with_database
from relay.cli.options import DatabaseUrl, DataDir, load_settings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A person reads: what is a second old is new.
FOLLOW_SECONDS = 1.0
_WINDOW_ROWS = 500
TAIL_ROWS_MAX = 1_000_000


def register(app: typer.Typer) -> None:
    app.command("export")(export)
    app.command("tail")(tail)


def export(
    from_seq: Annotated[int, typer.Option("--from", min=1, help="First entry.")] = 1,
    to_seq: Annotated[int | None, typer.Option("--to", min=1, help="Last entry; unset = the newest.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file instead of the screen.", metavar="FILE")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write the log, or a part of it, as JSON lines that can be verified without the database."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    with telling("not exported"), _target(output) as file:
        progress = counter() if output is not None else None
        work = partial(write, out=file, first=from_seq, last=to_seq, progress=progress)
        footer = with_database(settings, work)
        typer.echo(f"{footer.rows} entries", err=True)


@contextmanager
def _target(path: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that did not exist and is whole on the disk afterwards, or is not there."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    # Not for everybody's eyes, and never over another one: it may be somebody's evidence.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 -- a descriptor, not a path
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def tail(
    count: Annotated[int, typer.Option("-n", min=0, max=TAIL_ROWS_MAX, help="How many entries.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As in an export: one JSON object a line.")] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the newest entries of the log."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    spell: Callable[[ChainedEntry], bytes] = row_line if as_json else _line
    with telling("could not read the log"):
        try:
            with_database(settings, partial(_tail, count=count, follow=follow, spell=spell))
        except* KeyboardInterrupt:
            pass  # how following ends


async def _tail(con: Connection, *, count: int, follow: bool, spell: Callable[[ChainedEntry], bytes]) -> None:
    newest, _ = await log.read_end(con)
    after = max(0, newest - count)
    while True:
        while rows := await log.read_rows(con, after, 2**63 - 1, _WINDOW_ROWS):
            sys.stdout.buffer.writelines(map(spell, rows))
            sys.stdout.buffer.flush()
            after = rows[-1].seq
        if not follow:
            return
        await trio.sleep(FOLLOW_SECONDS)


def _line(row: ChainedEntry) -> bytes:
    entry = row.entry
    parts = [str(row.seq), _moment(entry.time_us), entry.action]
    named = [("by", entry.actor), ("event", entry.event_id), ("kind", entry.kind), ("channel", entry.channel_id)]
    parts += [f"{name} {value}" for name, value in named if value is not None]
    if entry.metadata not in ("{}", "null"):
        parts.append(entry.metadata)
    # Much of this comes from clients: nothing in it gets to move the terminal's cursor.
    text = "  ".join(parts)
    return ("".join(each if each.isprintable() else "?" for each in text) + "\n").encode()


def _moment(time_us: int) -> str:
    try:
        return (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except OverflowError:
        return str(time_us)
