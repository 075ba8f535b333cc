"""Walking the chain: rows in, faults out.

`Walk` is fed rows in the order of `seq` and keeps only the last one, so a chain of any length takes the same memory.
After a fault it goes on from the row as it is stored: one edited row is one fault, not one for every row behind it.

A chain that was hashed again, or cut at its end, is intact in itself: `covering.py` holds it against what was signed.

Pure: where the rows come from is `verify.py`'s business, or a test's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from relay.audit.chain import GENESIS, HASH_BYTES, VERSION, VERSION_ORIGINAL, ChainedEntry, Head, recompute
from relay.errors import AuditError

# A log replaced as a whole must not fill the memory with its faults; they are still counted.
FAULTS_KEPT_MAX = 100

_NANOSECONDS = re.compile(r"\.\d{9}")

# What hashing a row can raise. The others than ours: columns that were given another type hold anything.
_UNFIT = (AuditError, AttributeError, OverflowError, TypeError, ValueError)


class FaultKind(StrEnum):
    """What is wrong with a row, with the place where one should be, or with what was signed about them. The value is
    what `relay audit verify --json` says: never change one."""

    BAD_GENESIS = "bad genesis"  # row 1 does not stand on 32 zero bytes
    BROKEN_LINK = "broken link"  # prev_hash is not the hash of the row before
    GAP = "gap"  # rows are missing, from `seq` on
    DUPLICATE = "duplicate"  # two rows in one place
    HASH_MISMATCH = "hash mismatch"  # a field was changed, or the hash itself
    UNKNOWN_VERSION = "unknown version"  # the hash was made in a way this version does not know
    MALFORMED = "malformed row"  # not the form that its version has
    REWRITTEN = "rewritten"  # from `seq` on the entries are not those that a checkpoint was signed for
    TRUNCATED = "truncated"  # from `seq` on a checkpoint was signed for entries that are not there
    CONTRADICTION = "contradiction"  # two checkpoints, both signed, that cannot both be true
    BAD_CHECKPOINT = "bad checkpoint"  # not signed by the relay, or not what its row says
    TREE_NODE = "tree node"  # a stored inner node of the tree, from the leaf `seq` on, is not what the entries give
    ANOTHER_LOG = "another log"  # what was to be compared with tells of another log only
    LOSS_NOT_RECORDED = "loss not recorded"  # the log's name in checkpoints and its accepted losses do not fit


@dataclass(frozen=True, slots=True)
class Fault:
    kind: FaultKind
    seq: int
    detail: str

    def __str__(self) -> str:
        # What cannot be read has no place in the log.
        return f"{self.kind} at seq {self.seq}: {self.detail}" if self.seq else f"{self.kind}: {self.detail}"


class Faults:
    """All faults counted, the first ones kept."""

    def __init__(self) -> None:
        self.kept: list[Fault] = []
        self.total = 0

    def note(self, kind: FaultKind, seq: int, detail: str) -> None:
        self.total += 1
        if len(self.kept) < FAULTS_KEPT_MAX:
            self.kept.append(Fault(kind, seq, detail))


class Walk:
    """Checks rows one after another, starting behind `anchor`; `linked` is False where its hash is not known.

    `imported` counts the rows of version 1, `nanoseconds` those of them whose hash needs digits of time that the
    original's own table does not keep.
    """

    def __init__(self, anchor: Head = GENESIS, *, linked: bool = True, faults: Faults | None = None) -> None:
        self.head = anchor
        self._linked = linked
        self._faults = Faults() if faults is None else faults
        self.rows = 0
        self.imported = 0
        self.nanoseconds = 0
        self._version = 0

    @property
    def faults(self) -> list[Fault]:
        return self._faults.kept

    @property
    def faults_total(self) -> int:
        return self._faults.total

    def feed(self, rows: Iterable[ChainedEntry]) -> None:
        for row in rows:
            self._check(row)
            self.rows += 1

    def missing(self, first: int, last: int) -> None:
        """Note that the rows `first` to `last` are not there."""
        assert first <= last
        self._note(FaultKind.GAP, first, f"{last - first + 1} missing, seq {first} to {last}")

    def outside(self, first: int, count: int) -> None:
        """Note rows in places that no entry ever had, which `feed` does not get."""
        self._note(FaultKind.MALFORMED, first, f"{count} rows stand before the first place of the log")

    def _check(self, row: ChainedEntry) -> None:
        if len(row.hash) != HASH_BYTES or len(row.prev_hash) != HASH_BYTES:
            self._note(FaultKind.MALFORMED, row.seq, "a hash does not have 32 bytes")
            self.head = Head(max(row.seq, self.head.seq), bytes(HASH_BYTES))
            return
        # A wrong place explains a wrong link: one fault for one cause.
        if self._check_place(row):
            self._check_link(row)
        self._check_hash(row)
        self._linked = True
        self.head = Head(max(row.seq, self.head.seq), row.hash)

    def _check_place(self, row: ChainedEntry) -> bool:
        if row.seq <= self.head.seq:
            self._note(FaultKind.DUPLICATE, row.seq, "a second row in the same place")
            return False
        if row.seq > self.head.seq + 1:
            self.missing(self.head.seq + 1, row.seq - 1)
            return False
        return True

    def _check_link(self, row: ChainedEntry) -> None:
        if row.prev_hash == self.head.hash or not self._linked:
            return
        expected, found = self.head.hash.hex(), row.prev_hash.hex()
        if row.seq == 1:
            self._note(FaultKind.BAD_GENESIS, 1, f"stands on {found} instead of zeros")
        else:
            self._note(FaultKind.BROKEN_LINK, row.seq, f"follows {found}, but seq {row.seq - 1} is {expected}")

    def _check_hash(self, row: ChainedEntry) -> None:
        if row.version not in (VERSION_ORIGINAL, VERSION):
            self._note(FaultKind.UNKNOWN_VERSION, row.seq, f"version {row.version}")
            return
        if row.version < self._version:
            self._note(FaultKind.MALFORMED, row.seq, "an imported row stands behind one of ours")
        self._version = max(self._version, row.version)
        if row.version == VERSION_ORIGINAL:
            self.imported += 1
            self.nanoseconds += _NANOSECONDS.search(row.v1_time or "") is not None
        try:
            computed = recompute(row)
        except _UNFIT as error:
            self._note(FaultKind.MALFORMED, row.seq, str(error))
            return
        if computed != row.hash:
            self._note(FaultKind.HASH_MISMATCH, row.seq, f"is {row.hash.hex()}, its fields give {computed.hex()}")

    def _note(self, kind: FaultKind, seq: int, detail: str) -> None:
        self._faults.note(kind, seq, detail)
