"""The hash chain, as arithmetic: entries in, chained entries out.

Rules
-----
1. A row's hash covers its own place (`seq`), every field, and the hash of the row before. Row 1 stands on `GENESIS`.
2. Version 2, ours: SHA-256 over a domain tag, a version byte and length-prefixed fields. Two different rows never have
   the same pre-image: a field cannot lend a character to its neighbour, and "absent" is a byte of its own, not zero and
   not the empty string.
3. Version 1, the original's, only for rows that were imported from it. Its fields touch each other, so rows are held to
   a strict form as well (`check_v1_form`): what the hash leaves open, the form closes. Its uuid and microseconds are in
   no hash; they follow from what is.

Pure: no I/O, no clock, no randomness. The clock that verification distrusts is not demanded to grow.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from relay.audit.entry import ORIGINAL_ACTIONS, Entry
from relay.errors import AuditError

HASH_BYTES = 32
VERSION_ORIGINAL = 1
VERSION = 2

_TAG = b"relay audit log entry"
_NIL_UUID = "00000000-0000-0000-0000-000000000000"
# chrono's RFC 3339: a fraction of 0, 3, 6 or 9 digits, the shortest that is exact.
_V1_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{3}|\d{6}|\d{9}))?\+00:00")
_V1_KIND_MAX = 65535


@dataclass(frozen=True, slots=True)
class Head:
    """The last row of a chain: all that the next one needs to know."""

    seq: int
    hash: bytes

    def __post_init__(self) -> None:
        assert self.seq >= 0, "a chain has no negative places"
        assert len(self.hash) == HASH_BYTES, "a head is a SHA-256"


GENESIS = Head(0, bytes(HASH_BYTES))


@dataclass(frozen=True, slots=True)
class ChainedEntry:
    """One row of `audit_log`. `v1_time` is the original's time text, only in version 1."""

    seq: int
    entry: Entry
    version: int
    prev_hash: bytes
    hash: bytes
    v1_time: str | None = None

    @property
    def head(self) -> Head:
        return Head(self.seq, self.hash)


def link(prev: Head, entries: Iterable[Entry]) -> list[ChainedEntry]:
    """Chain `entries` behind `prev`, in the order given."""
    chained: list[ChainedEntry] = []
    for seq, entry in enumerate(entries, prev.seq + 1):
        digest = hash_v2(seq, entry, prev.hash)
        chained.append(ChainedEntry(seq, entry, VERSION, prev.hash, digest))
        prev = Head(seq, digest)
    return chained


def recompute(row: ChainedEntry) -> bytes:
    """The hash that `row` must have, by its version.

    Raises:
        AuditError: the version is unknown, or the row's form is not that of its version.
    """
    if row.version == VERSION:
        if row.v1_time is not None:
            raise AuditError("a row of version 2 carries a time text of version 1")
        return hash_v2(row.seq, row.entry, row.prev_hash)
    if row.version == VERSION_ORIGINAL:
        check_v1_form(row)
        assert row.v1_time is not None
        return hash_v1(row.seq, row.v1_time, row.entry, row.prev_hash)
    raise AuditError(f"version {row.version} is unknown")


# -- version 2 -------------------------------------------------------------------------------------------------------


def hash_v2(seq: int, entry: Entry, prev_hash: bytes) -> bytes:
    return hashlib.sha256(preimage_v2(seq, entry, prev_hash)).digest()


def preimage_v2(seq: int, entry: Entry, prev_hash: bytes) -> bytes:
    """What is hashed: tag, version byte, and each field as `00`, or `01`, four bytes of length, the bytes.

    Integers are eight bytes, big-endian and signed: the widest column, so that a wider column later hashes alike.
    """
    assert len(prev_hash) == HASH_BYTES
    return b"".join(
        (
            _TAG,
            bytes((VERSION,)),
            _integer(seq),
            _text(entry.uuid),
            _integer(entry.time_us),
            _text(entry.action),
            _text(entry.actor),
            _text(entry.event_id),
            _integer(entry.kind),
            _text(entry.channel_id),
            _text(entry.metadata),
            _field(prev_hash),
        )
    )


def _field(value: bytes) -> bytes:
    return b"\x01" + len(value).to_bytes(4) + value


def _text(value: str | None) -> bytes:
    return b"\x00" if value is None else _field(value.encode())


def _integer(value: int | None) -> bytes:
    return b"\x00" if value is None else _field(value.to_bytes(8, signed=True))


# -- version 1, the original's ----------------------------------------------------------------------------------------


def hash_v1(seq: int, time_text: str, entry: Entry, prev_hash: bytes) -> bytes:
    return hashlib.sha256(preimage_v1(seq, time_text, entry, prev_hash)).digest()


def preimage_v1(seq: int, time_text: str, entry: Entry, prev_hash: bytes) -> bytes:
    """The original's hash input: the fields in a row with nothing between them."""
    assert len(prev_hash) == HASH_BYTES
    if entry.event_id is None or entry.kind is None or entry.actor is None:
        raise AuditError("the original has no entry without event id, kind and actor")
    channel = bytes.fromhex((entry.channel_id or _NIL_UUID).replace("-", ""))
    return b"".join(
        (
            seq.to_bytes(8, signed=True),
            time_text.encode(),
            entry.event_id.encode(),
            entry.kind.to_bytes(4),
            entry.actor.encode(),
            entry.action.encode(),
            channel,
            entry.metadata.encode(),
            prev_hash.hex().encode(),
        )
    )


def check_v1_form(row: ChainedEntry) -> None:
    """Close what version 1's hash leaves open.

    Its fields have no borders: the time's strict form fixes the first, the eleven known actions the third from the end,
    plain text and a 16-bit kind the one between event id and actor. "No channel" and the nil uuid hash alike, so only
    the first is allowed. The uuid is derived from the hash and the microseconds from the time text.

    Raises:
        AuditError: the row is not of that form.
    """
    entry, time_text = row.entry, row.v1_time
    if time_text is None or v1_time_us(time_text) != entry.time_us:
        raise AuditError("the time of a row of version 1 is not that of its time text")
    if entry.action not in ORIGINAL_ACTIONS:
        raise AuditError("the original has no such action")
    if entry.kind is None or not 0 <= entry.kind <= _V1_KIND_MAX:
        raise AuditError("the kind of a row of version 1 has 16 bits")
    if not (_is_plain(entry.event_id) and _is_plain(entry.actor)):
        raise AuditError("event id and actor of a row of version 1 are printable ASCII")
    if entry.channel_id == _NIL_UUID:
        raise AuditError("a row of version 1 says 'no channel' by having none")
    if entry.uuid != v1_uuid(row.hash):
        raise AuditError("the uuid of a row of version 1 is made from its hash")


def v1_time_us(text: str) -> int:
    """Microseconds since 1970 of the original's time text; the nanoseconds it may carry are cut off.

    Raises:
        AuditError: the text is not exactly in the original's form.
    """
    match = _V1_TIME.fullmatch(text)
    if match is None or not text.isascii():
        raise AuditError(f"not a time of the original: {text!r}")
    seconds, fraction = match.groups()
    if fraction is not None and fraction.endswith("000"):
        raise AuditError(f"the fraction is not the shortest: {text!r}")
    try:
        whole = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
    except ValueError as error:
        raise AuditError(f"no such time: {text!r}") from error
    return int(whole.timestamp()) * 1_000_000 + int((fraction or "").ljust(9, "0")[:6])


def v1_uuid(digest: bytes) -> str:
    """The uuid of an imported row (the original's have none): version 8 of RFC 9562, from the row's hash."""
    assert len(digest) == HASH_BYTES
    raw = bytearray(digest[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _is_plain(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isprintable()
