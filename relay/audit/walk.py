"""Walking the chain: rows in, faults out.

`Walk` is fed rows in the order of `seq` and keeps only the last one, so a chain of any length takes the same memory.
After a fault it goes on from the row as it is stored: one edited row is one fault, not one for every row behind it.

Pure: where the rows come from is `verify.py`'s business, or a test's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from relay.audit.chain import GENESIS, HASH_BYTES, ChainedEntry, Head, recompute
from relay.errors import AuditError

# A log replaced as a whole must not fill the memory with its faults; they are still counted.
FAULTS_KEPT_MAX = 100

# What hashing a row can raise. The others than ours: columns that were given another type hold anything.
_UNFIT = (AuditError, AttributeError, OverflowError, TypeError, ValueError)


class FaultKind(StrEnum):
    """What is wrong with a row, or with the place where one should be."""

    BAD_GENESIS = "bad genesis"  # row 1 does not stand on 32 zero bytes
    BROKEN_LINK = "broken link"  # prev_hash is not the hash of the row before
    GAP = "gap"  # rows are missing, from `seq` on
    DUPLICATE = "duplicate"  # two rows in one place
    HASH_MISMATCH = "hash mismatch"  # a field was changed, or the hash itself
    UNKNOWN_VERSION = "unknown version"  # the hash was made in a way this version does not know
    MALFORMED = "malformed row"  # not the form that its version has


@dataclass(frozen=True, slots=True)
class Fault:
    kind: FaultKind
    seq: int
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} at seq {self.seq}: {self.detail}"


class Walk:
    """Checks rows one after another, starting behind `anchor`; `linked` is False where its hash is not known."""

    def __init__(self, anchor: Head = GENESIS, *, linked: bool = True) -> None:
        self.head = anchor
        self._linked = linked
        self.rows = 0
        self.faults: list[Fault] = []
        self.faults_total = 0
        self._version = 0

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
        if row.version not in (1, 2):
            self._note(FaultKind.UNKNOWN_VERSION, row.seq, f"version {row.version}")
            return
        if row.version < self._version:
            self._note(FaultKind.MALFORMED, row.seq, "an imported row stands behind one of ours")
        self._version = max(self._version, row.version)
        try:
            computed = recompute(row)
        except _UNFIT as error:
            self._note(FaultKind.MALFORMED, row.seq, str(error))
            return
        if computed != row.hash:
            self._note(FaultKind.HASH_MISMATCH, row.seq, f"is {row.hash.hex()}, its fields give {computed.hex()}")

    def _note(self, kind: FaultKind, seq: int, detail: str) -> None:
        self.faults_total += 1
        if len(self.faults) < FAULTS_KEPT_MAX:
            self.faults.append(Fault(kind, seq, detail))
