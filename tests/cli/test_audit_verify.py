"""`relay audit verify` as a user has it: the file beside the key, --against, --export, whose key counts, exit codes."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog
import trio
from typer.testing import CliRunner

from relay.access import relay_key
from relay.asyncpg_trio import connect
from relay.audit import checkpoint_file, checkpoints, export, log
from relay.audit.chain import GENESIS, link
from relay.cli.audit import audit_app
from relay.store import relay_identity
from tests.audit.memory import entry
from tests.audit.tampering import KEY, STRANGER, checkpoint

ROWS = link(GENESIS, [entry(number) for number in range(1, 11)])


@pytest.fixture
def relay(migrated_dsn, tmp_path, monkeypatch):
    """A log of ten entries, signed for at 4 and 8, with a data directory; runs the command on it."""

    async def prepare():
        con = await connect(migrated_dsn)
        await relay_identity.claim(con, KEY.public_hex)
        await log.insert_rows(con, ROWS)
        for size in (4, 8):
            await checkpoints.insert(con, checkpoint(ROWS, size), 1_767_225_600_000_000)
        with (tmp_path / "export.jsonl").open("wb") as out:
            await export.write(con, out)
        con.terminate()

    trio.run(prepare)
    key = tmp_path / relay_key.FILE_NAME
    key.write_text(KEY.to_bytes().hex())
    key.chmod(0o600)
    for size in (4, 8):
        checkpoint_file.append(tmp_path / checkpoint_file.FILE_NAME, checkpoint(ROWS, size))
    monkeypatch.setenv("DATABASE_URL", migrated_dsn)
    monkeypatch.setenv("SPROUT_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        done = CliRunner().invoke(audit_app, ["verify", "--json", *map(str, arguments)])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if done.stdout else done.stderr

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield run
    # The command configures logging for its process, which here is that of all tests.
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def intrude(dsn, *statements):
    async def work():
        con = await connect(dsn)
        await con.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
        for statement in statements:
            await con.execute(statement)
        con.terminate()

    trio.run(work)


def kinds(answer):
    return [(fault["kind"], fault["seq"]) for fault in answer["faults"]]


def test_what_it_stands_on(relay, tmp_path):
    answer = relay()
    assert (answer["ok"], answer["rows"], answer["spool_entries"]) == (True, 10, 0)
    covered = answer["checkpoints"]
    assert (covered["agreed"], covered["uncovered"], covered["newest"][0]["size"]) == (2, 2, 8)
    assert covered["newest"][0]["sources"] == sorted([str(tmp_path / checkpoint_file.FILE_NAME), "database"])


def test_a_cut_that_only_the_file_remembers(relay, migrated_dsn):
    intrude(migrated_dsn, "DELETE FROM audit_checkpoints", "DELETE FROM audit_log WHERE seq > 6")
    assert kinds(relay(code=1)) == [("truncated", 7)]


def test_against_a_note_a_file_of_events_and_nothing(relay, migrated_dsn, tmp_path):
    (tmp_path / "note.txt").write_text(checkpoint(ROWS, 10).note)
    event = {"kind": 48010, "pubkey": KEY.public_hex, "content": checkpoint(ROWS, 9).note}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n" + json.dumps(["EVENT", "s", event]) + "\n")
    answer = relay("--against", "note.txt", "--against", "events.jsonl")
    assert (answer["checkpoints"]["agreed"], answer["checkpoints"]["uncovered"]) == (4, 0)
    (tmp_path / "nothing.txt").touch()
    assert "no checkpoint of this log" in relay("--against", "nothing.txt", code=2)
    assert "could not check" in relay("--against", "missing.txt", code=2)
    assert "could not check" in relay("--against", "http://127.0.0.1:9/", code=2)
    assert "could not check" in relay("--against", "ws://127.0.0.1:9/", code=2)
    intrude(migrated_dsn, "DELETE FROM audit_log WHERE seq = 10")
    assert kinds(relay("--against", "note.txt", code=1)) == [("truncated", 10)]


def test_whose_key_counts(relay, migrated_dsn, tmp_path):
    assert ("another log", 0) in kinds(relay("--key", STRANGER.public_hex, code=1))
    intrude(migrated_dsn, f"UPDATE relay_identity SET pubkey = decode('{STRANGER.public_hex}', 'hex')")
    assert ("another log", 0) in kinds(relay(code=1))  # the key in the data directory says otherwise
    assert "--key" in relay("--key", "x", code=2)


def test_an_export_without_the_database(relay, tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://relay@/x?host=/nonexistent")
    answer = relay("--export", "export.jsonl", "--key", KEY.public_hex)
    assert (answer["ok"], answer["rows"], answer["checkpoints"]["agreed"]) == (True, 10, 1)
    lines = io.BytesIO((tmp_path / "export.jsonl").read_bytes()).readlines()
    (tmp_path / "edited.jsonl").write_bytes(b"".join(lines).replace(b'"seq":5,"uuid":"0', b'"seq":5,"uuid":"1'))
    assert kinds(relay("--export", "edited.jsonl", code=1)) == [("hash mismatch", 5)]
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:-2]))
    assert "line 11" in relay("--export", "cut.jsonl", code=2)
    assert ("another log", 0) in kinds(relay("--export", "export.jsonl", "--key", STRANGER.public_hex, code=1))
