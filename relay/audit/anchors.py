"""Checkpoints from wherever there are some, gathered to hold the log against: the database, the file beside it, events,
and what somebody else has kept.

In: signed notes with the name of their source. Out: `Mark`s by size for `covering.py`, what cannot be believed as
faults, and the notes themselves where they are evidence.

Nothing is believed for where it comes from: a checkpoint counts if the relay's key has signed it, and then it counts in
a public file as much as in the database. A log that runs for years has a million of them, so they wait in a temporary
database on the disk and not in memory (SQLite removes it by itself).

Not done here: fetching (relay/cli/audit_sources.py), and the entries (verify.py).
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from relay.audit import note
from relay.audit.covering import Mark
from relay.audit.note import Checkpoint, NoteError
from relay.audit.walk import FaultKind, Faults

DATABASE = "database"
EVENTS = "published events"

WARNINGS_KEPT_MAX = 100
_EVIDENCE_KEPT_MAX = 20
_WITNESS = re.compile(r"relay-witness/([0-9a-f]{64})")

_SCHEMA = """
CREATE TABLE checkpoint (
    id INTEGER PRIMARY KEY, generation INT, size INT, root BLOB, time_us INT, note TEXT, agreed INT DEFAULT 0,
    UNIQUE (generation, size, root)
);
CREATE INDEX by_size ON checkpoint (size);
CREATE TABLE seen (id INT, source TEXT, PRIMARY KEY (id, source)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Cosigned:
    """Who else has signed, and when (Unix seconds). `trusted` if the witness is one that the caller named."""

    witness: str
    time: int
    trusted: bool


@dataclass(frozen=True, slots=True)
class Anchor:
    """A checkpoint that the relay has signed, and every source that has it."""

    checkpoint: Checkpoint
    sources: tuple[str, ...]
    time_us: int | None
    cosigned: tuple[Cosigned, ...]


@dataclass(frozen=True, slots=True)
class SourceSeen:
    """What one source gave: how many checkpoints of this log, and the size of the largest."""

    name: str
    checkpoints: int
    size: int


class Anchors:
    """Checkpoints of the log of the relay with key `pubkey` (hex). `generation` is the one that the database says the
    log is in; None where no database was asked. `witnesses` are public keys whose cosignatures the caller trusts."""

    def __init__(self, pubkey: str, *, generation: int | None = None, witnesses: Iterable[str] = ()) -> None:
        self.pubkey = pubkey
        self.generation = generation
        self.faults = Faults()
        self.warnings: list[str] = []
        self.evidence: list[tuple[str, ...]] = []
        self._witnesses = frozenset(witnesses)
        self._origin = re.compile(re.escape(note.origin_of(pubkey)) + r"(?:/([1-9][0-9]{0,8}))?")
        self._foreign: dict[str, str] = {}
        self._db = sqlite3.connect("")
        self._db.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    # -- in ----------------------------------------------------------------------------------------------------------

    def add_note(self, source: str, text: str, *, time_us: int | None = None, ours: bool = False) -> None:
        """A note as text. `ours`: the source is the relay's own, so that anything else in it is a fault."""
        try:
            checkpoint = note.parse(text)
        except NoteError as error:
            self.bad(source, str(error))
            return
        self.add(source, checkpoint, time_us=time_us, ours=ours)

    def add(self, source: str, checkpoint: Checkpoint, *, time_us: int | None = None, ours: bool = False) -> None:
        """A checkpoint. It is kept if the relay's key has signed it, under one of the names of its log."""
        match = self._origin.fullmatch(checkpoint.origin)
        if match is None or match[1] == "1":
            self._foreign.setdefault(source, checkpoint.origin)
            if ours:
                self.bad(source, f"is of {checkpoint.origin}, another log", checkpoint.size)
            return
        if not note.is_signed_by(checkpoint, self.pubkey):
            self.bad(source, "is not signed by the relay's key", checkpoint.size)
            return
        self._check_cosignatures(source, checkpoint)
        self._keep(source, checkpoint, int(match[1] or 1), time_us)

    def bad(self, source: str, what: str, size: int = 0) -> None:
        """Note something in place of a checkpoint."""
        name = f"the checkpoint of {size} entries in {source}" if size else f"{source}, a checkpoint:"
        self.faults.note(FaultKind.BAD_CHECKPOINT, size, f"{name} {what}")

    def warn(self, text: str) -> None:
        """Note what is worth knowing and no fault."""
        if len(self.warnings) < WARNINGS_KEPT_MAX:
            self.warnings.append(text)

    def demand(self, source: str) -> bool:
        """Whether a source that somebody named has given any checkpoint at all; one of another log only is a fault."""
        if any(seen.name == source for seen in self.sources()):
            return True
        foreign = self._foreign.get(source)
        if foreign is not None:
            detail = f"{source} tells of {foreign}, and this is {note.origin_of(self.pubkey)}"
            self.faults.note(FaultKind.ANOTHER_LOG, 0, detail)
        return foreign is not None or self.faults.total > 0

    def _keep(self, source: str, checkpoint: Checkpoint, generation: int, time_us: int | None) -> None:
        where = (generation, checkpoint.size, checkpoint.root)
        found = self._db.execute(
            "SELECT id, note FROM checkpoint WHERE generation = ? AND size = ? AND root = ?", where
        ).fetchone()
        if found is None:
            row = self._db.execute(
                "INSERT INTO checkpoint (generation, size, root, time_us, note) VALUES (?, ?, ?, ?, ?)",
                (*where, time_us, checkpoint.note),
            )
            key = row.lastrowid
        else:
            key, known = found[0], note.parse(found[1])
            if known.text == checkpoint.text:
                merged = known.with_lines(each.line for each in checkpoint.signatures)
                self._db.execute(
                    "UPDATE checkpoint SET note = ?, time_us = coalesce(time_us, ?) WHERE id = ?",
                    (merged.note, time_us, key),
                )
        self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, source))

    def _check_cosignatures(self, source: str, checkpoint: Checkpoint) -> None:
        for name, pubkey in _witnesses(checkpoint):
            if note.cosigned_at(checkpoint, name, pubkey) is None:
                self.bad(source, f"has a cosignature of {name} that does not hold", checkpoint.size)

    # -- out ---------------------------------------------------------------------------------------------------------

    @property
    def signed_generation(self) -> int:
        """The newest name of the log that the relay's key has signed under."""
        return int(self._db.execute("SELECT coalesce(max(generation), 1) FROM checkpoint").fetchone()[0])

    def marks(self, after: int, upto: int) -> list[Mark]:
        """Those with `after` < size ≤ `upto`, by size."""
        current = self.signed_generation
        rows = self._db.execute(
            "SELECT size, root, id, generation FROM checkpoint WHERE size > ? AND size <= ? ORDER BY size, id",
            (after, upto),
        )
        return [Mark(size, root, key, generation < current) for size, root, key, generation in rows]

    def next_mark(self, after: int) -> Mark | None:
        """The smallest of the log's present name that covers more than `after` entries."""
        row = self._db.execute(
            "SELECT size, root, id FROM checkpoint WHERE size > ? AND generation = ? ORDER BY size LIMIT 1",
            (after, self.signed_generation),
        ).fetchone()
        return None if row is None else Mark(*row)

    def largest(self, *, source: str | None = None) -> Mark | None:
        """The one of the log's present name that covers most, of all or as `source` has them."""
        row = self._db.execute(
            "SELECT size, root, id FROM checkpoint WHERE generation = ? AND (? IS NULL OR "
            "EXISTS (SELECT 1 FROM seen WHERE seen.id = checkpoint.id AND source = ?)) ORDER BY size DESC LIMIT 1",
            (self.signed_generation, source, source),
        ).fetchone()
        return None if row is None else Mark(*row)

    def has_rival(self, mark: Mark) -> bool:
        """Whether another one was signed for the same size, under the same name."""
        row = self._db.execute(
            "SELECT count(*) FROM checkpoint a JOIN checkpoint b USING (generation, size) WHERE a.id = ?", (mark.key,)
        ).fetchone()
        return int(row[0]) > 1

    def note_agreed(self, marks: Iterable[Mark]) -> None:
        """Remember that the entries are what these say."""
        self._db.executemany("UPDATE checkpoint SET agreed = 1 WHERE id = ?", [(mark.key,) for mark in marks])

    def get(self, key: int) -> Anchor:
        """The checkpoint of a mark."""
        text, time_us = self._db.execute("SELECT note, time_us FROM checkpoint WHERE id = ?", (key,)).fetchone()
        sources = self._db.execute("SELECT source FROM seen WHERE id = ? ORDER BY source", (key,)).fetchall()
        checkpoint = note.parse(text)
        return Anchor(checkpoint, tuple(name for (name,) in sources), time_us, tuple(self._cosigned(checkpoint)))

    def newest_agreed(self) -> list[Anchor]:
        """For each source the checkpoint that covers most of what was walked and agrees; the largest first."""
        rows = self._db.execute(
            "SELECT DISTINCT id FROM (SELECT id, row_number() OVER (PARTITION BY source ORDER BY size DESC) AS place"
            " FROM checkpoint JOIN seen USING (id) WHERE agreed) WHERE place = 1"
        ).fetchall()
        return sorted((self.get(key) for (key,) in rows), key=lambda each: -each.checkpoint.size)

    def sources(self) -> list[SourceSeen]:
        """What each source gave."""
        rows = self._db.execute(
            "SELECT source, count(*), max(size) FROM seen JOIN checkpoint USING (id) GROUP BY source ORDER BY source"
        )
        return [SourceSeen(*row) for row in rows]

    def compare_with_each_other(self) -> None:
        """Note what the checkpoints say about each other, whatever the entries are: two signed for one size, names that
        do not fit the accepted losses (faults), and those that one source has and the database has not (warnings)."""
        for one, two in self._db.execute(
            "SELECT a.id, b.id FROM checkpoint a JOIN checkpoint b USING (generation, size)"
            " WHERE a.id < b.id ORDER BY size LIMIT 100"
        ).fetchall():
            self.contradiction(one, two)
        signed = self.signed_generation
        if self.generation is not None and signed != self.generation and (self.generation > 1 or signed > 1):
            self.faults.note(
                FaultKind.LOSS_NOT_RECORDED,
                0,
                f"the database tells of {self.generation - 1} accepted losses, the relay's key has signed for "
                f"{signed - 1}",
            )
        if any(seen.name == DATABASE for seen in self.sources()):
            for source, count, size in self._db.execute(
                "SELECT source, count(*), max(size) FROM seen JOIN checkpoint USING (id) WHERE id NOT IN "
                "(SELECT id FROM seen WHERE source = ?) GROUP BY source ORDER BY source",
                (DATABASE,),
            ).fetchall():
                self.warn(f"{count} checkpoints of {source} are not in the database, the largest of {size} entries")

    def contradiction(self, one: int, two: int) -> None:
        """Note that two signed checkpoints cannot both be true, and keep both as evidence."""
        a, b = self.get(one), self.get(two)
        self.faults.note(
            FaultKind.CONTRADICTION,
            a.checkpoint.size,
            f"the relay's key has signed two histories: {_named(a)} and {_named(b)}",
        )
        if len(self.evidence) < _EVIDENCE_KEPT_MAX:
            self.evidence.append((a.checkpoint.note, b.checkpoint.note))

    def _cosigned(self, checkpoint: Checkpoint) -> Iterator[Cosigned]:
        for name, pubkey in _witnesses(checkpoint):
            time = note.cosigned_at(checkpoint, name, pubkey)
            if time is not None:
                yield Cosigned(name, time, pubkey in self._witnesses)


def _witnesses(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Names of witnesses among the signatures, and the key that each name says."""
    names = dict.fromkeys(each.name for each in checkpoint.signatures)
    return [(name, match[1]) for name in names if (match := _WITNESS.fullmatch(name))]


def _named(anchor: Anchor) -> str:
    head = anchor.checkpoint
    return f"{head.size} entries with root {head.root.hex()} ({', '.join(anchor.sources)})"
