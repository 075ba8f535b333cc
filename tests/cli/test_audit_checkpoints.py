"""`relay audit checkpoint` and `relay audit accept-loss`: the note as it was signed, and refusals to sign two logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
import typer
from typer.testing import CliRunner, Result

from relay.asyncpg_trio import connect
from relay.audit import checkpoint_file, note
from relay.audit.signing import ADVISORY_LOCK
from relay.cli import audit_checkpoints
from relay.nostr.keys import SecretKey
from relay.store import relay_identity
from tests.audit.memory import entries
from tests.cli.test_audit_export import fill
from tests.support.postgres import PostgresServer

Run = Callable[..., Result]
Sql = Callable[[str], str]
KEY = SecretKey.from_bytes(bytes(31) + b"\x07")
ORIGIN = note.origin_of(KEY.public_hex)


@pytest.fixture
def run(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("DATABASE_URL", migrated_dsn)
    monkeypatch.setenv("SPROUT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SPROUT_RELAY_PRIVATE_KEY", KEY.to_bytes().hex())
    app = typer.Typer()
    audit_checkpoints.register(app)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def sql(migrated_dsn: str, postgres_server: PostgresServer) -> Sql:
    return lambda statement: postgres_server.psql(urlsplit(migrated_dsn).path[1:], statement)


@pytest.fixture
def log(migrated_dsn: str) -> Callable[[int, int], None]:
    """Entries `first` to `last` of a log of a relay that has been started."""

    async def make(first: int, last: int) -> None:
        con = await connect(migrated_dsn)
        await relay_identity.claim(con, KEY.public_hex)
        await con.close()
        await fill(migrated_dsn, *entries(first, last - first + 1))

    return lambda first, last: trio.run(make, first, last)


def notes(directory: Path) -> list[str]:
    return [each.note for each in checkpoint_file.read(directory / checkpoint_file.FILE_NAME)]


def test_made_shown_and_kept(run: Run, log: Callable[[int, int], None], tmp_path: Path) -> None:
    log(1, 3)
    assert run("checkpoint").exit_code == 1
    made = run("checkpoint", "--make")
    assert made.exit_code == 0, made.output
    found = note.parse(made.stdout)
    assert (found.origin, found.size, note.is_signed_by(found, KEY.public_hex)) == (ORIGIN, 3, True)
    assert run("checkpoint").stdout == run("checkpoint", "--make").stdout == made.stdout
    assert notes(tmp_path) == [made.stdout]
    log(4, 5)
    newer = run("checkpoint", "--make", "--json")
    answer = json.loads(newer.stdout)
    assert (answer["origin"], answer["size"], answer["event_id"], answer["signed_by"]) == (ORIGIN, 5, None, [ORIGIN])
    assert notes(tmp_path) == [made.stdout, answer["note"]]
    assert run("checkpoint", "--size", 3).stdout == made.stdout
    missing = run("checkpoint", "--size", 4)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "no checkpoint: the log has none of 4 entries" in missing.stderr


def test_what_cannot_be_made(run: Run, log: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ([], ["--make"]):
        assert "no relay has ever started" in run("checkpoint", *options).stderr
    log(1, 0)
    assert "the log is empty" in run("checkpoint", "--make").stderr
    log(1, 2)
    assert run("checkpoint", "--make", "--size", 2).exit_code == 2
    monkeypatch.delenv("SPROUT_RELAY_PRIVATE_KEY")
    done = run("checkpoint", "--make")
    assert done.exit_code == 2
    assert "the relay's key is not here" in done.stderr
    monkeypatch.setenv("SPROUT_RELAY_PRIVATE_KEY", "22" * 32)
    done = run("checkpoint", "--make")
    assert done.exit_code == 2
    assert "belongs to the relay" in done.stderr


def test_a_key_is_never_made(
    run: Run, log: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log(1, 2)
    monkeypatch.delenv("SPROUT_RELAY_PRIVATE_KEY")
    assert run("checkpoint", "--make").exit_code == 2
    assert run("accept-loss", "--reason", "x").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_another_process_signs(run: Run, log: Callable[[int, int], None], migrated_dsn: str) -> None:
    log(1, 2)

    async def held() -> Result:
        con = await connect(migrated_dsn)
        await con.execute(f"SELECT pg_advisory_lock({ADVISORY_LOCK})")
        try:
            return await trio.to_thread.run_sync(run, "checkpoint", "--make")
        finally:
            await con.close()

    done = trio.run(held)
    assert done.exit_code == 2
    assert "another node is signing" in done.stderr


def test_a_log_that_is_not_the_signed_one_is_not_signed_until_the_loss_is_accepted(
    run: Run, log: Callable[[int, int], None], sql: Sql, tmp_path: Path
) -> None:
    log(1, 5)
    first = run("checkpoint", "--make").stdout
    refused = run("accept-loss", "--reason", "for fun")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "nothing is lost" in refused.stderr
    sql("ALTER TABLE audit_log DISABLE TRIGGER ALL; DELETE FROM audit_log WHERE seq > 3")
    refused = run("checkpoint", "--make")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "relay audit accept-loss" in refused.stderr
    assert "not accepted: " in run("accept-loss", "--reason", " ").stderr
    done = run("accept-loss", "--reason", "restored the backup of Sunday")
    assert done.exit_code == 0, done.output
    found = note.parse(done.stdout)
    assert (found.origin, found.size) == (note.origin_of(KEY.public_hex, 2), 3)
    assert note.is_signed_by(found, KEY.public_hex)
    assert f"the log goes on as {found.origin}, with 3 entries" in done.stderr
    assert run("checkpoint").stdout == done.stdout
    assert notes(tmp_path) == [first, done.stdout]
    assert sql("SELECT reason, size, head_seq FROM audit_losses") == "restored the backup of Sunday|5|3"
