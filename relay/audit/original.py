"""The chain of the original: its rows in, rows of ours of version 1 out. Pure.

The original hashed its clock's nanoseconds and kept the microseconds, so its own check fails on nearly every row that
it wrote on Linux, whole or not. The three digits are lost but not hidden: there are a thousand, and one of them gives
the hash. A row for which one is found is as well proven as any other (nothing else in the input is free), and keeps its
nine digits in `v1_time`. A row for which none is found was changed, or never was what it says.

Canonical JSON is made from what jsonb gives back, as Rust prints it. Numbers that jsonb spells in another way than they
were hashed (1e16) cannot be told from others; the original never wrote any, only strings, integers and null.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from relay.audit.chain import VERSION_ORIGINAL, ChainedEntry, preimage_v1, v1_uuid
from relay.audit.entry import Entry
from relay.errors import AuditError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_HASH = re.compile(r"[0-9a-f]{64}")
_BYTEA = re.compile(r"\\x[0-9a-f]{32}")
# Every fraction of a microsecond but none, as the three digits that it adds to the time.
_ENDINGS = tuple(b"%03d" % nanoseconds for nanoseconds in range(1, 1000))
_UTC = b"+00:00"


@dataclass(frozen=True, slots=True)
class OriginalRow:
    """One row of the original's table. `metadata` is canonical already; hashes are 32 bytes, `channel` 16 or None."""

    seq: int
    time_us: int
    event_id: str
    kind: int
    actor: str
    action: str
    channel: bytes | None
    metadata: str
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Converted:
    """A row of ours. `nanoseconds` says that its hash was found only with the digits that the original had lost. Where
    none fits, the row has the time as it was stored: whoever recomputes its hash finds that it does not hold."""

    row: ChainedEntry
    nanoseconds: bool


def convert(source: OriginalRow) -> Converted:
    """The row of version 1 that `source` becomes. Up to a thousand hashes, about half a millisecond."""
    plain = time_text(source.time_us)
    channel_id = None if source.channel is None else _uuid(source.channel)
    entry = Entry(
        v1_uuid(source.hash),
        source.time_us,
        source.action,
        source.actor,
        source.event_id,
        source.kind,
        channel_id,
        source.metadata,
    )
    text = _hashed_time(source, entry, plain)
    row = ChainedEntry(source.seq, entry, VERSION_ORIGINAL, source.prev_hash, source.hash, text or plain)
    return Converted(row, text not in (None, plain))


def _hashed_time(source: OriginalRow, entry: Entry, plain: str) -> str | None:
    """The time text that gives the row's hash; None if there is none."""
    try:
        preimage = preimage_v1(source.seq, plain, entry, source.prev_hash)
    except (OverflowError, ValueError):
        return None  # a seq or kind beyond its width, text that has no UTF-8: nothing that anybody hashed
    if hashlib.sha256(preimage).digest() == source.hash:
        return plain
    # The same input with nine digits: the place of the time is known, so only that is put in.
    seconds = plain[:19] + f".{source.time_us % 1_000_000:06}"
    begin = hashlib.sha256(preimage[:8] + seconds.encode())
    rest = _UTC + preimage[8 + len(plain) :]
    for ending in _ENDINGS:
        attempt = begin.copy()
        attempt.update(ending + rest)
        if attempt.digest() == source.hash:
            return f"{seconds}{ending.decode()}+00:00"
    return None


def time_text(time_us: int) -> str:
    """RFC 3339 as chrono prints it: a fraction of 0, 3 or 6 digits, the shortest that is exact.

    Raises:
        AuditError: a year that has not four digits.
    """
    try:
        whole = (_EPOCH + timedelta(seconds=time_us // 1_000_000)).strftime("%Y-%m-%dT%H:%M:%S")
    except OverflowError:
        raise AuditError(f"no such time: {time_us}") from None
    fraction = time_us % 1_000_000
    if fraction == 0:
        return f"{whole}+00:00"
    digits = f"{fraction:06}"
    return f"{whole}.{digits.removesuffix('000')}+00:00"


# -- reading what the original's database gives ------------------------------------------------------------------------


def from_record(record: Mapping[str, Any]) -> OriginalRow:
    """A row as PostgreSQL gives it: `timestamp` as a datetime, `channel_id` as bytes, `metadata` as text of jsonb.

    Raises:
        AuditError: a column does not hold what the original puts there; says which row.
    """
    return _row(record, _time_us(record["timestamp"]), record["channel_id"], _parsed(record["metadata"]))


def from_json(line: bytes) -> OriginalRow:
    """A row as `row_to_json` prints it. Raises as `from_record`."""
    record = _parsed(line)
    if not isinstance(record, dict):
        raise AuditError("not a JSON object")
    try:
        moment = datetime.fromisoformat(record["timestamp"])
        channel = record["channel_id"]
        if channel is not None and not _BYTEA.fullmatch(channel):
            raise AuditError(f"channel_id is not 16 bytes in hex behind \\x: {channel!r}")
        raw = None if channel is None else bytes.fromhex(channel[2:])
        return _row(record, _time_us(moment), raw, record["metadata"])
    except KeyError as error:
        raise AuditError(f"there is no column {error}") from None
    except (TypeError, ValueError) as error:
        raise AuditError(f"not a row of the original's audit log: {error}") from None


def _row(record: Mapping[str, Any], time_us: int, channel: bytes | None, metadata: object) -> OriginalRow:
    seq, kind = record["seq"], record["event_kind"]
    if type(seq) is not int or type(kind) is not int:
        raise AuditError("seq and event_kind are whole numbers")
    texts = [record[name] for name in ("event_id", "actor_pubkey", "action")]
    if not all(type(text) is str for text in texts):
        raise AuditError(f"seq {seq}: event_id, actor_pubkey and action are texts")
    if channel is not None and len(channel) != 16:
        raise AuditError(f"seq {seq}: a channel_id has 16 bytes")
    event_id, actor, action = texts
    prev_hash, digest = _digest(record, "prev_hash"), _digest(record, "hash")
    try:
        text = canonical_json(metadata)
    except RecursionError:
        raise AuditError(f"seq {seq}: metadata is nested too deeply") from None
    return OriginalRow(seq, time_us, event_id, kind, actor, action, channel, text, prev_hash, digest)


def _time_us(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise AuditError(f"a time without its zone: {moment}")
    time_us = (moment - _EPOCH) // _MICROSECOND
    if time_us < 0:
        raise AuditError(f"a time before 1970: {moment}")
    return time_us


def _digest(record: Mapping[str, Any], name: str) -> bytes:
    text = record[name]
    if not isinstance(text, str) or not _HASH.fullmatch(text):
        raise AuditError(f"seq {record['seq']}: {name} is not 64 lowercase hex digits")
    return bytes.fromhex(text)


def _uuid(raw: bytes) -> str:
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AuditError(f"not JSON: {error}") from None


# -- JSON as Rust prints it --------------------------------------------------------------------------------------------


def canonical_json(value: object) -> str:
    """Keys sorted by their bytes, no spaces, non-ASCII as it is; numbers as serde_json and ryu print them."""
    match value:
        case dict():
            # Code points and bytes of UTF-8 have the same order.
            members = (f"{_string(key)}:{canonical_json(value[key])}" for key in sorted(value))
            return "{" + ",".join(members) + "}"
        case list():
            return "[" + ",".join(map(canonical_json, value)) + "]"
        case str():
            return _string(value)
        case bool() | None:
            return json.dumps(value)
        case int() if -(2**63) <= value < 2**64:
            return str(value)
        case int() | float():
            return _float(value)
    raise AssertionError(f"not JSON: {value!r}")


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _float(number: float) -> str:
    """The shortest digits, which both languages find alike, laid out as ryu does."""
    try:
        sign, digits, exponent = Decimal(repr(float(number))).normalize().as_tuple()
    except OverflowError:
        exponent = "F"
    if not isinstance(exponent, int):
        raise AuditError("metadata has a number that no double can hold")
    text, minus = "".join(map(str, digits)), "-" * sign
    point = len(text) + exponent
    if text == "0":
        return f"{minus}0.0"
    if 0 < point <= 16:
        whole = text[:point].ljust(point, "0")
        return f"{minus}{whole}.{text[point:] or '0'}"
    if -5 < point <= 0:
        return f"{minus}0.{'0' * -point}{text}"
    return f"{minus}{text[0]}{'.' * (len(text) > 1)}{text[1:]}e{point - 1}"
