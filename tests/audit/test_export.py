"""The export: every field comes back, there is one spelling, a cut-off file says so, and rows fit their checkpoint."""

from __future__ import annotations

import io
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.asyncpg_trio import connect
from relay.audit import checkpoints, note, outbox, tree_store
from relay.audit.chain import GENESIS, ChainedEntry, link
from relay.audit.entry import Entry
from relay.audit.export import Footer, Header, Reader, opened, read, row_line, write
from relay.audit.log import chain_outbox, read_head, read_rows
from relay.audit.tree import Frontier
from relay.errors import AuditError
from relay.nostr.keys import SecretKey
from relay.store import relay_identity
from tests.audit.memory import entries
from tests.audit.strategies import entries as any_entries
from tests.audit.strategies import hashes, seqs
from tests.audit.test_chain import V1, VECTORS

KEY = SecretKey.from_bytes(bytes(31) + b"\x07")
ORIGIN = note.origin_of(KEY.public_hex)


@pytest.fixture
async def con(migrated_dsn):
    connection = await connect(migrated_dsn)
    yield connection
    connection.terminate()


async def fill(con, first, count):
    await outbox.insert(con, entries(first, count))
    await chain_outbox(con)


async def sign(con, size):
    await checkpoints.insert(con, note.sign(ORIGIN, size, await tree_store.root_at(con, size), KEY), 1)


async def exported(con, *range_):
    out = io.BytesIO()
    await write(con, out, *range_)
    return out.getvalue()


def parsed(data):
    reader = Reader(io.BytesIO(data))
    return reader.header, list(reader), reader.footer


def file_of(*rows, first=1):
    """An export as it would be written, without a database."""
    header = {"format": "relay-audit-export", "version": 1, "relay": None, "origin": None, "first": first,
              "last": first + len(rows) - 1, "head_seq": 99, "head_hash": "00" * 32,
              "frontier": ["00" * 32] * (first - 1).bit_count()}  # fmt: skip
    footer = {"end": True, "rows": len(rows), "checkpoint": None}
    return b"\n".join(
        [orjson.dumps(header), *(row_line(row).removesuffix(b"\n") for row in rows), orjson.dumps(footer), b""]
    )


class TestWritten:
    async def test_an_empty_log_of_no_relay(self, con):
        header, rows, footer = parsed(await exported(con))
        assert header == Header(None, None, 1, 0, 0, GENESIS.hash.hex(), ())
        assert (rows, footer) == ([], Footer(0, None))

    async def test_the_whole_log_with_its_checkpoint(self, con, tmp_path):
        await relay_identity.claim(con, KEY.public_hex)
        await fill(con, 1, 5)
        await sign(con, 3)
        await sign(con, 5)
        await checkpoints.add_cosignatures(con, ORIGIN, 5, [("w", "— w AAAAAAA=")])
        await fill(con, 6, 2)
        steps = []
        path = tmp_path / "export"
        with path.open("wb") as file:
            footer = await write(con, file, progress=lambda *step: steps.append(step))
        head = await read_head(con)
        with opened(path) as reader:
            rows = list(reader)
            assert reader.header == Header(KEY.public_hex, ORIGIN, 1, 7, 7, head.hash.hex(), ())
            assert reader.footer == footer
        assert rows == list(read(path)) == await read_rows(con, 0, 7, 10)
        assert steps == [(7, 7)]
        found = note.parse(footer.checkpoint)
        assert (found.size, len(found.signatures)) == (5, 2)
        assert note.is_signed_by(found, KEY.public_hex)

    async def test_a_part_can_be_held_against_a_checkpoint_inside_of_it(self, con):
        await relay_identity.claim(con, KEY.public_hex)
        await fill(con, 1, 20)
        for size in (4, 13, 20):
            await sign(con, size)
        header, rows, footer = parsed(await exported(con, 8, 17))
        assert (header.first, header.last, header.head_seq) == (8, 17, 20)
        assert [row.seq for row in rows] == list(range(8, 18))
        tree = Frontier(7, header.frontier)
        for row in rows[:6]:
            tree.append(row.hash)
        found = note.parse(footer.checkpoint)
        assert (found.size, found.root) == (13, tree.root())
        assert parsed(await exported(con, 14, 17))[2].checkpoint == footer.checkpoint
        assert parsed(await exported(con, 15, 17))[2].checkpoint is None

    async def test_behind_the_head_there_is_nothing(self, con):
        await fill(con, 1, 3)
        header, rows, _ = parsed(await exported(con, 2, 9))
        assert (header.last, [row.seq for row in rows]) == (3, [2, 3])
        header, rows, _ = parsed(await exported(con, 9))
        assert (header.first, header.last, header.frontier, rows) == (9, 8, None, [])

    @pytest.mark.parametrize("range_", [(0,), (5, 4)])
    async def test_no_range(self, con, range_):
        with pytest.raises(AuditError, match="not a range"):
            await exported(con, *range_)

    async def test_damage_is_exported_as_it_stands(self, con):
        await fill(con, 1, 6)
        await con.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
        await con.execute("DELETE FROM audit_log WHERE seq = 3")
        await con.execute("UPDATE audit_log SET metadata = 'not JSON' WHERE seq = 4")
        header, rows, footer = parsed(await exported(con, 4))
        assert header.frontier is None  # the tree before it cannot be made any more
        assert (rows[0].entry.metadata, footer.rows) == ("not JSON", 3)
        assert [row.seq for row in parsed(await exported(con))[1]] == [1, 2, 4, 5, 6]

    async def test_it_is_one_moment(self, con, migrated_dsn):
        await fill(con, 1, 4)
        other = await connect(migrated_dsn)
        seen = []

        class Reading:
            """The connection, but the log grows behind every statement on it."""

            def __getattr__(self, name):
                return getattr(con, name)

            async def fetch(self, *args):
                seen.append(args)
                await fill(other, 4 + len(seen), 1)
                return await con.fetch(*args)

        out = io.BytesIO()
        await write(Reading(), out)
        other.terminate()
        assert [row.seq for row in parsed(out.getvalue())[1]] == [1, 2, 3, 4]
        assert (await read_head(con)).seq == 4 + len(seen) > 4


class TestRead:
    @given(st.lists(st.tuples(any_entries(), seqs(), hashes(), hashes()), max_size=3))
    @settings(max_examples=50)
    def test_every_field_comes_back(self, drawn):
        rows = [ChainedEntry(seq, entry, 2, prev, digest) for entry, seq, prev, digest in drawn]
        assert parsed(file_of(*rows))[1] == rows

    def test_imported_rows_come_back(self):
        assert parsed(file_of(*VECTORS))[1] == VECTORS

    def test_cut_off_anywhere(self):
        data = file_of(*VECTORS)
        for end in range(len(data)):
            with pytest.raises(AuditError, match=r"line \d: .*cut off"):
                parsed(data[:end])

    @pytest.mark.parametrize(
        ("old", "new", "says"),
        [
            (b'"format":"relay', b'"format":"other', "line 1: not an export"),
            (b'"version":1,"relay"', b'"version":2,"relay"', "line 1: version 2 of the form"),
            (b'"first":1', b'"first":0', "line 1: not a range"),
            (b'"last":3', b'"last":-1', "line 1: not a range"),
            (b'"frontier":[]', b'"frontier":["00"]', "line 1: the frontier"),
            (b'"seq":1', b'"seq": 1', "line 2: not spelled"),
            (b'"seq":1', b'"seq":1,"seq":1', "line 2: not spelled"),
            (b'"seq":1', b'"seq":true', "line 2: seq"),
            (b'"seq":1', b'"seq":1.0', "line 2: seq"),
            (b'"action"', b'"axtion"', "line 2: action is missing"),
            (b'"uuid"', b'"more":1,"uuid"', "line 2: not spelled"),
            (b"event_created", b"\\u0065vent_created", "line 2: not spelled"),
            (b'"hash":"b0c9', b'"hash":"B0C9', "line 2: a hash"),
            (b'"hash":"b0c9', b'"hash":"0c9', "line 2: a hash"),
            (b'"rows":3', b'"rows":2', "line 5: there should be 2 rows, and there are 3"),
            (b'"end":true', b'"end":1', "line 5: not spelled"),
            (b'{"seq":1', b'["seq",1', "line 2: not JSON"),
        ],
    )
    def test_what_is_not_one(self, old, new, says):
        data = file_of(*VECTORS)
        assert old in data
        with pytest.raises(AuditError, match=says):
            parsed(data.replace(old, new, 1))

    @pytest.mark.parametrize(("line", "says"), [(b"[]", "not a JSON object"), (b"", "not JSON"), (b"\xff", "not JSON")])
    def test_other_lines(self, line, says):
        with pytest.raises(AuditError, match=f"line 1: {says}"):
            parsed(line + b"\n")

    def test_nothing_stands_behind_the_end(self):
        with pytest.raises(AuditError, match="line 4: something stands behind"):
            parsed(file_of(V1) + b"\n")

    def test_a_line_without_an_end_is_not_read_to_its_end(self, monkeypatch):
        monkeypatch.setattr("relay.audit.export.LINE_BYTES_MAX", 1000)
        row = replace(V1, entry=replace(V1.entry, metadata="x" * 2000))
        with pytest.raises(AuditError, match="line 2: too long"):
            parsed(file_of(row))

    def test_a_footer_once_read_stays(self):
        reader = Reader(io.BytesIO(file_of(*link(GENESIS, [Entry("u", 1, "a", None, None, None, None, "{}")]))))
        assert reader.footer is None
        assert len(list(reader)) == 1
        assert list(reader) == []
        assert reader.footer == Footer(1, None)
