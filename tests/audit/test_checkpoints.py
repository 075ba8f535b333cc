"""The tables of checkpoints: what was signed stays as it was signed, and a row that was changed shows."""

from __future__ import annotations

import pytest

from relay.audit import checkpoints, note
from relay.audit.note import NoteError
from relay.errors import HeadMismatch
from relay.nostr.keys import SecretKey

KEY = SecretKey.from_hex("11" * 32)
WITNESS = SecretKey.from_hex("22" * 32)
ORIGIN = note.origin_of(KEY.public_hex)


def checkpoint(size, *, origin=ORIGIN, root=None):
    return note.sign(origin, size, root or bytes([size]) * 32, KEY)


async def test_what_is_kept_comes_back(con):
    for size in (3, 1, 2):
        assert await checkpoints.insert(con, checkpoint(size), 1000 + size)
    assert await checkpoints.newest(con, ORIGIN) == checkpoints.Stored(checkpoint(3), 1003, None)
    assert (await checkpoints.at(con, ORIGIN, 2)).checkpoint == checkpoint(2)
    assert await checkpoints.at(con, ORIGIN, 4) is None
    assert await checkpoints.newest(con, "another") is None
    assert [each.checkpoint.size for each in await checkpoints.listed(con, ORIGIN, -1, 10)] == [1, 2, 3]
    assert [each.checkpoint.size for each in await checkpoints.listed(con, ORIGIN, 1, 1)] == [2]


async def test_the_same_again_is_nothing_new_and_another_root_a_contradiction(con):
    assert await checkpoints.insert(con, checkpoint(3), 1)
    assert not await checkpoints.insert(con, checkpoint(3), 2)
    with pytest.raises(HeadMismatch, match="another checkpoint"):
        await checkpoints.insert(con, checkpoint(3, root=b"x" * 32), 3)
    assert (await checkpoints.newest(con, ORIGIN)).time_us == 1


async def test_the_event_and_the_cosignatures_come_later(con):
    await checkpoints.insert(con, checkpoint(3), 1)
    first = note.cosign(checkpoint(3), "relay-witness/a", WITNESS, 5)
    second = note.cosign(checkpoint(3), "relay-witness/b", WITNESS, 6)
    again = note.cosign(checkpoint(3), "relay-witness/a", WITNESS, 7)
    await checkpoints.add_cosignatures(con, ORIGIN, 3, [("relay-witness/b", second)])
    await checkpoints.add_cosignatures(con, ORIGIN, 3, [("relay-witness/a", first)])
    await checkpoints.add_cosignatures(con, ORIGIN, 3, [("relay-witness/a", again)])
    await checkpoints.add_cosignatures(con, ORIGIN, 3, [])
    await checkpoints.note_event(con, ORIGIN, 3, "ab" * 32)
    found = await checkpoints.newest(con, ORIGIN)
    assert found == checkpoints.Stored(checkpoint(3).with_lines([first, second]), 1, "ab" * 32)


async def test_names(con):
    assert await checkpoints.origin(con, KEY.public_hex) == ORIGIN
    assert await checkpoints.all_origins(con) == []
    await checkpoints.insert(con, checkpoint(3), 5)
    await checkpoints.insert(con, checkpoint(2, origin=f"{ORIGIN}/3"), 6)
    assert await checkpoints.all_origins(con) == [ORIGIN, f"{ORIGIN}/3"]
    await con.execute("INSERT INTO audit_losses VALUES (2, 1, 'x', 0, sha256('x'), 0, sha256('x'), 'because')")
    assert await checkpoints.origin(con, KEY.public_hex) == f"{ORIGIN}/3"


@pytest.mark.parametrize(
    "change",
    [
        "SET size = 4", "SET root = sha256('x')", "SET origin = 'x'", "SET note = 'x'",
        "SET note = replace(note, E'\\n3\\n', E'\\n4\\n')",
    ],
)  # fmt: skip
async def test_a_row_that_was_changed(con, change):
    await checkpoints.insert(con, checkpoint(3), 1)
    await con.execute(f"UPDATE audit_checkpoints {change}")
    origin = (await con.fetchval("SELECT origin FROM audit_checkpoints")) or ORIGIN
    with pytest.raises(NoteError):
        await checkpoints.newest(con, origin)
    assert len(await checkpoints.rows(con, origin, -1, 10)) == 1  # for whoever must go on


async def test_a_line_that_is_no_cosignature(con):
    await checkpoints.insert(con, checkpoint(3), 1)
    await checkpoints.add_cosignatures(con, ORIGIN, 3, [("a", "nonsense")])
    with pytest.raises(NoteError):
        await checkpoints.newest(con, ORIGIN)
