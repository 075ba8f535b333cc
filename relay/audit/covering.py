"""What was signed, held against what is there: hashes of entries and checkpoints in, faults out.

`Covering` grows the Merkle tree over the entries as they pass and compares it, at each size that was signed for, with
the signed root. Its memory does not grow with the log: the tree's right edge, the stretch of 256 leaves that it is in,
and the first disagreements.

Theory
------
A root stands for every entry before it. So the first checkpoint that disagrees, K entries behind the last one that
agrees, says: something among these K is not what was signed. Those after it disagree because of the same entries; they
are the same fault. If a later one agrees, though, the entries are what the relay's key has signed *last*, and what it
had signed before is not: then two signatures contradict each other, which no error of a disk can bring about.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from relay.audit.tree import HASH_BYTES, Frontier, leaf_hash, root_of
from relay.audit.walk import FAULTS_KEPT_MAX, FaultKind, Faults

# Every eighth level of the tree is kept in the database (relay/audit/tree_store.py).
STORED_LEVELS = 8
FAN = 1 << STORED_LEVELS

Nodes = Mapping[tuple[int, int], bytes]
"""Stored inner nodes by (level, index)."""


class Mark(NamedTuple):
    """A signed checkpoint: `key` is the caller's name for it. `excused` where it is of a log that an operator has given
    up (an accepted loss), so that it may disagree."""

    size: int
    root: bytes
    key: int
    excused: bool = False


class Disagreement(NamedTuple):
    """`mark` is not the root of the entries; `found` is. `below` is the size of the last checkpoint before it that
    agreed; None where the walk did not begin with the log and has met none."""

    mark: Mark
    found: bytes
    below: int | None


class Conclusion(NamedTuple):
    """`at` and all after it, down to the last that was walked, are of one cause. REWRITTEN: the entries behind
    `at.below` are not what was signed. CONTRADICTION: `agreed`, signed for more entries, does not continue `at`."""

    kind: FaultKind
    seq: int
    at: Disagreement
    agreed: Mark | None


class Covering:
    """Begins with `frontier`, the right edge of the tree over all entries before the first that is fed; None where that
    is not known: then nothing can be held against anything. Up to `stored_size` entries there should be stored nodes.
    """

    def __init__(self, frontier: Frontier | None, faults: Faults, *, stored_size: int = 0) -> None:
        self._tree = frontier
        self._stored_size = stored_size
        self._faults = faults
        self._begin = 0 if frontier is None else frontier.size
        self.agreed = 0
        self.agreed_first: Mark | None = None
        self.agreed_last: Mark | None = None
        self.disagreed = 0
        self.disagreements: list[Disagreement] = []
        self.given_up = 0
        self.unreached = 0
        # Nodes can be made of complete stretches only: where the walk begins inside of one, from the next one on.
        self._leaves: list[bytes] | None = [] if self._begin % FAN == 0 else None
        self._upper: dict[int, list[bytes] | None] = {}
        self.nodes = 0
        self.nodes_missing = 0
        self._runs: dict[int, tuple[int, int]] = {}
        self._differed: dict[int, int] = {}

    @property
    def size(self) -> int | None:
        """How many entries the tree has; None where it is not known (entries before are missing)."""
        return None if self._tree is None else self._tree.size

    def compare(self, mark: Mark) -> bool:
        """Whether `mark` agrees with the tree as it is now."""
        tree = self._tree
        if tree is None or tree.size != mark.size:
            self.unreached += 1
            return False
        root = tree.root()
        if root == mark.root:
            self.agreed += 1
            self.agreed_first = self.agreed_first or mark
            self.agreed_last = mark
            return True
        if mark.excused:
            self.given_up += 1
        else:
            self.disagreed += 1
            if len(self.disagreements) < FAULTS_KEPT_MAX:
                below = self.agreed_last.size if self.agreed_last else (None if self._begin else 0)
                self.disagreements.append(Disagreement(mark, root, below))
        return False

    def feed(
        self, rows: Iterable[tuple[int, bytes]], marks: Iterable[Mark] = (), nodes: Nodes | None = None
    ) -> list[Mark]:
        """The next rows as (seq, hash), by seq; the checkpoints whose sizes they reach, by size; and the stored nodes
        that they complete (None: do not ask for any). A missing row ends it: what is behind stands on nothing.

        Returns the checkpoints that agree.
        """
        agreed = []
        waiting = iter(marks)
        mark = next(waiting, None)
        for seq, digest in rows:
            tree = self._tree
            if tree is None:
                break
            if seq <= tree.size:
                continue  # a second row in one place: the chain's fault, not the tree's
            if seq > tree.size + 1 or len(digest) != HASH_BYTES:
                self._tree = None
                break
            leaf = leaf_hash(digest)
            tree.append_leaf(leaf)
            if self._leaves is not None:
                self._leaves.append(leaf)
            if seq % FAN == 0:
                self._complete(seq, nodes)
            while mark is not None and mark.size <= seq:
                if self.compare(mark):
                    agreed.append(mark)
                mark = next(waiting, None)
        while mark is not None:
            if self.compare(mark):
                agreed.append(mark)
            mark = next(waiting, None)
        return agreed

    def conclude(self) -> list[Conclusion]:
        """What the disagreements mean, once everything was fed; differing nodes are noted as faults."""
        for level in sorted(self._runs):
            self._end_run(level)
        last = self.agreed_last
        found, rest = [], []
        for each in self.disagreements:
            if last is not None and each.mark.size <= last.size:
                found.append(Conclusion(FaultKind.CONTRADICTION, each.mark.size, each, last))
            else:
                rest.append(each)
        if rest:
            below = self._begin if rest[0].below is None else rest[0].below
            found.append(Conclusion(FaultKind.REWRITTEN, below + 1, rest[0], None))
        return found

    # -- stored nodes ------------------------------------------------------------------------------------------------

    def _complete(self, size: int, nodes: Nodes | None) -> None:
        """A stretch of 256 leaves is over; and maybe one of 256 such stretches, and so on."""
        children, self._leaves = self._leaves, []
        level = STORED_LEVELS
        while True:
            node = None if children is None else root_of(children)
            if node is not None and nodes is not None:
                self._check_node(level, (size >> level) - 1, node, nodes)
            # At the first sight of a level: complete from here on only if the walk began at a border of the next one.
            siblings = self._upper.setdefault(level, None if self._begin % (1 << level + STORED_LEVELS) else [])
            if siblings is not None and node is not None:
                siblings.append(node)
            if size % (1 << level + STORED_LEVELS):
                return
            children, self._upper[level] = siblings, []
            level += STORED_LEVELS

    def _check_node(self, level: int, index: int, node: bytes, nodes: Nodes) -> None:
        begin, end = index << level, index + 1 << level
        stored = nodes.get((level, index))
        if stored is None:
            self.nodes_missing += end <= self._stored_size
            return
        self.nodes += 1
        if stored == node:
            self._end_run(level)
        # What differs below differs above: one fault, where it is narrowest.
        elif not any(low < level and until > begin for low, until in self._differed.items()):
            begin, _ = self._runs.get(level, (begin, end))
            self._runs[level] = (begin, end)
        if stored != node:
            self._differed[level] = end

    def _end_run(self, level: int) -> None:
        run = self._runs.pop(level, None)
        if run is not None:
            detail = f"stored nodes of level {level} over seq {run[0] + 1} to {run[1]} are not what the entries give"
            self._faults.note(FaultKind.TREE_NODE, run[0] + 1, detail)
