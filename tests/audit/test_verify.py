"""Verifying in the database: what is covered, what it stands on, what was done to it; and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import trio

from relay.asyncpg_trio import connect
from relay.audit import outbox
from relay.audit.chain import GENESIS, link
from relay.audit.log import chain_outbox, insert_rows, read_head
from relay.audit.verify import verify, verify_head
from relay.audit.walk import FaultKind
from relay.errors import AuditError, ChainBroken
from tests.audit.conftest import MIGRATION
from tests.audit.memory import entries
from tests.audit.test_chain import VECTORS


async def fill(con, count):
    await outbox.insert(con, entries(1, count))
    await chain_outbox(con)


async def tamper(con, *statements):
    """An intruder with the owner's rights: neither trigger nor constraint holds him."""
    await con.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
    for statement in statements:
        await con.execute(statement)


def found(report):
    return [(fault.kind, fault.seq) for fault in report.faults]


class TestCoverage:
    async def test_an_empty_log(self, con):
        report = await verify(con)
        assert (report.ok, report.rows, report.anchor, report.head_seq, report.head_hash) == (
            True, 0, "genesis", 0, GENESIS.hash.hex(),
        )  # fmt: skip
        assert "nothing to check" in report.summary()

    async def test_all_of_it(self, con):
        await fill(con, 50)
        await outbox.insert(con, entries(51, 3))
        steps = []
        report = await verify(con, window_rows=20, progress=lambda done, total: steps.append((done, total)))
        assert (report.ok, report.first_seq, report.last_seq, report.rows, report.outbox_rows) == (True, 1, 50, 50, 3)
        assert report.genesis_anchored
        assert report.head_hash == (await read_head(con)).hash.hex()
        assert steps == [(20, 50), (40, 50), (50, 50)]
        assert report.fault is None
        assert "chain intact: 50 entries" in report.summary()

    @pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 50), (7, 7), (20, 41), (50, 50)])
    async def test_a_range(self, con, first, last):
        await fill(con, 50)
        report = await verify(con, from_seq=first, to_seq=last, window_rows=10)
        assert (report.ok, report.rows) == (True, last - first + 1)
        assert report.anchor == ("genesis" if first == 1 else f"seq {first - 1}")

    async def test_a_range_is_checked_against_the_row_before_it(self, con):
        await fill(con, 9)
        await tamper(con, "UPDATE audit_log SET hash = sha256('x') WHERE seq = 4")
        report = await verify(con, from_seq=5)
        assert (found(report), report.anchor) == ([(FaultKind.BROKEN_LINK, 5)], "none")

    async def test_a_range_behind_a_missing_row(self, con):
        await fill(con, 9)
        await tamper(con, "DELETE FROM audit_log WHERE seq = 4")
        report = await verify(con, from_seq=5)
        assert (found(report), report.anchor) == ([(FaultKind.GAP, 4)], "none")

    async def test_whoever_names_an_end_knows_that_it_was_there(self, con):
        await fill(con, 9)
        assert found(await verify(con, to_seq=12)) == [(FaultKind.GAP, 10)]
        assert found(await verify(con, from_seq=10)) == [(FaultKind.GAP, 10)]
        assert (FaultKind.GAP, 20) in found(await verify(con, from_seq=20))

    @pytest.mark.parametrize("bounds", [{"from_seq": 0}, {"from_seq": 5, "to_seq": 4}, {"to_seq": 0}])
    async def test_no_range(self, con, bounds):
        with pytest.raises(AuditError, match="not a range"):
            await verify(con, **bounds)

    async def test_imported_rows(self, con):
        for row in VECTORS:
            await con.execute(
                "INSERT INTO audit_log VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
                row.seq, row.entry.uuid, row.entry.time_us, row.entry.action, row.entry.actor, row.entry.event_id,
                row.entry.kind, row.entry.channel_id, row.entry.metadata, row.version, row.prev_hash, row.hash,
                row.v1_time,
            )  # fmt: skip
        await fill(con, 5)
        report = await verify(con)
        assert (report.ok, report.rows) == (True, 8), report.summary()


class TestTampering:
    @pytest.mark.parametrize(
        ("statements", "faults"),
        [
            *(
                ([f"UPDATE audit_log SET {change} WHERE seq = 5"], [(FaultKind.HASH_MISMATCH, 5)])
                for change in (
                    "uuid = gen_random_uuid()", "time_us = time_us + 1", "action = 'event_deleted'", "actor = ''",
                    "event_id = ''", "kind = 0", "channel_id = '00000000-0000-0000-0000-000000000000'",
                    "metadata = '{ }'",
                )
            ),
            (["UPDATE audit_log SET prev_hash = sha256('x') WHERE seq = 5"],
             [(FaultKind.BROKEN_LINK, 5), (FaultKind.HASH_MISMATCH, 5)]),
            (["UPDATE audit_log SET hash = sha256('x') WHERE seq = 5"],
             [(FaultKind.HASH_MISMATCH, 5), (FaultKind.BROKEN_LINK, 6)]),
            (["UPDATE audit_log SET prev_hash = sha256('x') WHERE seq = 1"],
             [(FaultKind.BAD_GENESIS, 1), (FaultKind.HASH_MISMATCH, 1)]),
            (["UPDATE audit_log SET version = 3 WHERE seq = 5"], [(FaultKind.UNKNOWN_VERSION, 5)]),
            (["DELETE FROM audit_log WHERE seq = 5"], [(FaultKind.GAP, 5)]),
            (["DELETE FROM audit_log WHERE seq BETWEEN 3 AND 8"], [(FaultKind.GAP, 3)]),
            (["DELETE FROM audit_log WHERE seq <= 4"], [(FaultKind.GAP, 1)]),
            (["DELETE FROM audit_log WHERE seq = 3", "UPDATE audit_log SET metadata = '' WHERE seq = 7"],
             [(FaultKind.GAP, 3), (FaultKind.HASH_MISMATCH, 7)]),
            (["ALTER TABLE audit_log DROP CONSTRAINT audit_log_pkey",
              "ALTER TABLE audit_log DROP CONSTRAINT audit_log_uuid_key",
              "ALTER TABLE audit_log DROP CONSTRAINT audit_log_prev_hash_key",
              "INSERT INTO audit_log SELECT * FROM audit_log WHERE seq = 4"],
             [(FaultKind.DUPLICATE, 4)]),
            (["ALTER TABLE audit_log DROP CONSTRAINT audit_log_seq_check",
              "ALTER TABLE audit_log DROP CONSTRAINT audit_log_uuid_key",
              "ALTER TABLE audit_log DROP CONSTRAINT audit_log_prev_hash_key",
              "CREATE TABLE forged AS SELECT * FROM audit_log WHERE seq = 1", "UPDATE forged SET seq = -1",
              "INSERT INTO audit_log SELECT * FROM forged"],
             [(FaultKind.MALFORMED, -1)]),
            (["ALTER TABLE audit_log ALTER COLUMN hash DROP NOT NULL",
              "UPDATE audit_log SET hash = NULL WHERE seq = 10"], [(FaultKind.MALFORMED, 10)]),
            (["ALTER TABLE audit_log DROP CONSTRAINT audit_log_hash_check",
              "UPDATE audit_log SET hash = '' WHERE seq = 10"], [(FaultKind.MALFORMED, 10)]),
            (["ALTER TABLE audit_log ALTER COLUMN prev_hash DROP NOT NULL",
              "UPDATE audit_log SET prev_hash = NULL WHERE seq = 10"], [(FaultKind.MALFORMED, 10)]),
            (["ALTER TABLE audit_log ALTER COLUMN kind TYPE numeric", "UPDATE audit_log SET kind = 0.5 WHERE seq = 10"],
             [(FaultKind.MALFORMED, 10)]),
        ],
    )  # fmt: skip
    async def test_is_found_and_located(self, con, statements, faults):
        await fill(con, 10)
        await tamper(con, *statements)
        report = await verify(con, window_rows=4)
        assert found(report) == faults
        assert not report.ok
        assert str(report.fault) in report.summary()
        assert "BROKEN" in report.summary()

    async def test_a_range_behind_a_row_without_a_hash(self, con):
        await fill(con, 10)
        await tamper(con, "ALTER TABLE audit_log ALTER COLUMN hash DROP NOT NULL",
                     "UPDATE audit_log SET hash = NULL WHERE seq = 4")  # fmt: skip
        report = await verify(con, from_seq=5)
        assert (report.anchor, report.ok) == ("none", True)

    async def test_a_cut_tail_shows_only_in_the_head(self, con):
        await fill(con, 10)
        before = await verify(con)
        await tamper(con, "DELETE FROM audit_log WHERE seq > 8")
        after = await verify(con)
        assert after.ok
        assert (after.head_seq, after.head_hash) != (before.head_seq, before.head_hash)

    async def test_a_long_gap_is_jumped_over(self, con):
        await fill(con, 10)
        await tamper(con, "UPDATE audit_log SET seq = 1000000000 WHERE seq = 10")
        with trio.fail_after(5):
            report = await verify(con)
        assert (FaultKind.GAP, 10) in found(report)
        assert (FaultKind.HASH_MISMATCH, 1_000_000_000) in found(report)


class TestAtStart:
    async def test_an_empty_and_a_sound_log(self, con):
        assert await verify_head(con) == GENESIS
        await fill(con, 30)
        assert await verify_head(con) == await read_head(con)

    @pytest.mark.parametrize("statement", ["UPDATE audit_log SET metadata = '' WHERE seq = 30",
                                           "DELETE FROM audit_log WHERE seq = 29",
                                           "UPDATE audit_log SET hash = '' WHERE seq = 30"])  # fmt: skip
    async def test_damage_near_the_end_is_refused(self, con, statement):
        await fill(con, 30)
        await tamper(con, "ALTER TABLE audit_log DROP CONSTRAINT audit_log_hash_check", statement)
        with pytest.raises(ChainBroken, match="damaged near its end"):
            await verify_head(con)

    async def test_only_the_tail_is_read(self, con, monkeypatch):
        monkeypatch.setattr("relay.audit.verify.TAIL_ROWS", 10)
        await fill(con, 30)
        await tamper(con, "UPDATE audit_log SET metadata = '' WHERE seq = 10")
        assert (await verify_head(con)).seq == 30


class TestCommand:
    def run(self, dsn, *arguments, prepare=()):
        async def setup():
            con = await connect(dsn)
            await con.execute(MIGRATION.read_text())
            await fill(con, 10)
            await tamper(con, *prepare)
            con.terminate()

        if prepare is not None:
            trio.run(setup)
        # A process of its own: it configures logging for good, and its two streams are really two.
        return subprocess.run(
            [sys.executable, "-c", "from relay.cli.audit import audit_app; audit_app()",
             "verify", "--database-url", dsn, *arguments],
            capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "SPROUT_DATABASE_WAIT_SECONDS": "0.2"},
        )  # fmt: skip

    def test_intact(self, empty_dsn):
        done = self.run(empty_dsn)
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "chain intact: 10 entries")

    def test_broken(self, empty_dsn):
        done = self.run(empty_dsn, prepare=["DELETE FROM audit_log WHERE seq = 4"])
        assert done.returncode == 1
        assert "gap at seq 4" in done.stdout

    def test_json_and_a_range(self, empty_dsn):
        done = self.run(empty_dsn, "--json", "--from", "3", "--to", "6")
        answer = json.loads(done.stdout)
        assert (done.returncode, answer["ok"], answer["rows"], answer["anchor"]) == (0, True, 4, "seq 2")
        assert answer["faults"] == []

    def test_could_not_check(self, empty_dsn):
        for dsn in ("postgresql://relay@/x?host=/nonexistent", empty_dsn):  # no server; no such table
            done = self.run(dsn, prepare=None)
            assert (done.returncode, done.stdout) == (2, "")
            assert "could not check" in done.stderr

    async def test_a_sound_insert_by_hand_is_still_sound(self, con):
        await insert_rows(con, link(GENESIS, entries(1, 3)))
        assert (await verify(con)).ok
