"""`relay audit prove`, `consistency` and `check`: proofs for somebody who does not have the database, and their check.

    relay audit prove SEQ [--size N] [--output FILE]
    relay audit consistency FROM TO [--output FILE]
    relay audit check FILE [--key PUBKEY]

Exit codes: 0 proved, 1 the log or the document does not hold, 2 it could not be said (no checkpoint, no database, not a
proof). `check` needs neither a database nor a configuration: it is the auditor's.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import orjson
import typer

from relay.asyncpg_trio import Connection
from relay.audit import proofs
from relay.audit.entry import INT64_MAX
from relay.audit.proofs import ConsistencyProof, InclusionProof, NotAProof, NotCovered
from relay.cli.audit_shared import telling, with_database
from relay.cli.options import DatabaseUrl, DataDir, load_settings
from relay.config import Settings
from relay.errors import AuditError
from relay.nostr.ids import parse_pubkey
from relay.store import relay_identity

# An entry has at most 64 KiB of metadata; an imported one may have more.
DOCUMENT_BYTES_MAX = 16 * 1024 * 1024

_Proof = InclusionProof | ConsistencyProof
_Prover = Callable[[Connection, str], Awaitable[_Proof]]

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File for the proof instead of the screen.", metavar="FILE")
]


def register(app: typer.Typer) -> None:
    app.command("prove")(prove)
    app.command("consistency")(consistency)
    app.command("check")(check)


def prove(
    seq: Annotated[int, typer.Argument(min=1, max=INT64_MAX, help="The number of the entry.")],
    size: Annotated[
        int | None,
        typer.Option(min=0, max=INT64_MAX, help="Under the checkpoint at so many entries."),
    ] = None,
    output: Output = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Prove that an entry is in the log: the entry, and its path to a root that the relay has signed."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    with telling("no proof", no=AuditError):
        _write(_made(settings, partial(proofs.prove, seq=seq, size=size)), output)


def consistency(
    old: Annotated[int, typer.Argument(min=0, max=INT64_MAX, metavar="FROM", help="Entries at the earlier one.")],
    new: Annotated[int, typer.Argument(min=0, max=INT64_MAX, metavar="TO", help="Entries at the later one.")],
    output: Output = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Prove that the log was only added to between two checkpoints."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    with telling("no proof", no=AuditError):
        _write(_made(settings, partial(proofs.prove_consistency, old=old, new=new)), output)


def check(
    file: Annotated[Path, typer.Argument(help="A proof, or the text of a checkpoint; - for standard input.")],
    key: Annotated[
        str | None, typer.Option(help="The relay's public key, from a source you trust; hex or npub1…")
    ] = None,
) -> None:
    """Check a proof or a checkpoint, without a database. Exit code 0: it holds, 1: it does not, 2: it is neither."""
    pubkey = None
    if key is not None and (pubkey := parse_pubkey(key)) is None:
        raise typer.BadParameter("must be a public key, in 64 hex digits or as npub1…", param_hint="--key")
    with telling("not proved", no=AuditError):
        for sentence in proofs.check(_document(file), pubkey):
            typer.echo(sentence)
        if pubkey is None:
            typer.echo("Compare the key with the relay's, known to you from elsewhere, or give it as --key.", err=True)


def _made(settings: Settings, prover: _Prover) -> _Proof:
    return with_database(settings, partial(_prove, prover=prover))


async def _prove(con: Connection, *, prover: _Prover) -> _Proof:
    pubkey = await relay_identity.get(con)
    if pubkey is None:
        raise NotCovered("no relay has ever started on this database")
    return await prover(con, pubkey)


def _write(proof: _Proof, output: Path | None) -> None:
    text = orjson.dumps(proof.as_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if output is None:
        typer.echo(text.decode(), nl=False)
        return
    output.write_bytes(text)


def _document(file: Path) -> bytes:
    if file == Path("-"):
        found = sys.stdin.buffer.read(DOCUMENT_BYTES_MAX + 1)
    else:
        with file.open("rb") as stream:
            found = stream.read(DOCUMENT_BYTES_MAX + 1)
    if len(found) > DOCUMENT_BYTES_MAX:
        raise NotAProof(f"longer than {DOCUMENT_BYTES_MAX} bytes")
    return found
