"""Taking over the original's log: the digits that it lost, its JSON, its times; all rows or none."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.asyncpg_trio import connect
from relay.audit import outbox
from relay.audit.chain import GENESIS, recompute, v1_time_us
from relay.audit.log import chain_outbox, read_head, read_rows
from relay.audit.original import OriginalRow, canonical_json, convert, from_json, from_record, time_text
from relay.audit.original_import import NotImported, check, rows_of_database, rows_of_file, take_over
from relay.audit.verify import verify
from relay.audit.walk import FaultKind
from relay.errors import AuditError
from tests.audit.memory import entries
from tests.audit.test_chain import VECTORS

# What the original's own statement makes, reduced to what an import needs.
ORIGINAL_TABLE = """
CREATE TABLE audit_log (seq bigint PRIMARY KEY, timestamp timestamptz NOT NULL DEFAULT now(),
    event_id varchar(255) NOT NULL, event_kind int NOT NULL, actor_pubkey varchar(255) NOT NULL,
    action varchar(64) NOT NULL, channel_id bytea, metadata jsonb NOT NULL,
    prev_hash varchar(64) NOT NULL, hash varchar(64) NOT NULL)
"""
BEGIN_NS = 1_767_225_600_123_456_000
CHANNEL = bytes.fromhex("550e8400e29b41d4a716446655440000")


def chrono(nanoseconds):
    """The time text of the original's clock, written down independently of the code under test."""
    whole = datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{nanoseconds % 10**9:09}"
    while digits.endswith("000"):
        digits = digits[:-3]
    return f"{whole}{'.' * bool(digits)}{digits}+00:00"


def original_chain(*nanoseconds, metadata="null"):
    """Rows as the original would have written them at those times; a dict each, of its columns."""
    rows, prev = [], "0" * 64
    for seq, moment in enumerate(nanoseconds, 1):
        channel = CHANNEL if seq % 2 else None
        action, kind = ("event_created", 9) if seq % 3 else ("media_uploaded", 49001)
        digest = hashlib.sha256(
            seq.to_bytes(8) + chrono(moment).encode() + b"ab" * 32 + kind.to_bytes(4) + b"cd" * 32 + action.encode()
            + (channel or bytes(16)) + metadata.encode() + prev.encode()
        ).hexdigest()  # fmt: skip
        stored = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=moment // 1000)
        rows.append(
            {"seq": seq, "timestamp": stored, "event_id": "ab" * 32, "event_kind": kind, "actor_pubkey": "cd" * 32,
             "action": action, "channel_id": channel, "metadata": metadata, "prev_hash": prev, "hash": digest}
        )  # fmt: skip
        prev = digest
    return rows


def jsonl(rows):
    """As psql prints `row_to_json`."""
    lines = []
    for row in rows:
        fields = {**row, "timestamp": row["timestamp"].isoformat(), "metadata": json.loads(row["metadata"])}
        fields["channel_id"] = None if row["channel_id"] is None else "\\x" + row["channel_id"].hex()
        lines.append(json.dumps(fields) + "\n")
    return "".join(lines).encode()


def of_file(data):
    return rows_of_file(io.BytesIO(data))


def source(row):
    """A golden vector as the original's table would have it."""
    entry = row.entry
    channel = None if entry.channel_id is None else bytes.fromhex(entry.channel_id.replace("-", ""))
    return OriginalRow(row.seq, entry.time_us, entry.event_id, entry.kind, entry.actor, entry.action, channel,
                       entry.metadata, row.prev_hash, row.hash)  # fmt: skip


@pytest.fixture
async def ours(migrated_dsn):
    connection = await connect(migrated_dsn)
    yield connection
    connection.terminate()


@pytest.fixture
async def theirs(empty_dsn):
    connection = await connect(empty_dsn)
    await connection.execute(ORIGINAL_TABLE)
    yield connection
    connection.terminate()


async def write_theirs(con, rows):
    for row in rows:
        await con.execute(
            "INSERT INTO audit_log VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9, $10)", *row.values()
        )


class TestConvert:
    @pytest.mark.parametrize("row", VECTORS, ids=["V1", "V2", "V3"])
    def test_golden_vectors(self, row):
        done = convert(source(row))
        assert (done.row, done.nanoseconds) == (row, False)

    @pytest.mark.parametrize("fraction", [0, 1_000_000, 1_000, 120_000_000, 1, 999, 120_000_001, 999_999_999, 10])
    def test_the_lost_digits_are_found(self, fraction):
        moment = 1_767_225_600 * 10**9 + fraction
        done = convert(from_record(original_chain(moment)[0]))
        assert done.row.v1_time == chrono(moment)
        assert done.nanoseconds is (fraction % 1000 != 0)
        assert recompute(done.row) == done.row.hash

    @given(st.integers(0, 2**32 * 10**9))
    @settings(max_examples=30)
    def test_at_any_time(self, moment):
        done = convert(from_record(original_chain(moment)[0]))
        assert (done.row.v1_time, done.row.entry.time_us) == (chrono(moment), moment // 1000)
        assert v1_time_us(done.row.v1_time) == done.row.entry.time_us

    @pytest.mark.parametrize(
        "change",
        [{"kind": 10}, {"actor": "ef" * 32}, {"metadata": "{}"}, {"channel": None}, {"time_us": BEGIN_NS // 1000 + 1},
         {"kind": 2**32}, {"kind": -1}, {"seq": 2**63}, {"event_id": "\ud800"}],
    )  # fmt: skip
    def test_digits_make_no_other_row_fit(self, change):
        row = replace(from_record(original_chain(BEGIN_NS + 7)[0]), **change)
        done = convert(row)
        assert (done.row.v1_time, done.nanoseconds) == (time_text(row.time_us), False)

    @given(st.integers(0, 253_402_300_799_999_999))
    def test_times_are_chronos(self, time_us):
        assert time_text(time_us) == chrono(time_us * 1000)
        assert v1_time_us(time_text(time_us)) == time_us

    def test_no_time(self):
        with pytest.raises(AuditError, match="no such time"):
            time_text(2**62)


class TestCanonicalJson:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "null"),
            ({"sha256": "ef", "size": 5, "mime": "image/png"}, '{"mime":"image/png","sha256":"ef","size":5}'),
            ({"b": [1, {"z": True, "a": False}], "": {}}, '{"":{},"b":[1,{"a":false,"z":true}]}'),
            ("é\u2028\x7f\x01\b\f\n\r\t\"\\/", '"é\u2028\x7f\\u0001\\b\\f\\n\\r\\t\\"\\\\/"'),
            ({"\U0001f600": 1, "\uffff": 2}, '{"\uffff":2,"\U0001f600":1}'),  # UTF-16 would sort the other way
            (2**64 - 1, "18446744073709551615"),
            (-(2**63), "-9223372036854775808"),
            (2**64, "1.8446744073709552e19"),
            (0.0, "0.0"), (-0.0, "-0.0"), (1.0, "1.0"), (1.5, "1.5"), (1e15, "1000000000000000.0"), (1e16, "1e16"),
            (1.5e16, "1.5e16"), (1e-5, "0.00001"), (1.2e-6, "1.2e-6"), (-2.5e-7, "-2.5e-7"), (123456.789, "123456.789"),
        ],
    )  # fmt: skip
    def test_as_rust_prints_it(self, value, text):
        assert canonical_json(value) == text

    @pytest.mark.parametrize("value", [10**400, float("inf"), float("nan")])
    def test_no_double(self, value):
        with pytest.raises(AuditError, match="no double"):
            canonical_json(value)

    @given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(), lambda inner:
                        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))  # fmt: skip
    def test_it_means_the_same(self, value):
        text = canonical_json(value)
        assert json.loads(text) == value
        assert text == orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()  # another that prints it so


class TestRowsOfAFile:
    @pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))])
    def test_any_zone_is_the_same_moment(self, zone):
        row = original_chain(BEGIN_NS)[0]
        here = {**row, "timestamp": row["timestamp"].astimezone(zone)}
        assert from_json(jsonl([here])) == from_record(row)

    @pytest.mark.parametrize(
        ("old", "new", "says"),
        [
            ('"seq": 1', '"seq": "1"', "whole numbers"), ('"event_kind": 9', '"event_kind": true', "whole numbers"),
            ('"action"', '"axtion"', "no column 'action'"), ('"prev_hash"', '"prev"', "no column 'prev_hash'"),
            ("\\\\x550e", "\\\\x0e", "channel_id"), ("\\\\x550e", "550e", "channel_id"),
            ('"hash": "', '"hash": "A', "hash is not 64"), ("+00:00", "", "without its zone"),
            ("2026-01-01", "1969-01-01", "before 1970"), ("2026-01-01", "yesterday", "not a row"),
            ('"event_id": "', '"event_id": 5, "x": "', "are texts"),
            ('"metadata": null', '"metadata": 1e999', "double"),
            ('"metadata": null', f'"metadata": {"[" * 900}{"]" * 900}', "nested"),
            ('"metadata": null', f'"metadata": {"[" * 10**5}{"]" * 10**5}', "not JSON|nested"),
            ("{", "[", "not JSON"), ("{", '[{}, {"a":1}] {', "not JSON"),
        ],
    )  # fmt: skip
    async def test_what_is_no_row(self, old, new, says):
        data = jsonl(original_chain(BEGIN_NS, BEGIN_NS)).decode()
        assert old in data
        first, second = data.splitlines(keepends=True)
        broken = (first + second.replace('"seq": 2', '"seq": 1').replace(old, new, 1)).encode()
        if old in ("\\\\x550e", '"event_kind": 9'):
            broken = (first + first.replace(old, new, 1)).encode()
        with pytest.raises(AuditError, match=f"line 2: .*{says}"):
            async for _ in of_file(broken):
                pass

    async def test_other_lines(self, monkeypatch):
        with pytest.raises(AuditError, match="line 1: not a JSON object"):
            await check(of_file(b"[]\n"))
        assert (await check(of_file(b"\n \n" + jsonl(original_chain(BEGIN_NS))))).rows == 1
        monkeypatch.setattr("relay.audit.original_import.LINE_BYTES_MAX", 100)
        with pytest.raises(AuditError, match="line 1 is longer"):
            await check(of_file(jsonl(original_chain(BEGIN_NS))))


class TestCheck:
    async def test_whole(self):
        rows = original_chain(*range(BEGIN_NS, BEGIN_NS + 5000, 500))
        report = await check(of_file(jsonl(rows)))
        assert (report.ok, report.rows, report.nanoseconds) == (True, 10, 5)
        assert report.head.hash.hex() == rows[-1]["hash"]
        assert "10 entries of the original: every one verifies\n5 of them by the nanoseconds" in report.summary()

    @pytest.mark.parametrize(
        ("change", "kind"),
        [
            (lambda rows: rows[3].update(event_kind=10), FaultKind.HASH_MISMATCH),
            (lambda rows: rows[3].update(hash="00" * 32), FaultKind.HASH_MISMATCH),
            (lambda rows: rows[3].update(prev_hash="00" * 32), FaultKind.BROKEN_LINK),
            (lambda rows: rows[3].update(action="token_created"), FaultKind.MALFORMED),
            (lambda rows: rows.pop(3), FaultKind.GAP),
            (lambda rows: rows.insert(3, rows[2]), FaultKind.DUPLICATE),
            (lambda rows: rows.reverse(), FaultKind.GAP),
        ],
    )
    async def test_every_change_is_noticed(self, change, kind):
        rows = original_chain(*range(BEGIN_NS, BEGIN_NS + 10))
        change(rows)
        report = await check(of_file(jsonl(rows)))
        assert not report.ok
        assert report.faults[0].kind == kind
        assert kind in report.summary()
        assert report.as_dict()["faults"][0]["kind"] == kind


class TestTakeOver:
    async def test_from_its_database(self, ours, theirs, monkeypatch):
        monkeypatch.setattr("relay.audit.original_import.BATCH_ROWS", 4)
        rows = original_chain(*range(BEGIN_NS, BEGIN_NS + 10), metadata='{"mime":"é","sha256":"ef","size":5}')
        await write_theirs(theirs, rows)
        report = await take_over(ours, rows_of_database(theirs))
        assert (report.ok, report.rows, report.nanoseconds) == (True, 10, 9)
        found = await read_rows(ours, 0, 99, 99)
        assert [row.hash.hex() for row in found] == [row["hash"] for row in rows]
        assert found[1].v1_time == chrono(BEGIN_NS + 1)
        # The relay's own entries follow, the first of them about the import.
        await outbox.insert(ours, entries(1, 3))
        assert await chain_outbox(ours) == 4
        told = (await read_rows(ours, 10, 11, 1))[0]
        assert (told.version, told.prev_hash, told.entry.action) == (2, report.head.hash, "settings_changed")
        assert json.loads(told.entry.metadata)["head"] == rows[-1]["hash"]
        verified = await verify(ours)
        assert (verified.ok, verified.rows) == (True, 14), verified.summary()

    async def test_the_file_and_the_database_say_the_same(self, theirs):
        rows = original_chain(*range(BEGIN_NS, BEGIN_NS + 7), metadata='{"a":[1.5,"\\n"],"b":null}')
        await write_theirs(theirs, rows)
        await theirs.execute("SET TimeZone = 'Asia/Kolkata'")
        printed = await theirs.fetch("SELECT row_to_json(audit_log)::text AS line FROM audit_log ORDER BY seq")
        data = "".join(record["line"] + "\n" for record in printed).encode()
        one = [row async for batch in rows_of_database(theirs) for row in batch]
        two = [row async for batch in of_file(data) for row in batch]
        assert one == two
        assert (await check(of_file(data))).ok

    async def test_one_bad_row_and_nothing_is_there(self, ours, monkeypatch):
        monkeypatch.setattr("relay.audit.original_import.BATCH_ROWS", 2)
        rows = original_chain(*range(BEGIN_NS, BEGIN_NS + 6))
        rows[4]["event_kind"] = 7
        with pytest.raises(NotImported, match="hash mismatch at seq 5") as raised:
            await take_over(ours, of_file(jsonl(rows)))
        assert raised.value.report.faults_total == 1
        assert (await read_head(ours), await outbox.count(ours)) == (GENESIS, 0)

    async def test_only_into_an_empty_log(self, ours):
        data = jsonl(original_chain(BEGIN_NS))
        with pytest.raises(AuditError, match="nothing to import"):
            await take_over(ours, of_file(b""))
        await take_over(ours, of_file(data))
        with pytest.raises(AuditError, match="entries already"):
            await take_over(ours, of_file(data))
        assert (await read_head(ours)).seq == 1

    async def test_not_into_one_that_was_emptied(self, ours):
        await ours.execute("INSERT INTO audit_checkpoints VALUES ('x', 5, sha256('x'), 1, 'x')")
        with pytest.raises(AuditError, match="cut off"):
            await take_over(ours, of_file(jsonl(original_chain(BEGIN_NS))))

    async def test_another_database_is_not_the_originals(self, ours):
        with pytest.raises(AuditError, match="not a database of the original"):
            await check(rows_of_database(ours))
