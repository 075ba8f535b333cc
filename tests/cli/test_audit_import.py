"""`relay audit import`: sources, answers, exit codes; what it takes over is what the relay then goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
import typer
from typer.testing import CliRunner, Result

from relay.asyncpg_trio import connect
from relay.cli import audit_import
from tests.audit.test_original import BEGIN_NS, ORIGINAL_TABLE, jsonl, original_chain, write_theirs
from tests.support.postgres import PostgresServer

Run = Callable[..., Result]


@pytest.fixture
def run(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", migrated_dsn)
    app = typer.Typer()
    app.callback()(lambda: None)
    audit_import.register(app)
    return lambda *arguments: CliRunner().invoke(app, ["import", *map(str, arguments)])


@pytest.fixture
def rows_there(migrated_dsn: str, postgres_server: PostgresServer) -> Callable[[], str]:
    database = urlsplit(migrated_dsn).path[1:]
    return partial(postgres_server.psql, database, "SELECT count(*) FROM audit_log")


def written(directory: Path, rows: list[dict[str, object]]) -> Path:
    path = directory / "audit.jsonl"
    path.write_bytes(jsonl(rows))
    return path


def test_a_file_is_checked_and_then_taken_over(run: Run, rows_there: Callable[[], str], tmp_path: Path) -> None:
    path = written(tmp_path, original_chain(*range(BEGIN_NS, BEGIN_NS + 5)))
    done = run(path, "--check")
    assert done.exit_code == 0, done.output
    assert "5 entries of the original: every one verifies\n4 of them by the nanoseconds" in done.stdout
    assert rows_there() == "0"
    done = run(path, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["rows"], answer["nanoseconds"], answer["faults"]) == (True, 5, 4, [])
    assert "imported" in done.stderr
    assert rows_there() == "5"
    again = run(path)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "not imported: this relay's audit log has entries already" in again.stderr


def test_the_originals_database(run: Run, rows_there: Callable[[], str], empty_dsn: str) -> None:
    async def prepare() -> None:
        con = await connect(empty_dsn)
        await con.execute(ORIGINAL_TABLE)
        await write_theirs(con, original_chain(*range(BEGIN_NS, BEGIN_NS + 3)))
        await con.close()

    trio.run(prepare)
    done = run(empty_dsn)
    assert done.exit_code == 0, done.output
    assert rows_there() == "3"


@pytest.mark.parametrize("option", [["--check"], []])
def test_rows_that_do_not_verify_are_refused(
    run: Run, rows_there: Callable[[], str], tmp_path: Path, option: list[str]
) -> None:
    rows = original_chain(*range(BEGIN_NS, BEGIN_NS + 5))
    rows[2]["event_kind"] = 1
    done = run(written(tmp_path, rows), *option)
    assert done.exit_code == 1, done.output
    assert "hash mismatch at seq 3" in done.stdout
    assert ("nothing was imported" in done.stderr) is (option == [])
    assert rows_there() == "0"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/nowhere/audit.jsonl", "No such file"),
        ("postgresql://relay@127.0.0.1:1/x", "cannot connect"),
        ("postgresql://relay:hunter2/x@127.0.0.1/relay", "%2F"),
        ("postgresql://relay:hunter2@127.0.0.1/relay?sslmode=perhaps", "%2F"),
    ],
)
def test_a_source_that_cannot_be_read_is_explained(run: Run, source: str, says: str) -> None:
    done = run(source, "--check")
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert "not checked: " in done.stderr
    assert says in done.stderr
    assert "hunter2" not in done.output
