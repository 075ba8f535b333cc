"""Proofs: made of a real log, checked without it, and refused wherever anything was changed."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from relay.asyncpg_trio import Connection, connect
from relay.audit import checkpoints, note, proofs, tree_store
from relay.audit.chain import ChainedEntry, hash_v1, v1_uuid
from relay.audit.entry import Entry
from relay.audit.proofs import ConsistencyProof, InclusionProof, NotAProof, NotCovered
from relay.audit.tree import Frontier
from relay.errors import AuditError
from relay.nostr.keys import SecretKey
from tests.support.audit_log import TIME_US, grow, sign_log, unprotect

KEY, WITNESS, STRANGER = (SecretKey.from_bytes(bytes([number]) * 32) for number in (1, 2, 3))
PUBKEY = KEY.public_hex
COSIGNED = 1_700_000_000


@pytest.fixture
async def con(migrated_dsn: str) -> AsyncIterator[Connection]:
    opened = await connect(migrated_dsn)
    yield opened
    opened.terminate()


def written(proof: InclusionProof | ConsistencyProof) -> bytes:
    return orjson.dumps(proof.as_dict())


def lone(row: ChainedEntry, key: SecretKey = KEY) -> InclusionProof:
    """The proof of a log of one entry."""
    frontier = Frontier()
    frontier.append(row.hash)
    return InclusionProof(row, (), note.sign(note.origin_of(key.public_hex), 1, frontier.root(), key))


async def test_every_entry_is_proved_under_every_checkpoint_that_covers_it(con: Connection):
    for size in (1, 2, 7, 12):
        await grow(con, size - (await con.fetchval("SELECT count(*) FROM audit_log")))
        await sign_log(con, KEY, size)
    for size in (1, 2, 7, 12):
        for seq in range(1, size + 1):
            proof = await proofs.prove(con, PUBKEY, seq, size)
            assert InclusionProof.from_dict(proof.as_dict()) == proof
            assert (proof.row.seq, proof.checkpoint.size) == (seq, size)
            said = proofs.check(written(proof), PUBKEY)
            assert said[0].startswith(f"entry {seq} (event_created, 2023-11-14T22:13:20Z)")
            assert said[1] == f"it is entry {seq} of the {size} under the checkpoint's root"
            assert f"is signed by {PUBKEY}" in said[2]
        for old in (each for each in (1, 2, 7, 12) if each <= size):
            grown = await proofs.prove_consistency(con, PUBKEY, old, size)
            assert ConsistencyProof.from_dict(grown.as_dict()) == grown
            assert len(proofs.check(written(grown))) == 3
    assert (await proofs.prove(con, PUBKEY, 1)).checkpoint.size == 12


async def test_what_no_checkpoint_covers_is_not_proved(con: Connection):
    await grow(con, 5)
    with pytest.raises(NotCovered, match="the log has no checkpoint yet"):
        await proofs.prove(con, PUBKEY, 1)
    await sign_log(con, KEY, 3)
    with pytest.raises(NotCovered, match="no checkpoint at 5 entries"):
        await proofs.prove(con, PUBKEY, 1, 5)
    for seq in (0, 4, 99):
        with pytest.raises(NotCovered, match=f"at 3 entries does not cover entry {seq}"):
            await proofs.prove(con, PUBKEY, seq)
    with pytest.raises(NotCovered, match="a log of 2 entries cannot begin with one of 3"):
        await proofs.prove_consistency(con, PUBKEY, 3, 2)
    with pytest.raises(NotCovered, match="no checkpoint at 4 entries"):
        await proofs.prove_consistency(con, PUBKEY, 3, 4)
    with pytest.raises(NotCovered):
        await proofs.prove(con, STRANGER.public_hex, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE audit_log SET metadata = '{}' WHERE seq = 3", "hash of entry 3 is not that of its fields"),
        ("UPDATE audit_log SET hash = sha256(hash) WHERE seq = 3", "hash of entry 3 is not that of its fields"),
        ("UPDATE audit_log SET hash = sha256(hash) WHERE seq = 4", "entry 3 is not under the root"),
        ("DELETE FROM audit_log WHERE seq = 3", "no row seq 3, which was signed for"),
        ("DELETE FROM audit_log WHERE seq = 4", "has no row seq 4"),
        ("UPDATE audit_checkpoints SET root = sha256(root)", "does not say what its note says"),
    ],
)
async def test_a_log_that_is_not_what_was_signed_proves_nothing(con: Connection, change: str, said: str):
    await grow(con, 5)
    await sign_log(con, KEY, 5)
    await unprotect(con)
    await con.execute(change)
    with pytest.raises(AuditError, match=said):
        await proofs.prove(con, PUBKEY, 3)


async def test_damage_in_the_stored_nodes_is_none_of_the_log(con: Connection):
    await grow(con, 600)
    for size in (300, 600):
        await sign_log(con, KEY, size)
    await tree_store.fill(con, 600)
    for change in ("hash = sha256(hash)", "hash = sha256(hash) WHERE index = 0"):
        for made in (lambda: proofs.prove(con, PUBKEY, 550), lambda: proofs.prove_consistency(con, PUBKEY, 300, 600)):
            await con.execute(f"UPDATE audit_tree SET {change}")
            assert proofs.check(written(await made()), PUBKEY)
            # Not kept, so that the next checkpoint makes them again.
            assert await con.fetchval("SELECT count(*) FROM audit_tree") == 0
            assert await tree_store.fill(con, 600) == 2


async def test_stored_nodes_that_the_rows_do_not_bear_out_are_kept_as_evidence(con: Connection):
    await grow(con, 600)
    await sign_log(con, KEY, 600)
    await tree_store.fill(con, 600)
    await unprotect(con)
    await con.execute("UPDATE audit_tree SET hash = sha256(hash)")
    await con.execute("UPDATE audit_log SET hash = sha256(hash) WHERE seq = 3")
    with pytest.raises(AuditError, match="entry 550 is not under the root"):
        await proofs.prove(con, PUBKEY, 550)
    assert await con.fetchval("SELECT count(*) FROM audit_tree") == 2


async def test_a_log_that_was_cut_and_signed_anew_is_not_consistent(con: Connection):
    await grow(con, 5)
    await sign_log(con, KEY, 3)
    await unprotect(con)
    await con.execute("UPDATE audit_log SET hash = sha256(hash) WHERE seq = 2")
    await sign_log(con, KEY, 5)
    with pytest.raises(AuditError, match="the log of 5 entries does not begin with that of 3 entries"):
        await proofs.prove_consistency(con, PUBKEY, 3, 5)


async def test_a_checkpoint_that_the_relay_has_not_signed_is_none(con: Connection):
    await grow(con, 1)
    signed = note.sign(note.origin_of(PUBKEY), 1, bytes(32), STRANGER)
    await checkpoints.insert(con, signed, TIME_US)
    with pytest.raises(AuditError, match="does not have the relay's signature"):
        await proofs.find_checkpoint(con, PUBKEY)


# -- without the log -------------------------------------------------------------------------------------------------


async def documents(con: Connection) -> tuple[dict[str, Any], dict[str, Any]]:
    """A proof of each kind."""
    await grow(con, 4)
    await sign_log(con, KEY, 4)
    await grow(con, 5)
    await sign_log(con, KEY, 9)
    inclusion = await proofs.prove(con, PUBKEY, 3)
    consistency = await proofs.prove_consistency(con, PUBKEY, 4, 9)
    return inclusion.as_dict(), consistency.as_dict()


async def test_nothing_in_a_document_can_be_changed(con: Connection):
    for document in await documents(con):
        proofs.check(orjson.dumps(document), PUBKEY)
        with pytest.raises(NotAProof, match="more stands in it"):
            proofs.check(orjson.dumps(document | {"remark": "and Alice knew"}))
        for place in leaves(document):
            for value in (None, "x", -1, 2**63, 10**30, [], {}, True, "00" * 32, 0):
                changed = copy.deepcopy(document)
                if put(changed, place, value):
                    with pytest.raises((AuditError, NotAProof)):
                        proofs.check(json.dumps(changed).encode(), PUBKEY)


def leaves(value: Any, *place: Any) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [found for key, each in value.items() for found in leaves(each, *place, key)]
    if isinstance(value, list):
        return [found for number, each in enumerate(value) for found in leaves(each, *place, number)]
    return [place]


def put(document: Any, place: tuple[Any, ...], value: Any) -> bool:
    """False if it is the same already."""
    *way, last = place
    for key in way:
        document = document[key]
    same = type(document[last]) is type(value) and document[last] == value
    document[last] = value
    return not same


async def test_a_path_of_another_length_is_no_proof(con: Connection):
    for document in await documents(con):
        for path in ([], document["path"][:-1], document["path"] * 2):
            with pytest.raises((AuditError, NotAProof)):
                proofs.check(orjson.dumps(document | {"path": path}))
        for path in (["AA=="], ["é"], [5], ["A" * 43 + "="] * 65, "x"):
            with pytest.raises(NotAProof):
                proofs.check(orjson.dumps(document | {"path": path}))


async def test_the_signer_is_who_it_has_to_be(con: Connection):
    inclusion, consistency = await documents(con)
    with pytest.raises(AuditError, match=f"is of the log of {PUBKEY}, not of {STRANGER.public_hex}"):
        proofs.check(orjson.dumps(inclusion), STRANGER.public_hex)
    forged = inclusion["checkpoint"].replace(PUBKEY, STRANGER.public_hex)
    with pytest.raises(AuditError, match="does not have a good signature"):
        proofs.check(orjson.dumps(inclusion | {"checkpoint": forged}))
    other = note.sign(note.origin_of(PUBKEY, 2), 9, note.parse(consistency["new"]).root, KEY)
    with pytest.raises(AuditError, match="are of two logs"):
        proofs.check(orjson.dumps(consistency | {"new": other.note}))


def test_a_checkpoint_alone_with_its_witnesses():
    checkpoint = note.sign(note.origin_of(PUBKEY, 2), 5, bytes(32), KEY)
    name = f"relay-witness/{WITNESS.public_hex}"
    line = note.cosign(checkpoint, name, WITNESS, COSIGNED)
    unknown = note.cosign(checkpoint, "witness.example", STRANGER, COSIGNED)
    later = note.cosign(checkpoint, f"relay-witness/{STRANGER.public_hex}", STRANGER, 2**62)
    said = proofs.check(checkpoint.with_lines([line, unknown, later]).note.encode())
    assert said[1:] == [
        f"cosigned by {name} at 2023-11-14T22:13:20Z",
        "a signature in the name of witness.example was not checked: its key is not known here",
        f"cosigned by relay-witness/{STRANGER.public_hex} at {2**62} s",
    ]
    other = note.sign(note.origin_of(PUBKEY, 2), 6, bytes(32), KEY)
    with pytest.raises(AuditError, match=f"cosignature of {name} on the checkpoint at 6 entries is not good"):
        proofs.check(other.with_lines([line]).note.encode())


@pytest.mark.parametrize(
    "document",
    [b"", b"hello", b"\xff\xfe", b"{", b"{}", b'{"format":"relay-audit-inclusion"}', b'{"format":["x"]}',
     b'{"format":"relay-audit-inclusion","version":2}', b'{"format":"relay-audit-consistency","version":1}',
     note.sign("another.example/log", 1, bytes(32), KEY).note.encode()],
)  # fmt: skip
def test_what_is_no_proof_is_called_so(document: bytes):
    with pytest.raises(NotAProof):
        proofs.check(document)


def test_an_entry_taken_over_from_the_original_is_proved_like_any_other():
    time_text, time_us = "2023-11-14T22:13:20.123456789+00:00", 1_700_000_000_123_456
    blank = Entry("", time_us, "auth_success", "ab" * 32, "cd" * 32, 22, None, "null")
    digest = hash_v1(1, time_text, blank, bytes(32))
    entry = replace(blank, uuid=v1_uuid(digest))
    proof = lone(ChainedEntry(1, entry, 1, bytes(32), digest, time_text))
    assert len(proofs.check(written(proof))) == 3
    document = proof.as_dict()
    document["entry"]["v1_time"] = time_text.replace("789", "788")
    with pytest.raises(AuditError):
        proofs.check(orjson.dumps(document))


def test_a_proof_is_not_made_of_a_hash_of_another_length():
    row = ChainedEntry(1, Entry("", 0, "", None, None, None, None, "{}"), 2, b"", b"")
    with pytest.raises(AuditError, match="is not that of its fields"):
        lone(row).verify()
