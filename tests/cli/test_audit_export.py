"""`relay audit export` and `relay audit tail`: files that are whole or not there, and lines for people."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import typer
from typer.testing import CliRunner, Result

from relay.asyncpg_trio import connect
from relay.audit import outbox
from relay.audit.export import opened
from relay.audit.log import chain_outbox
from relay.cli import audit_export
from tests.audit.memory import entries, entry

Run = Callable[..., Result]


async def fill(dsn: str, *some) -> None:
    con = await connect(dsn)
    await outbox.insert(con, some)
    await chain_outbox(con)
    await con.close()


@pytest.fixture
def run(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", migrated_dsn)
    app = typer.Typer()
    audit_export.register(app)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


class TestExport:
    def test_a_file_that_only_its_owner_reads(self, run: Run, migrated_dsn: str, tmp_path: Path) -> None:
        trio.run(fill, migrated_dsn, *entries(1, 5))
        path = tmp_path / "log.jsonl"
        done = run("export", "--from", 2, "--to", 4, "--output", path)
        assert (done.exit_code, done.stdout) == (0, ""), done.output
        assert "3 entries" in done.stderr
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with opened(path) as reader:
            assert [row.seq for row in reader] == [2, 3, 4]

    def test_the_screen_gets_the_same(self, run: Run, migrated_dsn: str, tmp_path: Path) -> None:
        trio.run(fill, migrated_dsn, *entries(1, 5))
        done = run("export")
        assert done.exit_code == 0
        run("export", "-o", tmp_path / "file")
        assert done.stdout_bytes == (tmp_path / "file").read_bytes()

    def test_nothing_is_overwritten(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "evidence"
        path.write_text("mine")
        done = run("export", "--output", path)
        assert (done.exit_code, path.read_text()) == (2, "mine")
        assert "not exported: " in done.stderr
        assert "exists" in done.stderr

    def test_what_failed_is_not_there(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        done = run("export", "--from", 5, "--to", 4, "--output", tmp_path / "file")
        assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
        assert "not a range of the log" in done.stderr
        monkeypatch.setenv("SPROUT_DATABASE_WAIT_SECONDS", "0.1")
        monkeypatch.setenv("DATABASE_URL", "postgresql://relay@127.0.0.1:1/x")
        done = run("export", "--output", tmp_path / "file")
        assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
        assert "did not answer" in done.stderr

    def test_a_database_without_tables(self, run: Run, empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", empty_dsn)
        done = run("export")
        assert done.exit_code == 2
        assert "relay migrate up" in done.stderr


class TestTail:
    def test_the_newest_for_people(self, run: Run, migrated_dsn: str) -> None:
        trio.run(fill, migrated_dsn, *entries(1, 3), entry(4, actor="\x1b[2J", kind=9, metadata={"why": "é"}))
        done = run("tail", "-n", 2)
        assert done.exit_code == 0, done.output
        third, fourth = done.stdout.splitlines()
        assert re.fullmatch(r"3  2026-01-01T00:00:00\.000003Z  event_created", third)
        assert fourth == '4  2026-01-01T00:00:00.000004Z  event_created  by ?[2J  kind 9  {"why":"é"}'
        assert run("tail", "-n", 0).stdout == ""
        assert len(run("tail").stdout.splitlines()) == 4

    def test_for_machines_it_is_the_line_of_an_export(self, run: Run, migrated_dsn: str) -> None:
        trio.run(fill, migrated_dsn, *entries(1, 3))
        assert run("tail", "--json").stdout.splitlines() == run("export").stdout.splitlines()[1:-1]

    def test_a_time_that_no_calendar_has(self, run: Run, migrated_dsn: str) -> None:
        trio.run(fill, migrated_dsn, entry(1, time_us=2**62))
        assert str(2**62) in run("tail").stdout

    async def test_following_shows_what_comes(self, migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit_export, "FOLLOW_SECONDS", 0.001)
        await fill(migrated_dsn, *entries(1, 3))
        send, receive = trio.open_memory_channel[int](10)
        con = await connect(migrated_dsn)

        def spell(row) -> bytes:
            send.send_nowait(row.seq)
            return b""

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(audit_export._tail, con, count=1, follow=True, spell=spell))
                assert await receive.receive() == 3
                await fill(migrated_dsn, *entries(4, 2))
                assert [await receive.receive() for _ in range(2)] == [4, 5]
                nursery.cancel_scope.cancel()
        con.terminate()
