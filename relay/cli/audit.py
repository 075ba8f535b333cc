"""`relay audit`: questions to the audit log from the outside. Here: `verify`; the others are in files beside this one.

    relay audit verify [--from N] [--to N] [--against FILE|URL]... [--export FILE] [--key PUBKEY] [--json]

Exit codes: 0 the log is intact, 1 it is broken, 2 it could not be checked. The answer goes to stdout, progress and
errors to stderr, so that `--json` can be piped.

Whose signatures count: those of `--key`; else of the relay that the database says is its own, which must then be the
one whose key is in the data directory, if there is one. Whoever replaces a whole database replaces that row as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import orjson
import trio
import typer

from relay import logs
from relay.access import relay_key
from relay.asyncpg_trio import Connection, ConnectionLost, PostgresError
from relay.audit import checkpoint_file, spool, spool_file, verify_export
from relay.audit.anchors import Anchors
from relay.audit.report import VerifyReport
from relay.audit.verify import add_database, verify
from relay.audit.walk import FaultKind
from relay.audit.witness_client import peers
from relay.cli import audit_checkpoints, audit_export, audit_import, audit_progress, audit_proofs
from relay.cli.options import DatabaseUrl, DataDir, load_settings
from relay.config import Settings
from relay.database import effective_data_dir
from relay.errors import AuditError, ConfigError, RelayError, leaves
from relay.nostr.ids import parse_pubkey
from relay.store import relay_identity

EXIT_BROKEN = 1
EXIT_NOT_CHECKED = 2

audit_app = typer.Typer(help="The audit log.", no_args_is_help=True)


@audit_app.callback()
def _group() -> None:
    """The audit log."""  # without a callback a single command would swallow its own name


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The command line."""

    from_seq: int | None
    to_seq: int | None
    against: tuple[str, ...]
    key: str | None
    token: str | None


@audit_app.command("verify")
def verify_command(
    from_seq: Annotated[int | None, typer.Option("--from", min=1, help="First entry to check.")] = None,
    to_seq: Annotated[int | None, typer.Option("--to", min=1, help="Last entry to check.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Checkpoints kept elsewhere: a file of notes or events, http(s):// or ws(s)://. Repeatable.",
            metavar="FILE|URL",
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Check this export instead of the database.", metavar="FILE")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Whose signatures count: hex or npub.", metavar="PUBKEY")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token for --against URL.", metavar="FILE")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="RELAY_TOKEN", help="The token itself; rather set RELAY_TOKEN.", hidden=True)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Recompute the chain of hashes and compare it with what was signed. Exit code 0: intact, 1: broken, 2: could not
    be checked."""
    report: VerifyReport | None = None
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    # Without this, a line about a slow database would land on stdout, in the middle of the JSON.
    logs.configure(settings.log_level, settings.log_format)
    # except*: the embedded server, if it is started for us, runs in a nursery.
    try:
        wanted = _Wanted(from_seq, to_seq, tuple(against or ()), _pubkey(key), _token(token, token_file))
        report = trio.run(_verify, settings, wanted) if export is None else trio.run(_export, settings, wanted, export)
    except* (RelayError, PostgresError, ConnectionLost, OSError) as group:
        for error in leaves(group):
            typer.echo(f"could not check: {error}", err=True)
    if report is None:
        raise typer.Exit(EXIT_NOT_CHECKED)
    typer.echo(orjson.dumps(report.as_dict()).decode() if as_json else report.summary())
    raise typer.Exit(0 if report.ok else EXIT_BROKEN)


for _more in (audit_export, audit_import, audit_checkpoints, audit_proofs):
    _more.register(audit_app)


# -- the database ----------------------------------------------------------------------------------------------------


async def _verify(settings: Settings, wanted: _Wanted) -> VerifyReport:
    # Here, so that asking for help does not load the embedded server's machinery.
    from relay.cli.database import open_database

    async with open_database(settings) as con:
        data_dir = settings.data_dir
        if settings.database_url is None:
            data_dir, _ = await effective_data_dir(settings)
        recorded = await _recorded(con)
        pubkey = wanted.key or recorded
        if pubkey is None:
            return await _verify_chain(con, wanted)
        with Anchors(pubkey, witnesses=[peer.pubkey for peer in peers(settings.audit_witnesses)]) as anchors:
            if recorded is not None and recorded != pubkey:
                _tell_another(anchors, f"the database is of the relay {recorded}, and --key is {pubkey}")
            _add_local(anchors, settings, data_dir, keyed=wanted.key is not None)
            await _add_elsewhere(anchors, wanted)
            await add_database(con, anchors)
            with audit_progress.shown() as progress:
                report = await verify(
                    con, from_seq=wanted.from_seq, to_seq=wanted.to_seq, anchors=anchors, progress=progress
                )
        return report.with_spool(spool_file.count(spool.place(settings, data_dir)))


async def _verify_chain(con: Connection, wanted: _Wanted) -> VerifyReport:
    """A database that no relay has started on, and nobody's key: there is nothing that could have been signed."""
    if wanted.against:
        raise AuditError("whose signatures count? No relay has started on this database: give --key")
    with audit_progress.shown() as progress:
        return await verify(con, from_seq=wanted.from_seq, to_seq=wanted.to_seq, progress=progress)


async def _recorded(con: Connection) -> str | None:
    if not await con.fetchval("SELECT to_regclass('relay_identity') IS NOT NULL"):
        return None
    return await relay_identity.get(con)


def _add_local(anchors: Anchors, settings: Settings, data_dir: Path, *, keyed: bool) -> None:
    """The file beside the relay's key. Where both are another relay's, either this database or this directory is the
    wrong one; who says so with --key knows which."""
    own = _own_pubkey(settings, data_dir)
    if own is not None and own != anchors.pubkey:
        if not keyed:
            _tell_another(
                anchors,
                f"the relay's key here is {own}, and the database is of {anchors.pubkey}: it was replaced, or this is "
                "the data directory of another relay (then give --key)",
            )
        return
    path = checkpoint_file.place(settings, data_dir)
    if not path.exists():
        if settings.audit_checkpoint_file is not None or own is not None:
            anchors.warn(f"there is no checkpoint file {path}")
        return

    def report(problem: checkpoint_file.Problem) -> None:
        if problem.torn:
            anchors.warn(f"{path}, line {problem.line}: {problem.what}")
        else:
            anchors.bad(str(path), f"line {problem.line}: {problem.what}")

    for checkpoint in checkpoint_file.read(path, report):
        anchors.add(str(path), checkpoint, ours=True)


def _own_pubkey(settings: Settings, data_dir: Path) -> str | None:
    path = data_dir / relay_key.FILE_NAME
    try:
        if settings.relay_private_key is None and not path.exists():
            return None
        return relay_key.obtain(settings, data_dir).public_hex
    except (ConfigError, OSError):
        return None  # somebody else's directory: whoever verifies need not be able to read the key


async def _add_elsewhere(anchors: Anchors, wanted: _Wanted) -> None:
    if not wanted.against:
        return
    # Here, because httpx2 and trio-websocket take a while to load.
    from relay.cli import audit_sources

    for source in wanted.against:
        await audit_sources.add(anchors, source, wanted.token)


def _tell_another(anchors: Anchors, detail: str) -> None:
    anchors.faults.note(FaultKind.ANOTHER_LOG, 0, detail)


# -- an export -------------------------------------------------------------------------------------------------------


async def _export(settings: Settings, wanted: _Wanted, path: Path) -> VerifyReport:
    if wanted.from_seq is not None or wanted.to_seq is not None:
        raise AuditError("an export is checked as a whole: --from and --to are for the database")
    named = verify_export.relay_of(path)
    pubkey = wanted.key or named
    if pubkey is None:
        if wanted.against:
            raise AuditError("whose signatures count? The export names no relay: give --key")
        return verify_export.verify_export(path, None)
    with Anchors(pubkey, witnesses=[peer.pubkey for peer in peers(settings.audit_witnesses)]) as anchors:
        if wanted.key is None:
            anchors.warn(f"the export itself says that it is of {pubkey}: is that the relay's key? (--key)")
        elif named != pubkey:
            _tell_another(anchors, f"the export is of the relay {named}, and --key is {pubkey}")
        verify_export.add_note(path, anchors)
        await _add_elsewhere(anchors, wanted)
        with audit_progress.shown() as progress:
            # It blocks, and nobody else waits in this process.
            return verify_export.verify_export(path, anchors, progress)


# -- the command line ------------------------------------------------------------------------------------------------


def _pubkey(text: str | None) -> str | None:
    if text is None:
        return None
    pubkey = parse_pubkey(text)
    if pubkey is None:
        raise ConfigError("--key: not a public key in hex or npub")
    return pubkey


def _token(token: str | None, path: Path | None) -> str | None:
    return path.read_text("utf-8").strip() if path is not None else token
