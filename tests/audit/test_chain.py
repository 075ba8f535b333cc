"""The hash: known vectors, and a pre-image that no two entries share."""

from __future__ import annotations

from dataclasses import fields, replace
from uuid import RFC_4122, UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.audit.chain import (
    GENESIS,
    VERSION,
    VERSION_ORIGINAL,
    ChainedEntry,
    Head,
    hash_v1,
    hash_v2,
    link,
    preimage_v1,
    preimage_v2,
    recompute,
    v1_time_us,
    v1_uuid,
)
from relay.audit.entry import Entry
from relay.errors import AuditError
from tests.audit.strategies import entries, hashes, seqs

CHANNEL = "550e8400-e29b-41d4-a716-446655440000"
UUID_1 = "11111111-2222-4333-8444-555555555555"


def original(seq, time_text, event_id, kind, actor, action, channel, metadata, prev, digest):
    """One row as an import makes it."""
    raw = bytes.fromhex(digest)
    entry = Entry(v1_uuid(raw), v1_time_us(time_text), action, actor, event_id, kind, channel, metadata)
    return ChainedEntry(seq, entry, VERSION_ORIGINAL, prev, raw, time_text)


V1 = original(1, "2026-01-01T00:00:00+00:00", "abc123", 1, "pubkey_alice", "event_created", None, "null",
              GENESIS.hash, "b0c9f983140450e18ee07f80c7649939fa9080946f2ba25c6791195182745508")  # fmt: skip
V2 = original(2, "2026-01-01T00:00:00.123+00:00", "ab" * 32, 9, "cd" * 32, "event_created", CHANNEL, "null",
              V1.hash, "6b0367729738e0f189abd712179071c58e9a226f8fb71a89cb501ad318064ac1")  # fmt: skip
V3 = original(3, "2026-01-01T00:00:00.123456+00:00", "ef" * 32, 49001, "cd" * 32, "media_uploaded", None,
              '{"mime":"image/png","sha256":"' + "ef" * 32 + '","size":5}',
              V2.hash, "de7012ef6261b1e514bdfd9600c93cb8744780d73f4c063cc72eaa2c8bff1191")  # fmt: skip
VECTORS = [V1, V2, V3]


class TestOriginal:
    @pytest.mark.parametrize(("row", "size"), [(V1, 152), (V2, 266), (V3, 371)])
    def test_vectors(self, row, size):
        assert len(preimage_v1(row.seq, row.v1_time, row.entry, row.prev_hash)) == size
        assert hash_v1(row.seq, row.v1_time, row.entry, row.prev_hash) == row.hash
        assert recompute(row) == row.hash

    @pytest.mark.parametrize("row", VECTORS)
    @pytest.mark.parametrize("field", ["actor", "event_id", "kind"])
    def test_what_the_original_always_has_cannot_be_taken_away(self, row, field):
        with pytest.raises(AuditError):
            recompute(replace(row, entry=replace(row.entry, **{field: None})))
        with pytest.raises(AuditError, match="without event id, kind and actor"):
            preimage_v1(row.seq, row.v1_time, replace(row.entry, **{field: None}), row.prev_hash)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"uuid": UUID_1}, "uuid"),
            ({"time_us": 1767225600000001}, "time"),
            ({"channel_id": "00000000-0000-0000-0000-000000000000"}, "no channel"),
            # The same bytes with a border moved: the hash alone would not see it.
            ({"actor": "pubkey_aliceevent_", "action": "created"}, "no such action"),
            ({"event_id": "abc12", "kind": int.from_bytes(b"3\0\0\0"), "actor": "\x01pubkey_alice"}, "16 bits"),
            ({"event_id": "abc123\n"}, "printable"),
            ({"actor": "é"}, "printable"),
        ],
    )
    def test_what_its_hash_leaves_open_its_form_closes(self, change, says):
        changed = replace(V1, entry=replace(V1.entry, **change))
        with pytest.raises(AuditError, match=says):
            recompute(changed)

    def test_the_collisions_it_had_are_real(self):
        moved = replace(V1.entry, actor="pubkey_aliceevent_", action="created")
        assert hash_v1(1, V1.v1_time, moved, V1.prev_hash) == V1.hash
        nil = replace(V1.entry, channel_id="00000000-0000-0000-0000-000000000000")
        assert hash_v1(1, V1.v1_time, nil, V1.prev_hash) == V1.hash

    @pytest.mark.parametrize(
        ("text", "time_us"),
        [
            ("1970-01-01T00:00:00+00:00", 0),
            ("1970-01-01T00:00:00.001+00:00", 1_000),
            ("1970-01-01T00:00:01.000001+00:00", 1_000_001),
            ("2026-01-01T00:00:00.123456789+00:00", 1_767_225_600_123_456),
        ],
    )
    def test_times(self, text, time_us):
        assert v1_time_us(text) == time_us

    @pytest.mark.parametrize(
        "text",
        [
            "", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00Z", "2026-01-01 00:00:00+00:00",
            "2026-01-01T00:00:00.1+00:00", "2026-01-01T00:00:00.000+00:00", "2026-01-01T00:00:00.123000+00:00",
            "2026-13-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00\n", "٢٠٢٦-01-01T00:00:00+00:00",
            "2026-01-01T00:00:00+01:00",
        ],
    )  # fmt: skip
    def test_other_times_are_refused(self, text):
        with pytest.raises(AuditError):
            v1_time_us(text)

    def test_a_missing_time_text_is_refused(self):
        with pytest.raises(AuditError, match="time"):
            recompute(replace(V1, v1_time=None))

    @given(hashes())
    def test_uuids_are_rfc_9562_version_8_and_follow_the_hash(self, digest):
        made = UUID(v1_uuid(digest))
        assert (made.version, made.variant, str(made)) == (8, RFC_4122, v1_uuid(digest))
        assert made.bytes[:6] == digest[:6]


class TestOurs:
    def test_a_vector_of_our_own_so_that_it_never_changes(self):
        entry = Entry(UUID_1, 1_767_225_600_123_456, "event_created", "cd" * 32, "ab" * 32, 9, CHANNEL, "{}")
        first = hash_v2(1, entry, GENESIS.hash)
        bare = Entry(UUID_1, 0, "auth_failure", None, None, None, None, "{}")
        assert first.hex() == "a998908e7a10a8aa9de604a5d54a1a10cd9846c17fe1cc590048181d2cd0a076"
        assert hash_v2(2, bare, first).hex() == "f2574e703f2d8dd9b0c16d2999330779d2ddd7fea8930190b8d11988ec7c4447"

    def test_the_pre_image_in_full(self):
        bare = Entry(UUID_1, 258, "x", None, "", 0, None, "{}")
        assert preimage_v2(1, bare, GENESIS.hash) == (
            b"relay audit log entry\x02"
             b"\x01\0\0\0\x08" + b"\0\0\0\0\0\0\0\x01"
            + b"\x01\0\0\0\x24" + UUID_1.encode()
            + b"\x01\0\0\0\x08" + b"\0\0\0\0\0\0\x01\x02"
            + b"\x01\0\0\0\x01x"
            + b"\x00"
            + b"\x01\0\0\0\0"
            + b"\x01\0\0\0\x08" + bytes(8)
            + b"\x00"
            + b"\x01\0\0\0\x02{}"
            + b"\x01\0\0\0\x20" + bytes(32)
        )  # fmt: skip

    @given(entries(), entries(), seqs(), seqs(), hashes(), hashes())
    def test_different_rows_have_different_pre_images(self, one, two, seq_1, seq_2, prev_1, prev_2):
        same = (seq_1, one, prev_1) == (seq_2, two, prev_2)
        assert (preimage_v2(seq_1, one, prev_1) == preimage_v2(seq_2, two, prev_2)) is same

    @given(entries(), st.data(), seqs(), hashes())
    def test_a_change_of_any_single_field_changes_it(self, entry, data, seq, prev):
        other = data.draw(entries())
        before = preimage_v2(seq, entry, prev)
        for field in fields(Entry):
            value = getattr(other, field.name)
            changed = replace(entry, **{field.name: value})
            assert (preimage_v2(seq, changed, prev) == before) is (value == getattr(entry, field.name))

    @given(st.text(max_size=8), st.integers(0, 8), st.integers(0, 8))
    @example("ab", 0, 1)
    def test_no_field_lends_a_character_to_its_neighbour(self, text, cut_1, cut_2):
        def split(cut):
            return preimage_v2(1, Entry(UUID_1, 1, "a", text[:cut], text[cut:], None, None, "{}"), GENESIS.hash)

        assert (split(cut_1) == split(cut_2)) is (text[:cut_1] == text[:cut_2])

    @pytest.mark.parametrize(("field", "zero"), [("actor", ""), ("event_id", ""), ("kind", 0),
                                                 ("channel_id", "00000000-0000-0000-0000-000000000000")])  # fmt: skip
    def test_absent_is_neither_zero_nor_empty(self, field, zero):
        entry = Entry(UUID_1, 1, "a", "x", "y", 3, CHANNEL, "{}")
        absent, empty = replace(entry, **{field: None}), replace(entry, **{field: zero})
        assert preimage_v2(1, absent, GENESIS.hash) != preimage_v2(1, empty, GENESIS.hash)

    def test_a_time_text_of_version_1_does_not_ride_along_unhashed(self):
        row = link(GENESIS, [Entry(UUID_1, 1, "a", None, None, None, None, "{}")])[0]
        assert recompute(row) == row.hash
        with pytest.raises(AuditError, match="version 1"):
            recompute(replace(row, v1_time="2026-01-01T00:00:00+00:00"))

    @pytest.mark.parametrize("version", [-1, 0, 3])
    def test_unknown_versions_are_refused(self, version):
        row = link(GENESIS, [Entry(UUID_1, 1, "a", None, None, None, None, "{}")])[0]
        with pytest.raises(AuditError, match="unknown"):
            recompute(replace(row, version=version))


class TestLink:
    @given(st.lists(entries(), max_size=8), st.integers(0, 2**40), hashes())
    def test_rows_follow_each_other_and_their_predecessor(self, some, seq, prev):
        rows = link(Head(seq, prev), some)
        assert [row.entry for row in rows] == some
        assert [row.seq for row in rows] == list(range(seq + 1, seq + 1 + len(some)))
        assert [row.prev_hash for row in rows] == [prev, *(row.hash for row in rows)][: len(some)]
        assert all(row.version == VERSION and recompute(row) == row.hash for row in rows)

    @given(st.lists(entries(), max_size=8), st.integers(0, 8))
    def test_one_batch_or_two_is_the_same_chain(self, some, cut):
        first = link(GENESIS, some[:cut])
        head = first[-1].head if first else GENESIS
        assert first + link(head, some[cut:]) == link(GENESIS, some)

    def test_genesis(self):
        assert (GENESIS.seq, GENESIS.hash) == (0, bytes(32))

    def test_a_head_is_a_hash_in_a_place(self):
        with pytest.raises(AssertionError, match="SHA-256"):
            Head(1, b"short")
        with pytest.raises(AssertionError, match="negative"):
            Head(-1, bytes(32))
