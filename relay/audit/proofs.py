"""Proofs for people outside: that an entry is in the log, and that the log of today begins with that of yesterday.

In: a connection, an entry's seq, sizes of checkpoints. Out: a document (JSON) that stands alone: with it and the
relay's public key anybody can check what it says, without the database and without the relay (`check`).

A proof is checked against the signed root before it is given out. If it does not hold, the log is not what was signed;
that is an `AuditError`, and no proof.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import orjson
import structlog

from relay.asyncpg_trio import Connection, PostgresError
from relay.audit import checkpoints, log, note, tree_store
from relay.audit.chain import ChainedEntry, recompute
from relay.audit.checkpoints import Stored
from relay.audit.entry import Entry, is_canonical_uuid
from relay.audit.note import Checkpoint, cosigned_at, is_signed_by
from relay.audit.tree import HASH_BYTES, leaf_hash, verify_consistency, verify_inclusion
from relay.errors import AuditError, RelayError

INCLUSION = "relay-audit-inclusion"
CONSISTENCY = "relay-audit-consistency"
VERSION = 1
# A path is not longer than a tree of 2^63 leaves is high; a proof of consistency has one more.
PATH_HASHES_MAX = 64

_LOG = re.compile(r"relay-audit/([0-9a-f]{64})(?:/[1-9][0-9]*)?")
_WITNESS = re.compile(r"relay-witness/([0-9a-f]{64})")
_INT64 = range(-(1 << 63), 1 << 63)
_TIME_MAX = 253_402_300_799  # the last second that `datetime` can hold


logger = structlog.get_logger(__name__)


class NotCovered(RelayError):
    """There is no such checkpoint, or it does not cover what is asked for: nothing is wrong with the log."""


class NotAProof(RelayError):
    """A document of another form: it says nothing that could be right or wrong."""


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That `row` is under the root of `checkpoint`, which has its cosignatures with it."""

    row: ChainedEntry
    path: tuple[bytes, ...]
    checkpoint: Checkpoint

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: the entry as it is stored, hashes in it as hex, those of the path as base64."""
        return {
            "format": INCLUSION,
            "version": VERSION,
            "entry": _fields(self.row),
            "index": self.row.seq - 1,
            "size": self.checkpoint.size,
            "path": _encoded(self.path),
            "checkpoint": self.checkpoint.note,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Raises NotAProof."""
        proof = cls(_row(_get(fields, "entry", dict)), _path(fields), _note(fields, "checkpoint"))
        if (_get(fields, "index", int), _get(fields, "size", int)) != (proof.row.seq - 1, proof.checkpoint.size):
            raise NotAProof("index and size are not those of the entry and of the checkpoint")
        return proof

    def verify(self) -> None:
        """Recomputes everything but signatures. Raises AuditError, which says what does not hold."""
        row, checkpoint = self.row, self.checkpoint
        # Another length than the column allows is nothing that can be hashed.
        if len(row.prev_hash) != HASH_BYTES or recompute(row) != row.hash:
            raise AuditError(f"the hash of entry {row.seq} is not that of its fields")
        if not verify_inclusion(leaf_hash(row.hash), row.seq - 1, checkpoint.size, self.path, checkpoint.root):
            raise AuditError(f"entry {row.seq} is not under the root of the checkpoint at {checkpoint.size} entries")


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """That the log of `new` begins with the log of `old`: nothing in it was changed, nothing was taken out."""

    old: Checkpoint
    new: Checkpoint
    path: tuple[bytes, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: both notes, and the path in base64."""
        return {
            "format": CONSISTENCY,
            "version": VERSION,
            "from": self.old.size,
            "to": self.new.size,
            "path": _encoded(self.path),
            "old": self.old.note,
            "new": self.new.note,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Raises NotAProof."""
        proof = cls(_note(fields, "old"), _note(fields, "new"), _path(fields))
        if (_get(fields, "from", int), _get(fields, "to", int)) != (proof.old.size, proof.new.size):
            raise NotAProof("`from` and `to` are not the sizes of the checkpoints")
        return proof

    def verify(self) -> None:
        """Recomputes everything but signatures. Raises AuditError, which says what does not hold."""
        old, new = self.old, self.new
        if old.origin != new.origin:
            raise AuditError(f"the checkpoints are of two logs, {old.origin} and {new.origin}")
        if not verify_consistency(old.size, new.size, old.root, new.root, self.path):
            raise AuditError(f"the log of {new.size} entries does not begin with that of {old.size} entries")


P = TypeVar("P", InclusionProof, ConsistencyProof)


# -- making ----------------------------------------------------------------------------------------------------------


async def find_checkpoint(con: Connection, pubkey: str, size: int | None = None) -> Stored:
    """The checkpoint of `size` entries, or the newest, of the log as it is named now; `pubkey` is the relay's, hex.

    Raises:
        NotCovered: there is none.
        AuditError: its row was changed.
    """
    origin = await checkpoints.origin(con, pubkey)
    found = await (checkpoints.newest(con, origin) if size is None else checkpoints.at(con, origin, size))
    if found is None:
        raise NotCovered("the log has no checkpoint yet" if size is None else f"no checkpoint at {size} entries")
    if not is_signed_by(found.checkpoint, pubkey):
        raise AuditError(f"the checkpoint at {found.checkpoint.size} entries does not have the relay's signature")
    return found


async def prove(con: Connection, pubkey: str, seq: int, size: int | None = None) -> InclusionProof:
    """That entry `seq` is under the checkpoint at `size` entries, or the newest. Seven statements at most, unless the
    stored nodes are wrong.

    Raises:
        NotCovered: no such checkpoint, or the entry is behind it.
        AuditError: the log is not what was signed.
    """
    checkpoint = (await find_checkpoint(con, pubkey, size)).checkpoint
    if not 1 <= seq <= checkpoint.size:
        raise NotCovered(f"the checkpoint at {checkpoint.size} entries does not cover entry {seq}")
    rows = await log.read_rows(con, seq - 1, seq, 1)
    if not rows:
        raise AuditError(f"the audit log has no row seq {seq}, which was signed for")

    async def made(stored: bool) -> InclusionProof:
        path = await tree_store.inclusion_path(con, seq, checkpoint.size, stored=stored)
        return InclusionProof(rows[0], tuple(path), checkpoint)

    return await _verified(con, made)


async def prove_consistency(con: Connection, pubkey: str, old: int, new: int) -> ConsistencyProof:
    """That the log at the checkpoint of `new` entries begins with that at the checkpoint of `old`.

    Raises:
        NotCovered: there is no checkpoint of one of these sizes, or `old` is the larger one.
        AuditError: the log is not what was signed.
    """
    if old > new:
        raise NotCovered(f"a log of {new} entries cannot begin with one of {old}")
    before = (await find_checkpoint(con, pubkey, old)).checkpoint
    after = (await find_checkpoint(con, pubkey, new)).checkpoint

    async def made(stored: bool) -> ConsistencyProof:
        return ConsistencyProof(before, after, tuple(await tree_store.consistency_path(con, old, new, stored=stored)))

    return await _verified(con, made)


async def _verified(con: Connection, made: Callable[[bool], Awaitable[P]]) -> P:
    """What `made` gives with the stored nodes, or, where that does not hold, from the rows alone: `audit_tree` is there
    for speed, so that damage in it is none of the log. It is then emptied; the next checkpoint fills it again.

    Raises:
        AuditError: the rows do not fit what was signed, either. The stored nodes are left: they are evidence.
    """
    proof = await made(True)
    try:
        proof.verify()
    except AuditError:
        proof = await made(False)
        proof.verify()
        logger.warning("stored nodes of the audit tree were wrong; they are made again")
        # Whoever may only read still gets the proof.
        with suppress(PostgresError):
            await tree_store.clear(con)
    return proof


# -- checking, anywhere ----------------------------------------------------------------------------------------------


def check(document: bytes, pubkey: str | None = None) -> list[str]:
    """What a document proves, in sentences: a proof of either kind (JSON), or a checkpoint alone (its text).

    `pubkey` (hex) is the relay's, from a source that the reader trusts; without it, the key that the document itself
    names is taken, and it is the reader who has to compare.

    Raises:
        NotAProof: the document is neither.
        AuditError: something in it does not hold.
    """
    if not document.lstrip().startswith(b"{"):
        return _check_signatures(_note({"checkpoint": _utf8(document)}, "checkpoint"), pubkey)
    fields = _object(document)
    if fields.get("format") not in (INCLUSION, CONSISTENCY):
        raise NotAProof("neither a proof nor a checkpoint of the audit log of a relay")
    if _get(fields, "version", int) != VERSION:
        raise NotAProof(f"version {fields['version']} of the form is unknown")
    proof = (InclusionProof if fields["format"] == INCLUSION else ConsistencyProof).from_dict(fields)
    if proof.as_dict() != fields:
        # Another key, or another spelling: somebody would read what nobody has proved.
        raise NotAProof("more stands in it than what is proved")
    return _check_inclusion(proof, pubkey) if isinstance(proof, InclusionProof) else _check_consistency(proof, pubkey)


def _check_inclusion(proof: InclusionProof, pubkey: str | None) -> list[str]:
    proof.verify()
    entry, size = proof.row.entry, proof.checkpoint.size
    said = f"entry {proof.row.seq} ({entry.action}, {_moment(entry.time_us // 1_000_000)}) has the hash of its fields"
    covered = f"it is entry {proof.row.seq} of the {size} under the checkpoint's root"
    return [said, covered, *_check_signatures(proof.checkpoint, pubkey)]


def _check_consistency(proof: ConsistencyProof, pubkey: str | None) -> list[str]:
    proof.verify()
    said = f"the log of {proof.new.size} entries begins with that of {proof.old.size}: nothing in it was changed"
    return [said, *_check_signatures(proof.old, pubkey), *_check_signatures(proof.new, pubkey)]


def _check_signatures(checkpoint: Checkpoint, pubkey: str | None) -> list[str]:
    match = _LOG.fullmatch(checkpoint.origin)
    if match is None:
        raise NotAProof(f"{checkpoint.origin} is not the name of a relay's audit log")
    key, what = match[1], f"the checkpoint at {checkpoint.size} entries"
    if pubkey is not None and key != pubkey:
        raise AuditError(f"{what} is of the log of {key}, not of {pubkey}")
    if not is_signed_by(checkpoint, key):
        raise AuditError(f"{what} does not have a good signature of {key}")
    said = [f"{what} (root {checkpoint.root.hex()}) is signed by {key} for {checkpoint.origin}"]
    others = dict.fromkeys(each.name for each in checkpoint.signatures if each.name != checkpoint.origin)
    return said + [_check_witness(checkpoint, name) for name in others]


def _check_witness(checkpoint: Checkpoint, name: str) -> str:
    match = _WITNESS.fullmatch(name)
    if match is None:
        # As c2sp.org/signed-note has it: a signature by an unknown key is no fault, and no help.
        return f"a signature in the name of {name} was not checked: its key is not known here"
    time = cosigned_at(checkpoint, name, match[1])
    if time is None:
        raise AuditError(f"the cosignature of {name} on the checkpoint at {checkpoint.size} entries is not good")
    return f"cosigned by {name} at {_moment(time)}"


# -- reading what somebody sent --------------------------------------------------------------------------------------


def _fields(row: ChainedEntry) -> dict[str, Any]:
    rest = {"version": row.version, "prev_hash": row.prev_hash.hex(), "hash": row.hash.hex(), "v1_time": row.v1_time}
    return {"seq": row.seq, **asdict(row.entry), **rest}


def _row(fields: Mapping[str, Any]) -> ChainedEntry:
    uuid, channel_id = _get(fields, "uuid", str), _maybe(fields, "channel_id", str)
    if not all(is_canonical_uuid(each) for each in (uuid, channel_id) if each is not None):
        raise NotAProof("uuid or channel_id of the entry is not a lowercase uuid with hyphens")
    entry = Entry(
        uuid,
        _get(fields, "time_us", int),
        _get(fields, "action", str),
        _maybe(fields, "actor", str),
        _maybe(fields, "event_id", str),
        _maybe(fields, "kind", int),
        channel_id,
        _get(fields, "metadata", str),
    )
    seq, version = _get(fields, "seq", int), _get(fields, "version", int)
    if seq < 1:
        raise NotAProof("the first entry has seq 1")
    return ChainedEntry(
        seq, entry, version, _hash(fields, "prev_hash"), _hash(fields, "hash"), _maybe(fields, "v1_time", str)
    )


def _object(document: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise NotAProof(f"not JSON: {error}") from None
    assert isinstance(found, dict), "what begins with a brace is an object"
    return found


def _get(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if type(value) is not kind:  # not isinstance: true is no number here
        raise NotAProof(f"{name} is missing or has the wrong type")
    if kind is int and value not in _INT64:
        raise NotAProof(f"{name} has more than 64 bits")
    return value


def _maybe(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    return None if fields.get(name) is None else _get(fields, name, kind)


def _hash(fields: Mapping[str, Any], name: str) -> bytes:
    text: str = _get(fields, name, str)
    if re.fullmatch("[0-9a-f]{64}", text) is None:
        raise NotAProof(f"{name} is not {HASH_BYTES} bytes in lowercase hex")
    return bytes.fromhex(text)


def _path(fields: Mapping[str, Any]) -> tuple[bytes, ...]:
    path: list[Any] = _get(fields, "path", list)
    if len(path) > PATH_HASHES_MAX:
        raise NotAProof(f"a path has no more than {PATH_HASHES_MAX} hashes")
    try:
        found = tuple(b64decode(each, validate=True) for each in path)
    except (Base64Error, TypeError, ValueError):
        raise NotAProof("the path is not in base64") from None
    if any(len(each) != HASH_BYTES for each in found):
        raise NotAProof(f"the path has a hash that is not of {HASH_BYTES} bytes")
    return found


def _encoded(path: Sequence[bytes]) -> list[str]:
    return [b64encode(each).decode() for each in path]


def _note(fields: Mapping[str, Any], name: str) -> Checkpoint:
    try:
        return note.parse(_get(fields, name, str))
    except note.NoteError as error:
        raise NotAProof(f"{name}: {error}") from None


def _utf8(document: bytes) -> str:
    try:
        return document.decode()
    except UnicodeDecodeError:
        raise NotAProof("neither JSON nor text") from None


def _moment(seconds: int) -> str:
    """UTC, or the number where no calendar reaches: an imported or a forged entry may say anything."""
    if not 0 <= seconds <= _TIME_MAX:
        return f"{seconds} s"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
