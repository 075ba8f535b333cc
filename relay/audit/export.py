"""The audit log as a file that can be verified without a database: JSON lines, and a reader for them.

    {"format":"relay-audit-export","version":1,"relay":<hex>,"origin":<text>,"first":1,"last":9,"head_seq":9, ...}
    {"seq":1,"uuid":...,"time_us":...,"action":...,"actor":...,"event_id":...,"kind":...,"channel_id":...,
     "metadata":<JSON text, as a string>,"version":2,"prev_hash":<hex>,"hash":<hex>,"v1_time":null}     one line a row
    {"end":true,"rows":9,"checkpoint":<signed note>}

The header's `frontier` has the roots of the complete subtrees before `first` (relay/audit/tree.py), in hex: with it,
the checkpoint of the last line can be compared with a file that does not begin at seq 1. All of it is one snapshot.

Every line has one spelling, and the reader takes no other: what a person sees in the file is what is verified. Whether
the rows are true is not judged here: they are written as they stand, gaps included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson
import trio

from relay.asyncpg_trio import Connection
from relay.audit import checkpoints, log, tree_store
from relay.audit.chain import HASH_BYTES, ChainedEntry
from relay.audit.entry import Entry
from relay.errors import AuditError
from relay.store import relay_identity

FORMAT = "relay-audit-export"
FORMAT_VERSION = 1
# The longest metadata that an entry of ours may have is 64 KiB; an imported one may be longer. A file without line
# ends must not be read into the memory as a whole.
LINE_BYTES_MAX = 16 * 1024 * 1024

_WINDOW_ROWS = 2_000
_HEX = re.compile(r"(?:[0-9a-f]{2})*")

# The newest that the rows of the file (and the subtrees before them) can be compared with.
_NEWEST = """
SELECT note, (SELECT coalesce(string_agg(line || E'\n', '' ORDER BY witness), '') FROM audit_cosignatures AS cosigned
              WHERE cosigned.origin = checkpoint.origin AND cosigned.size = checkpoint.size) AS lines
FROM audit_checkpoints AS checkpoint
WHERE origin = $1 AND size >= $2 AND size <= $3 ORDER BY size DESC LIMIT 1
"""

T = TypeVar("T")

# Rows done, rows to do.
Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Header:
    """The first line. `relay` is the public key of the relay, None where none ever started on the database, and
    `origin` then too. `frontier` is None where the rows before `first` are damaged. `head_*` is the whole log's end."""

    relay: str | None
    origin: str | None
    first: int
    last: int
    head_seq: int
    head_hash: str
    frontier: tuple[bytes, ...] | None


@dataclass(frozen=True, slots=True)
class Footer:
    """The last line. `checkpoint` is a signed note of a size from `first` - 1 to `last`, None where there is none."""

    rows: int
    checkpoint: str | None


# -- writing ---------------------------------------------------------------------------------------------------------


async def write(
    con: Connection, out: BinaryIO, first: int = 1, last: int | None = None, progress: Progress | None = None
) -> Footer:
    """Write the rows `first` to `last` (the head, if it is None or lower) with header and footer.

    Constant memory. `out` may block: for commands, not for a process that serves.

    Raises:
        AuditError: not a range of the log.
    Cancellation: at any time; the file is then without its last line, and the reader says so.
    """
    if first < 1 or (last is not None and last < first):
        raise AuditError(f"not a range of the log: {first} to {last}")
    async with con.transaction(isolation="repeatable_read", readonly=True):
        header = await _header(con, first, last)
        out.write(_header_line(header))
        rows, after = 0, first - 1
        while after < header.last:
            window = await log.read_rows(con, after, header.last, _WINDOW_ROWS)
            if not window:
                break
            out.writelines(map(row_line, window))
            rows, after = rows + len(window), window[-1].seq
            if progress is not None:
                progress(after - first + 1, header.last - first + 1)
            await trio.lowlevel.checkpoint()
        footer = Footer(rows, await _newest_note(con, header))
        out.write(_footer_line(footer))
    return footer


async def _header(con: Connection, first: int, last: int | None) -> Header:
    head_seq, head_hash = await log.read_end(con)
    pubkey = await relay_identity.get(con)
    # As log.read_end: the range is what is there, whatever it is; an empty one ends before it begins.
    end = max(first - 1, head_seq if last is None else min(last, head_seq))
    origin = None if pubkey is None else await checkpoints.origin(con, pubkey)
    return Header(pubkey, origin, first, end, head_seq, head_hash.hex(), await _frontier(con, first - 1))


async def _frontier(con: Connection, size: int) -> tuple[bytes, ...] | None:
    try:
        return (await tree_store.frontier_at(con, size)).subtrees
    except AuditError:
        return None


async def _newest_note(con: Connection, header: Header) -> str | None:
    if header.origin is None:
        return None
    row = await con.fetchrow(_NEWEST, header.origin, header.first - 1, header.last)
    return None if row is None else row["note"] + row["lines"]


def row_line(row: ChainedEntry) -> bytes:
    """One row as it stands in the file, line end included."""
    entry = row.entry
    fields = {
        "seq": row.seq,
        "uuid": entry.uuid,
        "time_us": entry.time_us,
        "action": entry.action,
        "actor": entry.actor,
        "event_id": entry.event_id,
        "kind": entry.kind,
        "channel_id": entry.channel_id,
        "metadata": entry.metadata,
        "version": row.version,
        "prev_hash": row.prev_hash.hex(),
        "hash": row.hash.hex(),
        "v1_time": row.v1_time,
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _header_line(header: Header) -> bytes:
    frontier = None if header.frontier is None else [node.hex() for node in header.frontier]
    fields = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(header), "frontier": frontier}
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _footer_line(footer: Footer) -> bytes:
    return orjson.dumps({"end": True, **asdict(footer)}, option=orjson.OPT_APPEND_NEWLINE)


# -- reading ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> Iterator[ChainedEntry]:
    """The rows of an export, in its order. Constant memory.

    Raises:
        AuditError: it is not a whole export; says in which line.
        OSError: it cannot be read.
    """
    with opened(path) as reader:
        yield from reader


@contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """An export's header, rows and footer. Raises as `read`."""
    with path.open("rb") as file:
        yield Reader(file)


class Reader:
    """Reads an export once, from the beginning: `header` is there at once, `footer` after the last row."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._line = 0
        line, fields = self._next()
        self.header = self._parsed(line, fields, _read_header, _header_line)
        self.footer: Footer | None = None

    def __iter__(self) -> Iterator[ChainedEntry]:
        rows = 0
        while self.footer is None:
            line, fields = self._next()
            if "end" not in fields:
                yield self._parsed(line, fields, _read_row, row_line)
                rows += 1
                continue
            footer = self._parsed(line, fields, _read_footer, _footer_line)
            if footer.rows != rows:
                raise AuditError(f"line {self._line}: there should be {footer.rows} rows, and there are {rows}")
            if self._file.read(1):
                raise AuditError(f"line {self._line + 1}: something stands behind the last line")
            self.footer = footer

    def _next(self) -> tuple[bytes, dict[str, Any]]:
        self._line += 1
        line = self._file.readline(LINE_BYTES_MAX + 1)
        if not line.endswith(b"\n"):
            what = "too long" if len(line) > LINE_BYTES_MAX else "not there, or not whole: the file was cut off"
            raise AuditError(f"line {self._line}: {what}")
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise AuditError(f"line {self._line}: not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise AuditError(f"line {self._line}: not a JSON object")
        return line, fields

    def _parsed(
        self, line: bytes, fields: dict[str, Any], make: Callable[[dict[str, Any]], T], spell: Callable[[T], bytes]
    ) -> T:
        try:
            found = make(fields)
        except AuditError as error:
            raise AuditError(f"line {self._line}: {error}") from None
        # Repeated keys, keys that mean nothing, other escapes: another program could read another thing from them.
        if spell(found) != line:
            raise AuditError(f"line {self._line}: not spelled as an export spells it")
        return found


def _read_header(fields: dict[str, Any]) -> Header:
    if fields.get("format") != FORMAT:
        raise AuditError("not an export of the audit log of a relay")
    if fields.get("version") != FORMAT_VERSION:
        raise AuditError(f"version {fields.get('version')} of the form is unknown")
    frontier = _optional(fields, "frontier", list)
    header = Header(
        _optional(fields, "relay", str),
        _optional(fields, "origin", str),
        _required(fields, "first", int),
        _required(fields, "last", int),
        _required(fields, "head_seq", int),
        _required(fields, "head_hash", str),
        None if frontier is None else tuple(_hex(node) for node in frontier),
    )
    before = header.first - 1
    if before < 0 or header.last < before:
        raise AuditError("not a range of a log")
    if header.frontier is not None and [len(node) for node in header.frontier] != [HASH_BYTES] * before.bit_count():
        raise AuditError(f"the frontier is not one of {before} entries")
    return header


def _read_row(fields: dict[str, Any]) -> ChainedEntry:
    entry = Entry(
        _required(fields, "uuid", str),
        _required(fields, "time_us", int),
        _required(fields, "action", str),
        _optional(fields, "actor", str),
        _optional(fields, "event_id", str),
        _optional(fields, "kind", int),
        _optional(fields, "channel_id", str),
        _required(fields, "metadata", str),
    )
    return ChainedEntry(
        _required(fields, "seq", int),
        entry,
        _required(fields, "version", int),
        _hex(fields.get("prev_hash")),
        _hex(fields.get("hash")),
        _optional(fields, "v1_time", str),
    )


def _read_footer(fields: dict[str, Any]) -> Footer:
    return Footer(_required(fields, "rows", int), _optional(fields, "checkpoint", str))


def _required(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if type(value) is not kind:  # not isinstance: true is no number here
        raise AuditError(f"{name} is missing or has the wrong type")
    return value


def _optional(fields: dict[str, Any], name: str, kind: type) -> Any:
    return None if fields.get(name) is None else _required(fields, name, kind)


def _hex(value: object) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise AuditError("a hash is not in lowercase hex")
    return bytes.fromhex(value)
