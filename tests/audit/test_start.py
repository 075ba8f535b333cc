"""The log at the start, compared with what was signed: on a real database, with a real file."""

from __future__ import annotations

import os

import pytest
import structlog.testing

from relay.asyncpg_trio import connect
from relay.audit import checkpoint_file, checkpoints, note, outbox, signing, start
from relay.audit.log import chain_outbox
from relay.audit.verify import verify
from relay.errors import AuditError, ChainTruncated, ConfigError, HeadMismatch
from relay.nostr.keys import SecretKey
from tests.audit.memory import entries

KEY = SecretKey.from_hex("11" * 32)
STRANGER = SecretKey.from_hex("22" * 32)
ORIGIN = note.origin_of(KEY.public_hex)


def now_us() -> int:
    return 1_767_225_600_000_000


class Relay:
    """A log, its file, and what is done to them."""

    def __init__(self, con, file) -> None:
        self.con = con
        self.file = file
        self.written = 0

    async def chain(self, count):
        await outbox.insert(self.con, entries(self.written + 1, count))
        await chain_outbox(self.con)
        self.written += count

    async def sign(self, *, to_file=True):
        latest = await signing.sign_next(self.con, KEY, now_us)
        assert latest.made
        if to_file:
            checkpoint_file.append(self.file, latest.checkpoint)
        return latest.checkpoint

    async def tamper(self, *statements):
        await self.con.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
        for statement in statements:
            await self.con.execute(statement)

    async def check(self):
        return await start.check(self.con, KEY.public_hex, self.file, now_us)

    async def accept(self, reason="the disk of 3 May died"):
        return await start.accept_loss(self.con, KEY, self.file, reason, now_us)

    async def refused(self, kind, *words):
        with pytest.raises(kind) as caught:
            await self.check()
        for word in words:
            assert word in str(caught.value)
        # Looking again finds the same: a refusal changes nothing that is compared.
        with pytest.raises(kind):
            await self.check()
        return str(caught.value)


@pytest.fixture
def relay(con, tmp_path):
    return Relay(con, tmp_path / "checkpoints.txt")


class TestFine:
    async def test_an_empty_log(self, relay):
        known = await relay.check()
        assert (known.origin, known.largest, known.file_exists) == (ORIGIN, None, False)

    async def test_a_log_from_before_there_were_checkpoints(self, relay):
        await relay.chain(5)
        assert (await relay.check()).largest is None

    async def test_the_log_that_was_signed_and_what_came_after(self, relay):
        await relay.chain(300)
        first = await relay.sign()
        await relay.chain(5)
        known = await relay.check()
        assert (known.in_database, known.in_file) == (first, first)
        second = await relay.sign()
        assert (await relay.check()).largest == second

    async def test_a_file_that_is_gone_is_a_warning(self, relay):
        await relay.chain(3)
        await relay.sign(to_file=False)
        with structlog.testing.capture_logs() as logs:
            assert not (await relay.check()).file_exists
        assert [line["log_level"] for line in logs] == ["warning"]

    async def test_what_only_the_file_has_goes_back_into_the_database(self, relay):
        await relay.chain(3)
        checkpoint = await relay.sign()
        cosigned = checkpoint.with_lines([note.cosign(checkpoint, "relay-witness/x", STRANGER, 1)])
        checkpoint_file.append(relay.file, cosigned)
        await relay.con.execute("DELETE FROM audit_checkpoints")
        with structlog.testing.capture_logs() as logs:
            await relay.check()
        assert [line["log_level"] for line in logs] == ["warning"]
        assert (await checkpoints.newest(relay.con, ORIGIN)).checkpoint.text == checkpoint.text

    async def test_stored_nodes_that_were_changed_are_made_anew(self, relay):
        await relay.chain(600)
        await relay.sign()
        await relay.con.execute("UPDATE audit_tree SET hash = sha256('x') WHERE level = 8 AND index = 1")
        with structlog.testing.capture_logs() as logs:
            await relay.check()
        assert [line["log_level"] for line in logs] == ["error"]
        with structlog.testing.capture_logs() as logs:
            await relay.check()
        assert logs == []

    async def test_a_torn_record_and_scribbles_do_not_stop_the_start(self, relay):
        await relay.chain(3)
        checkpoint = await relay.sign()
        with relay.file.open("a") as file:
            file.write("what is this?\n\n" + checkpoint.note[:-30])
        assert (await relay.check()).in_file == checkpoint

    async def test_checkpoints_of_somebody_elses_log_in_the_file_say_nothing(self, relay):
        await relay.chain(3)
        checkpoint_file.append(relay.file, note.sign(note.origin_of(STRANGER.public_hex), 99, bytes(32), STRANGER))
        assert (await relay.check()).largest is None


class TestRefused:
    @pytest.mark.parametrize("both", [True, False])
    async def test_a_tail_that_was_cut_off(self, relay, both):
        await relay.chain(10)
        await relay.sign()
        await relay.tamper("DELETE FROM audit_log WHERE seq > 7")
        if not both:
            await relay.con.execute("DELETE FROM audit_checkpoints")
        text = await relay.refused(ChainTruncated, "seq 7", "10 entries", "accept-loss", "restore")
        assert (str(relay.file) in text) is not both

    async def test_all_rows_hashed_anew_under_stored_nodes_that_were_left_alone(self, relay):
        await relay.chain(512)  # a size that stored nodes cover to the last row
        await relay.sign()
        await relay.tamper("UPDATE audit_log SET hash = sha256(hash), prev_hash = sha256(prev_hash)")
        await relay.refused(HeadMismatch, "512 entries", "accept-loss")

    async def test_everything_is_gone(self, relay):
        await relay.chain(10)
        await relay.sign()
        await relay.tamper("DELETE FROM audit_log", "DELETE FROM audit_tree", "DELETE FROM audit_checkpoints")
        await relay.refused(ChainTruncated, "seq 0", str(relay.file))

    async def test_a_backup_that_was_restored_and_written_to(self, relay):
        """As many rows as before, with other entries in the end."""
        await relay.chain(10)
        await relay.sign()
        await relay.tamper(
            "DELETE FROM audit_log WHERE seq > 7", "DELETE FROM audit_checkpoints", "DELETE FROM audit_tree"
        )
        await relay.chain(20)
        await relay.refused(HeadMismatch, "not those that were signed", str(relay.file))

    @pytest.mark.parametrize("seq", [1, 40, 300])
    async def test_a_log_rewritten_with_fresh_hashes(self, relay, seq):
        await relay.chain(300)
        await relay.sign()
        await relay.tamper(f"UPDATE audit_log SET hash = sha256('x') WHERE seq = {seq}", "DELETE FROM audit_tree")
        await relay.refused(HeadMismatch, "audit_checkpoints", "300 entries")

    async def test_rows_missing_inside(self, relay):
        await relay.chain(10)
        await relay.sign()
        await relay.tamper("DELETE FROM audit_log WHERE seq = 9")
        await relay.refused(ChainTruncated, "seq 9")

    async def test_a_checkpoint_that_somebody_else_signed(self, relay):
        await relay.chain(3)
        await checkpoints.insert(relay.con, note.sign(ORIGIN, 3, bytes(32), STRANGER), 1)
        await relay.refused(HeadMismatch, "audit_checkpoints", "not signed by this relay's key")

    async def test_the_same_in_the_file(self, relay):
        await relay.chain(3)
        checkpoint_file.append(relay.file, note.sign(ORIGIN, 3, bytes(32), STRANGER))
        await relay.refused(HeadMismatch, str(relay.file), "not signed by this relay's key")

    async def test_a_row_whose_columns_were_changed(self, relay):
        await relay.chain(3)
        await relay.sign()
        await relay.con.execute("UPDATE audit_checkpoints SET root = sha256('x')")
        await relay.refused(HeadMismatch, "does not say what its note says")

    async def test_two_checkpoints_of_one_size(self, relay):
        await relay.chain(3)
        await relay.sign(to_file=False)
        checkpoint_file.append(relay.file, note.sign(ORIGIN, 3, bytes(32), KEY))
        await relay.refused(HeadMismatch, "two checkpoints of 3 entries", "00" * 32)

    async def test_the_smaller_of_the_two_does_not_fit(self, relay):
        await relay.chain(3)
        checkpoint_file.append(relay.file, note.sign(ORIGIN, 2, bytes(32), KEY))
        await relay.sign(to_file=False)
        await relay.refused(HeadMismatch, str(relay.file), "2 entries")

    async def test_a_file_that_cannot_be_read(self, relay):
        relay.file.mkdir()
        await relay.refused(ConfigError, "SPROUT_AUDIT_CHECKPOINT_FILE")


class TestAcceptedLoss:
    async def test_the_log_goes_on_under_a_new_name(self, relay):
        await relay.chain(300)
        old = await relay.sign()
        await relay.tamper("DELETE FROM audit_log WHERE seq > 260")
        relay.written = 1000
        accepted = await relay.accept()
        assert (accepted.origin, accepted.size) == (f"{ORIGIN}/2", 260)
        known = await relay.check()
        assert (known.generation, known.in_database, known.in_file) == (2, accepted, accepted)
        assert await chain_outbox(relay.con) == 1
        await relay.chain(40)
        assert (await relay.sign()).size == 301
        await relay.check()
        assert (await verify(relay.con)).ok
        row = await relay.con.fetchrow("SELECT * FROM audit_losses")
        assert (row["origin"], row["size"], row["root"], row["head_seq"]) == (ORIGIN, 300, old.root, 260)
        entry = await relay.con.fetchrow("SELECT action, actor, metadata FROM audit_log WHERE seq = 261")
        assert (entry["action"], entry["actor"]) == ("settings_changed", KEY.public_hex)
        assert "the disk of 3 May died" in entry["metadata"]
        assert await checkpoints.all_origins(relay.con) == [ORIGIN, f"{ORIGIN}/2"]

    async def test_of_everything(self, relay):
        await relay.chain(3)
        await relay.sign()
        await relay.tamper("DELETE FROM audit_log", "DELETE FROM audit_tree", "DELETE FROM audit_checkpoints")
        assert (await relay.accept()).size == 0
        await relay.check()
        await chain_outbox(relay.con)
        assert (await relay.sign()).size == 1

    async def test_a_backup_from_before_an_accepted_loss_gets_a_third_name(self, relay):
        await relay.chain(5)
        await relay.sign()
        await relay.tamper("DELETE FROM audit_log WHERE seq > 3")
        await relay.accept()
        await relay.con.execute("DELETE FROM audit_losses")
        await relay.refused(HeadMismatch, "a loss was accepted", "does not know of it")
        assert (await relay.accept()).origin == f"{ORIGIN}/3"
        assert (await relay.check()).generation == 3

    async def test_a_loss_that_nobody_signed(self, relay):
        """Adding a row of audit_losses does not make the relay forget what it has signed."""
        await relay.chain(5)
        await relay.sign()
        await relay.con.execute(
            "INSERT INTO audit_losses VALUES (1, 1, 'x', 0, sha256('x'), 0, sha256('x'), 'because')"
        )
        await relay.refused(HeadMismatch, "there is no checkpoint of", "/2")
        with pytest.raises(HeadMismatch, match="no checkpoint"):
            await signing.sign_next(relay.con, KEY, now_us)

    @pytest.mark.parametrize("reason", ["", "  ", "x" * 1001])
    async def test_without_a_reason(self, relay, reason):
        with pytest.raises(AuditError, match="reason"):
            await relay.accept(reason)

    async def test_where_nothing_is_lost(self, relay):
        await relay.chain(5)
        await relay.sign()
        with pytest.raises(AuditError, match="nothing is lost"):
            await relay.accept()
        assert await relay.con.fetchval("SELECT count(*) FROM audit_losses") == 0

    async def test_rows_missing_inside_cannot_be_signed_under_any_name(self, relay):
        await relay.chain(10)
        await relay.sign()
        await relay.tamper("DELETE FROM audit_log WHERE seq = 4")
        with pytest.raises(ChainTruncated, match="no row seq 4"):
            await relay.accept()
        assert await relay.con.fetchval("SELECT count(*) FROM audit_losses") == 0


async def test_the_relay_itself_does_not_start(empty_dsn, tmp_path):
    """The whole way: assembled, signed, cut off, refused."""
    from relay.assembly import prepare
    from relay.config import load
    from relay.database import Database

    settings = load({"database_url": empty_dsn, "relay_private_key": "11" * 32})
    database = Database(empty_dsn, tmp_path, None)
    await prepare(settings, database)
    con = await connect(empty_dsn)
    try:
        relay = Relay(con, tmp_path / checkpoint_file.FILE_NAME)
        await relay.chain(5)
        await relay.sign()
        prepared = await prepare(settings, database)
        assert prepared.known.largest.size == 5
        await relay.tamper("DELETE FROM audit_log WHERE seq > 3")
        await outbox.insert(con, entries(50, 1))
        with pytest.raises(ChainTruncated, match="accept-loss"):
            await prepare(settings, database)
        # Nothing was chained behind the loss.
        assert await con.fetchval("SELECT max(seq) FROM audit_log") == 3
        assert os.listdir(tmp_path) == [checkpoint_file.FILE_NAME]
    finally:
        con.terminate()
