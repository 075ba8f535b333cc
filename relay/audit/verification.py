"""One verification: windows of rows in, a report out, wherever the rows come from.

The chain (`walk.py`) and what was signed about it (`covering.py`, `anchors.py`) see the same rows in the same order;
what each finds is put together here. Memory is constant: a window, and what those three keep.

Not done here: reading rows (`verify.py` from a database, `verify_export.py` from a file).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.audit import note
from relay.audit.anchors import DATABASE, Anchors
from relay.audit.chain import ChainedEntry, Head
from relay.audit.covering import Conclusion, Covering, Mark, Nodes
from relay.audit.report import CheckpointReport, VerifyReport
from relay.audit.tree import Frontier
from relay.audit.walk import FAULTS_KEPT_MAX, FaultKind, Faults, Walk


@dataclass(frozen=True, slots=True)
class Start:
    """Where a walk begins: the row before (`linked` if its hash is known, `missing` if it is not there), what that is
    worth as an anchor, and the right edge of the tree over all rows before (None where it is not known)."""

    head: Head
    anchor: str
    linked: bool = True
    missing: bool = False
    frontier: Frontier | None = None


class Verification:
    """Rows from `start` on; without `anchors` only the chain is looked at."""

    def __init__(self, start: Start, anchors: Anchors | None) -> None:
        self.faults = Faults()
        self.walk = Walk(start.head, linked=start.linked, faults=self.faults)
        self._start = start
        self._anchors = anchors
        self._first = start.head.seq + 1
        self._covering: Covering | None = None
        if anchors is not None:
            in_database = anchors.largest(source=DATABASE)
            stored = 0 if in_database is None else in_database.size
            self._covering = Covering(start.frontier, self.faults, stored_size=stored)
            # A checkpoint of exactly the entries before the range vouches for the tree that it begins with.
            self._feed([], self._first - 2, self._first - 1, None)

    def window(self, rows: Sequence[ChainedEntry], after: int, upto: int, nodes: Nodes | None = None) -> None:
        """The rows that there are with `after` < seq ≤ `upto`, and the stored nodes that they complete."""
        self.walk.feed(rows)
        if self._covering is not None:
            self._feed([(row.seq, row.hash) for row in rows], after, upto, nodes)

    def beyond(self, last: int) -> Mark | None:
        """The next checkpoint behind the range, where none covers its end: rows up to there would bind it."""
        if self._anchors is None or self._covering is None or self._covering.size != last:
            return None
        agreed = self._covering.agreed_last
        return None if agreed is not None and agreed.size == last else self._anchors.next_mark(last)

    def hashes(self, rows: Sequence[tuple[int, bytes]], mark: Mark) -> None:
        """Rows behind the range as (seq, hash): not walked, only covered by `mark`."""
        assert self._anchors is not None
        assert self._covering is not None
        reached = bool(rows) and rows[-1][0] >= mark.size
        self._anchors.note_agreed(self._covering.feed(rows, [mark] if reached else []))

    def report(
        self, *, first: int, last: int, head_seq: int, head_hash: bytes, outbox_rows: int, head_is_end: bool = True
    ) -> VerifyReport:
        """Everything that was found. `head_is_end`: no more rows exist than up to `head_seq`, so that a checkpoint of
        more entries tells of a cut."""
        checkpoints = None
        anchors = self._anchors
        if anchors is not None:
            checkpoints = self._conclude(anchors, last, head_seq if head_is_end else None)
        kept = self.faults.kept + (anchors.faults.kept if anchors is not None else [])
        kept.sort(key=lambda fault: fault.seq)
        return VerifyReport(
            first_seq=first,
            last_seq=last,
            rows=self.walk.rows,
            anchor=self._start.anchor,
            head_seq=head_seq,
            head_hash=head_hash.hex(),
            outbox_rows=outbox_rows,
            faults=tuple(kept[:FAULTS_KEPT_MAX]),
            faults_total=self.faults.total + (anchors.faults.total if anchors is not None else 0),
            imported=self.walk.imported,
            nanoseconds=self.walk.nanoseconds,
            checkpoints=checkpoints,
            warnings=tuple(anchors.warnings) if anchors is not None else (),
            evidence=tuple(anchors.evidence) if anchors is not None else (),
        )

    def _feed(self, rows: Sequence[tuple[int, bytes]], after: int, upto: int, nodes: Nodes | None) -> None:
        assert self._anchors is not None
        assert self._covering is not None
        self._anchors.note_agreed(self._covering.feed(rows, self._anchors.marks(after, upto), nodes))

    def _conclude(self, anchors: Anchors, last: int, head_seq: int | None) -> CheckpointReport:
        covering = self._covering
        assert covering is not None
        for conclusion in covering.conclude():
            self._explain(anchors, conclusion)
        largest = anchors.largest()
        if head_seq is not None and largest is not None and largest.size > head_seq:
            names = ", ".join(anchors.get(largest.key).sources)
            self.faults.note(
                FaultKind.TRUNCATED,
                head_seq + 1,
                f"a checkpoint was signed for {largest.size} entries ({names}), and the log ends at {head_seq}",
            )
        anchors.compare_with_each_other()
        if covering.nodes_missing:
            anchors.warn(f"{covering.nodes_missing} inner nodes of the tree are not stored; the relay makes them again")
        agreed = covering.agreed_last
        return CheckpointReport(
            origin=note.origin_of(anchors.pubkey, anchors.generation or anchors.signed_generation),
            sources=tuple(anchors.sources()),
            agreed=covering.agreed,
            disagreed=covering.disagreed,
            given_up=covering.given_up,
            unreached=covering.unreached,
            bound_by=None if covering.agreed_first is None else anchors.get(covering.agreed_first.key),
            newest=tuple(anchors.newest_agreed()),
            uncovered=max(0, last - max(self._first - 1, agreed.size if agreed is not None else 0)),
            nodes=covering.nodes,
        )

    def _explain(self, anchors: Anchors, conclusion: Conclusion) -> None:
        """A disagreement as a fault."""
        mark = conclusion.at.mark
        if conclusion.agreed is not None:
            # Two of one size are better evidence, and are found by comparing checkpoints with each other.
            if not anchors.has_rival(mark):
                anchors.contradiction(mark.key, conclusion.agreed.key)
            return
        below = conclusion.at.below
        where = (
            f"the entries up to {mark.size}, in the range or before it,"
            if below is None
            else f"the entries {below + 1} to {mark.size}, between the checkpoints of {below} and {mark.size} entries,"
        )
        names = ", ".join(anchors.get(mark.key).sources)
        self.faults.note(
            FaultKind.REWRITTEN,
            conclusion.seq,
            f"{where} are not those that were signed: their root is {conclusion.at.found.hex()}, that of the "
            f"checkpoint {mark.root.hex()} ({names})",
        )
