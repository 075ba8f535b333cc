"""`relay audit prove`, `consistency`, `check`: made by the operator, checked by somebody without the database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import trio
import typer
from typer.testing import CliRunner, Result

from relay.asyncpg_trio import Connection, connect
from relay.cli import audit_proofs
from relay.nostr import nip19
from relay.nostr.keys import SecretKey
from relay.store import relay_identity
from tests.support.audit_log import grow, sign_log, unprotect

KEY = SecretKey.from_bytes(bytes([1]) * 32)
Run = Callable[..., Result]


@pytest.fixture
def run(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", migrated_dsn)
    app = typer.Typer()
    audit_proofs.register(app)
    return lambda *arguments, **options: CliRunner().invoke(app, [str(each) for each in arguments], **options)


def in_database(dsn: str, work: Callable[[Connection], object]) -> None:
    async def main() -> None:
        con = await connect(dsn)
        await work(con)  # type: ignore[misc]
        con.terminate()

    trio.run(main)


async def prepare(con: Connection) -> None:
    await relay_identity.claim(con, KEY.public_hex)
    for size in (4, 9):
        await grow(con, size - await con.fetchval("SELECT count(*) FROM audit_log"))
        await sign_log(con, KEY, size)
    await grow(con, 1)


def test_a_proof_goes_from_the_operator_to_the_auditor(run: Run, migrated_dsn: str, tmp_path: Path):
    in_database(migrated_dsn, prepare)
    file = tmp_path / "proof.json"
    for made in (run("prove", 3, "--output", file), run("consistency", 4, 9, "-o", file)):
        assert (made.exit_code, made.output) == (0, "")
        done = run("check", file, "--key", nip19.encode_npub(KEY.public_hex))
        assert (done.exit_code, done.stderr) == (0, "")
        assert f"is signed by {KEY.public_hex}" in done.stdout
    shown = run("prove", 3, "--size", 4)
    assert orjson.loads(shown.stdout)["size"] == 4
    done = run("check", "-", input=shown.stdout)
    assert done.exit_code == 0
    assert done.stdout.startswith("entry 3 (event_created, 2023-11-14T22:13:20Z) has the hash of its fields\n")
    assert "Compare the key" in done.stderr


def test_what_does_not_hold_is_1_and_what_cannot_be_said_is_2(run: Run, migrated_dsn: str, tmp_path: Path):
    assert run("prove", 1).exit_code == 2
    in_database(migrated_dsn, prepare)
    for arguments, said in (
        (("prove", 10), "no proof: the checkpoint at 9 entries does not cover entry 10"),
        (("prove", 1, "--size", 5), "no proof: no checkpoint at 5 entries"),
        (("consistency", 9, 4), "cannot begin with one of 9"),
        (("check", tmp_path / "none"), "No such file"),
        (("check", "-"), "not proved: neither JSON nor text"),
        (("check", "-", "--key", "x"), "must be a public key"),
        (("prove", 2**63), "Invalid value"),
    ):
        done = run(*arguments, input=b"\xff")
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    document = orjson.loads(run("prove", 3).stdout)
    document["entry"]["actor"] = "cd" * 32
    forged = run("check", "-", input=orjson.dumps(document))
    assert (forged.exit_code, forged.stdout) == (1, "")
    assert forged.stderr == "not proved: the hash of entry 3 is not that of its fields\n"

    async def damage(con: Connection) -> None:
        await unprotect(con)
        await con.execute("DELETE FROM audit_log WHERE seq IN (3, 6)")

    in_database(migrated_dsn, damage)
    for arguments, seq in ((("prove", 3), 3), (("consistency", 4, 9), 6)):
        done = run(*arguments)
        assert (done.exit_code, f"has no row seq {seq}" in done.stderr) == (1, True)


def test_a_document_without_an_end_is_not_read_to_its_end(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit_proofs, "DOCUMENT_BYTES_MAX", 10)
    done = run("check", "-", input=b"x" * 11)
    assert (done.exit_code, done.stderr) == (2, "not proved: longer than 10 bytes\n")
