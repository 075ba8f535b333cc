"""What a verification has found, for people and for machines.

In: what `verify.py` and `verify_export.py` gathered. Out: text or a dictionary for JSON. A report says what was covered
and what it stands on before it says that all is well: "intact" alone is worth nothing.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from relay.audit.anchors import Anchor, SourceSeen
from relay.audit.walk import Fault


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """What the entries were held against. `agreed`, `disagreed`, `given_up` (of a log whose loss was accepted) and
    `unreached` (behind missing rows) count checkpoints in the range; `newest` is, for each source, the largest that
    agrees; `bound_by` the first that agrees, which also vouches for what a partial range begins with; `uncovered` the
    entries in the range behind all that agree. `nodes` counts the stored nodes of the tree that were made again."""

    origin: str
    sources: tuple[SourceSeen, ...]
    agreed: int
    disagreed: int
    given_up: int
    unreached: int
    bound_by: Anchor | None
    newest: tuple[Anchor, ...]
    uncovered: int
    nodes: int

    def lines(self) -> list[str]:
        found = [
            f"log: {self.origin}",
            *(f"checkpoints in {each.name}: {each.checkpoints}, the largest of {each.size}" for each in self.sources),
        ]
        if not self.newest:
            return [
                *found,
                "NO CHECKPOINT agrees: a log cut short, or made anew as a whole, could look like this",
            ]
        found.append(f"checkpoints in the range: {self.agreed} agree, {self.disagreed} do not")
        if self.given_up or self.unreached:
            found.append(f"  {self.given_up} were given up with an accepted loss, {self.unreached} not to be compared")
        found += [f"  {described(anchor)}" for anchor in self.newest]
        found.append(f"behind the newest of them: {self.uncovered} entries that no signature covers yet")
        return found

    def as_dict(self) -> dict[str, Any]:
        return {
            "origin": self.origin,
            "sources": [
                {"source": each.name, "checkpoints": each.checkpoints, "largest": each.size} for each in self.sources
            ],
            "agreed": self.agreed,
            "disagreed": self.disagreed,
            "given_up": self.given_up,
            "unreached": self.unreached,
            "bound_by": None if self.bound_by is None else _anchor(self.bound_by),
            "newest": [_anchor(each) for each in self.newest],
            "uncovered": self.uncovered,
            "stored_nodes": self.nodes,
        }


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """`anchor` is what the first row was checked against: "genesis", "seq N" (a row that was itself recomputed), or
    "none". `first_seq` and `last_seq` are the range looked at; `rows` how many were there, `imported` of them by the
    original, and `nanoseconds` of those only with digits of time that the original's table has lost. `evidence` has
    signed notes that contradict each other. `spool_entries` is None where no spool was looked at."""

    first_seq: int
    last_seq: int
    rows: int
    anchor: str
    head_seq: int
    head_hash: str
    outbox_rows: int
    faults: tuple[Fault, ...]
    faults_total: int
    imported: int = 0
    nanoseconds: int = 0
    checkpoints: CheckpointReport | None = None
    warnings: tuple[str, ...] = ()
    evidence: tuple[tuple[str, ...], ...] = ()
    spool_entries: int | None = None

    @property
    def ok(self) -> bool:
        return self.faults_total == 0

    @property
    def fault(self) -> Fault | None:
        """The first one."""
        return self.faults[0] if self.faults else None

    @property
    def genesis_anchored(self) -> bool:
        return self.anchor == "genesis"

    def with_spool(self, entries: int) -> VerifyReport:
        """The same with what waits in the spool."""
        return replace(self, spool_entries=entries)

    def summary(self) -> str:
        """For people: one line of result, what it covers and stands on, and one line a fault."""
        lines = [f"chain intact: {self.rows} entries" if self.ok else f"chain BROKEN: {self.faults_total} faults"]
        if self.last_seq < self.first_seq:
            lines.append("the log is empty: there was nothing to check")
        else:
            lines.append(f"covered: seq {self.first_seq} to {self.last_seq}, anchored by {self.anchor}")
        lines.append(f"head: seq {self.head_seq}, {self.head_hash}")
        if self.imported:
            lines.append(
                f"imported from the original: {self.imported} entries; the hash of {self.nanoseconds} of them needs "
                "nanoseconds that its own table does not keep"
            )
        if self.checkpoints is not None:
            lines += self.checkpoints.lines()
        lines.append(f"outbox: {self.outbox_rows} entries not yet chained")
        if self.spool_entries is not None:
            lines.append(f"spool: {self.spool_entries} entries not yet in the database")
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [str(fault) for fault in self.faults]
        if self.faults_total > len(self.faults):
            lines.append(f"... and {self.faults_total - len(self.faults)} more")
        for notes in self.evidence:
            lines.append("EVIDENCE, keep both: each is signed by the relay's key, and only one can be true")
            lines += [f"----\n{note}----" for note in notes]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "ok": self.ok,
            "first_seq": self.first_seq,
            "last_seq": self.last_seq,
            "rows": self.rows,
            "anchor": self.anchor,
            "genesis_anchored": self.genesis_anchored,
            "head_seq": self.head_seq,
            "head_hash": self.head_hash,
            "imported": self.imported,
            "nanoseconds": self.nanoseconds,
            "outbox_rows": self.outbox_rows,
            "spool_entries": self.spool_entries,
            "checkpoints": None if self.checkpoints is None else self.checkpoints.as_dict(),
            "warnings": list(self.warnings),
            "faults_total": self.faults_total,
            "faults": [{"kind": fault.kind, "seq": fault.seq, "detail": fault.detail} for fault in self.faults],
            "evidence": [list(notes) for notes in self.evidence],
        }


def described(anchor: Anchor) -> str:
    """One line about a checkpoint."""
    head = anchor.checkpoint
    when = "" if anchor.time_us is None else f", signed {_time(anchor.time_us / 1e6)}"
    by = "".join(
        f", cosigned {_time(each.time)} by {each.witness}{'' if each.trusted else ' (not one of the known witnesses)'}"
        for each in anchor.cosigned
    )
    return f"{head.size} entries, root {head.root.hex()}, from {', '.join(anchor.sources)}{when}{by}"


def _anchor(anchor: Anchor) -> dict[str, Any]:
    head = anchor.checkpoint
    return {
        "size": head.size,
        "root": head.root.hex(),
        "time_us": anchor.time_us,
        "sources": list(anchor.sources),
        "cosigned": [{"witness": each.witness, "time": each.time, "trusted": each.trusted} for each in anchor.cosigned],
        "note": head.note,
    }


def _time(seconds: float) -> str:
    # Whoever signs chooses the number: one beyond any calendar is shown as it is.
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"at {seconds:.0f} s"
