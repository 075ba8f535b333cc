"""The spool as a file: audit entries that the database could not take, one JSON object a line.

In: entries. Out: the same entries, after whatever happened in between: a crash in mid-write, a full disk, a scribble.
Who moves them into the database is `relay.audit.spool`. Everything here is synchronous and may wait for a disk.

    {"check":"<SHA-256 of the entry's bytes, hex>","entry":{"action":…,"uuid":…}}

Rules
-----
1. `append` returns when its records are on the disk, or raises, and then takes back what it had written.
2. So a last line without its end was never acknowledged: it is dropped, and is no damage. Any other line that does not
   fit its check is damage: something came between us and our disk.
3. Several processes may share a file (worker processes, commands): each holds a lock (flock) on the file while it
   writes. To be replayed the file is renamed first, so that a replay that waits for the database keeps nobody out; the
   lock moves with it, and tells that somebody is at it.

The check finds accidents, not forgers: whoever may write here could have the relay chain an entry that never was. It is
as private as the relay's key, and lies beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from relay.audit.entry import INT32_MAX, INT64_MAX, KIND_AUTH, Entry, is_canonical_uuid
from relay.errors import AuditError

# Some 40,000 entries: logins and counted refusals of hours. A disk that fills up takes more than the audit with it.
BYTES_MAX = 16 * 1024 * 1024
LOCK_POLL_SECONDS = 0.005

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_PREFIX, _MIDDLE, _END = b'{"check":"', b'","entry":', b"}\n"
_CHECK_BYTES = 64
_FIELDS = frozenset(Entry.__dataclass_fields__)


class SpoolError(AuditError):
    """The spool could not do what was asked; what it had taken before, it still has."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds: its entries in their order, how many records are damaged, whether the last one is torn, and a
    digest of all its bytes."""

    entries: tuple[Entry, ...]
    damaged: int
    torn: bool
    digest: bytes


def encode(entries: Sequence[Entry]) -> bytes:
    """The records of `entries`, ready to be appended."""
    return b"".join(map(_record, entries))


def decode(data: bytes) -> Contents:
    """What the bytes of a file say. Never raises: what is not a record is counted."""
    lines = data.split(b"\n")
    last = lines.pop()
    found = [_entry(line) for line in lines]
    entries = tuple(entry for entry in found if entry is not None)
    return Contents(entries, len(found) - len(entries), bool(last), hashlib.sha256(data).digest())


def count(path: Path) -> int:
    """How many entries wait in the spool at `path`, those of a replay under way included. Takes no lock.

    Raises:
        OSError: it cannot be read; that it is not there is 0.
    """
    return sum(len(decode(_read_if_there(each)).entries) for each in (path, _aside(path)))


def append(path: Path, records: bytes, *, bytes_max: int = BYTES_MAX, wait_seconds: float = 1.0) -> None:
    """Write `records` behind what is there and wait for the disk. Makes the file (0600) and its directory.

    Raises:
        SpoolError: the file would be longer than `bytes_max`, or somebody else keeps it locked.
        OSError: the disk's own.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = _open_locked(path, _FLAGS | os.O_CREAT, wait_seconds)
    assert descriptor is not None, "it is made where it is not there"
    try:
        size = _without_torn_end(descriptor)
        if size + len(records) > bytes_max:
            raise SpoolError(f"the audit spool {path} is full ({size} bytes)")
        try:
            _write(descriptor, records)
            os.fsync(descriptor)
        except OSError:
            # Else a record that nobody acknowledged would stand before those of the next call.
            os.ftruncate(descriptor, size)
            raise
        if size == 0:
            sync_directory(path.parent)
    finally:
        os.close(descriptor)


class Aside:
    """A spool file that has been set aside to be replayed. While it is open, nobody else replays it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def read(self) -> Contents:
        """Raises OSError."""
        return decode(_read_all(self._descriptor))

    def remove(self) -> None:
        """To be called when the database has committed what was in it. Raises OSError."""
        _aside(self._path).unlink()
        sync_directory(self._path.parent)

    def keep_damaged(self, time_us: int) -> Path:
        """Instead of `remove`, where records could not be read: under a name of its own, for a human being."""
        kept = damaged_name(self._path, time_us)
        _aside(self._path).rename(kept)
        sync_directory(self._path.parent)
        return kept

    def close(self) -> None:
        """Gives up the lock; a file that was neither removed nor kept stays to be replayed."""
        os.close(self._descriptor)


def set_aside(path: Path, *, wait_seconds: float = 1.0) -> Aside | None:
    """The file to be replayed next, locked: one that an earlier replay did not finish, or the spool under its new name.
    None if there is nothing, or another process is replaying.

    Raises:
        SpoolError: somebody keeps the spool locked for too long.
        OSError: the disk's own.
    """
    aside = _aside(path)
    if not aside.exists() and not path.exists():
        return None  # the usual case, and it must not need a directory that can be written to
    try:
        descriptor = _open_locked(aside, _FLAGS, 0.0)
    except SpoolError:
        return None
    if descriptor is None:
        descriptor = _open_locked(path, _FLAGS, wait_seconds)
        if descriptor is None or not _rename_aside(path, aside, descriptor):
            return None
    return Aside(path, descriptor)


def _rename_aside(path: Path, aside: Path, descriptor: int) -> bool:
    """Whether it was done; if not, or by an error, the descriptor is closed and with it the lock is gone."""
    done = False
    try:
        if not aside.exists():  # else another process was faster
            # Only who has locked the file at `path` renames it, so nothing can come to be at `aside` meanwhile.
            path.rename(aside)
            sync_directory(path.parent)
            done = True
    finally:
        if not done:
            os.close(descriptor)
    return done


def damaged_name(path: Path, time_us: int) -> Path:
    return path.with_name(f"{path.name}.damaged-{time_us}")


def sync_directory(directory: Path) -> None:
    """Makes names durable: a new file is lost with its directory's entry, however well it was synced itself."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.replaying")


def _record(entry: Entry) -> bytes:
    body = orjson.dumps(asdict(entry), option=orjson.OPT_SORT_KEYS)
    return b"".join((_PREFIX, hashlib.sha256(body).hexdigest().encode(), _MIDDLE, body, _END))


def _entry(line: bytes) -> Entry | None:
    """The entry of one line without its line feed, None if it is not exactly what `_record` makes."""
    check, middle, body = line[len(_PREFIX) :].partition(_MIDDLE)
    body = body[:-1]
    if hashlib.sha256(body).hexdigest().encode() != check or line + b"\n" != _PREFIX + check + middle + body + _END:
        return None
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return Entry(**fields) if isinstance(fields, dict) and fields.keys() == _FIELDS and _fits(fields) else None


def _fits(fields: dict[str, Any]) -> bool:
    """Whether the database will take it: one record that it refuses would keep all the others out, for ever."""
    return (
        is_canonical_uuid(str(fields["uuid"]))
        and (fields["channel_id"] is None or is_canonical_uuid(str(fields["channel_id"])))
        and _is_integer(fields["time_us"], INT64_MAX)
        and (fields["kind"] is None or (_is_integer(fields["kind"], INT32_MAX) and fields["kind"] != KIND_AUTH))
        and all(_is_text(fields[name]) for name in ("action", "metadata"))
        and all(fields[name] is None or _is_text(fields[name]) for name in ("actor", "event_id"))
    )


def _is_integer(value: object, largest: int) -> bool:
    return type(value) is int and 0 <= value <= largest


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _open_locked(path: Path, flags: int, wait_seconds: float) -> int | None:
    """A locked descriptor of the file that is at `path` now; None if there is none and `flags` do not make one.

    Polls, since a thread that waits in flock itself could not be told to stop, and since the file may be renamed by
    whoever has the lock.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise SpoolError(f"the audit spool {path} is locked by another process") from None
            time.sleep(LOCK_POLL_SECONDS)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _without_torn_end(descriptor: int) -> int:
    """Cut off a last line that never got its end, and say how long the file is."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        size = _read_all(descriptor).rfind(b"\n") + 1
        os.ftruncate(descriptor, size)
    return size


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_all(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
