"""Verifying the chain in the database: all of it, a range, or, at every start, its end.

In: a connection and a range. Out: a `VerifyReport` that says what was covered, what it stands on, and every fault with
its place. Memory is constant: rows come in windows of `seq`, and `walk.Walk` keeps one.

What this cannot see: rows cut off at the end, or a log rewritten as a whole with fresh hashes. Both leave a chain that
is intact in itself. Compare `head_seq` and `head_hash` with ones written down elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from relay.asyncpg_trio import Connection
from relay.audit import log, outbox
from relay.audit.chain import GENESIS, HASH_BYTES, Head, recompute
from relay.audit.walk import Fault, Walk
from relay.errors import AuditError, ChainBroken

# Rows a window. 2 000 rows of a few hundred bytes: half a megabyte, and few round trips for a million rows.
WINDOW_ROWS = 2_000
# How far back the check at start looks. A crash can damage the end; the rest is `relay audit verify`.
TAIL_ROWS = 1_000

# Rows walked so far, rows to walk.
Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """`anchor` is what the first row was checked against: "genesis", "seq N" (a row that was itself recomputed), or
    "none". `first_seq` and `last_seq` are the range looked at; `rows` how many were there."""

    first_seq: int
    last_seq: int
    rows: int
    anchor: str
    head_seq: int
    head_hash: str
    outbox_rows: int
    faults: tuple[Fault, ...]
    faults_total: int

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

    def summary(self) -> str:
        """For people: one line of result, one for what it covers, and one a fault."""
        lines = [f"chain intact: {self.rows} entries" if self.ok else f"chain BROKEN: {self.faults_total} faults"]
        if self.last_seq < self.first_seq:
            lines.append("the log is empty: there was nothing to check")
        else:
            lines.append(f"covered: seq {self.first_seq} to {self.last_seq}, anchored by {self.anchor}")
        lines.append(f"head: seq {self.head_seq}, {self.head_hash}")
        lines.append(f"outbox: {self.outbox_rows} entries not yet chained")
        lines += [str(fault) for fault in self.faults]
        if self.faults_total > len(self.faults):
            lines.append(f"... and {self.faults_total - len(self.faults)} more")
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
            "outbox_rows": self.outbox_rows,
            "faults_total": self.faults_total,
            "faults": [{"kind": fault.kind, "seq": fault.seq, "detail": fault.detail} for fault in self.faults],
        }


async def verify(
    con: Connection,
    *,
    from_seq: int | None = None,
    to_seq: int | None = None,
    progress: Progress | None = None,
    window_rows: int = WINDOW_ROWS,
) -> VerifyReport:
    """Recompute the rows `from_seq` to `to_seq`, both included; without them, the whole log as it is now.

    A `to_seq` behind the head counts as missing rows: whoever names it knows that they were there.

    Cancellation: at any time; nothing is held and nothing was written.
    """
    first = 1 if from_seq is None else from_seq
    if first < 1 or (to_seq is not None and to_seq < first):
        raise AuditError(f"not a range of the log: {from_seq} to {to_seq}")
    # Rows behind the head as it is now are not waited for: they are the next run's.
    head_seq, head_hash = await log.read_end(con)
    last = max(head_seq, first - 1) if to_seq is None else to_seq
    walk, anchor = await _start(con, first)
    if first == 1 and (below := await log.below_first(con)) is not None:
        walk.outside(*below)
    if from_seq is not None and to_seq is None and head_seq < first:
        walk.missing(first, first)
    await _walk_rows(con, walk, first, min(last, head_seq), window_rows, progress)
    if walk.head.seq < last:
        walk.missing(walk.head.seq + 1, last)
    return VerifyReport(
        first_seq=first,
        last_seq=last,
        rows=walk.rows,
        anchor=anchor,
        head_seq=head_seq,
        head_hash=head_hash.hex(),
        outbox_rows=await outbox.count(con),
        faults=tuple(walk.faults),
        faults_total=walk.faults_total,
    )


async def verify_head(con: Connection) -> Head:
    """The check before the worker may write: are the last rows whole, linked and without a gap?

    Raises:
        ChainBroken: no. Chaining on would bury the damage under good rows.
    """
    head_seq, _ = await log.read_end(con)
    if head_seq > 0:
        report = await verify(con, from_seq=max(1, head_seq - TAIL_ROWS + 1), to_seq=head_seq)
        if report.fault is not None:
            raise ChainBroken(f"the audit log is damaged near its end: {report.fault}")
    return await log.read_head(con)


async def _walk_rows(
    con: Connection, walk: Walk, first: int, last: int, window_rows: int, progress: Progress | None
) -> None:
    # Windows of seq, not "the next n rows": two rows in one place, which only a log without its primary key can have,
    # then come in the same window and are seen.
    after = first - 1
    while after < last:
        upto = min(after + window_rows, last)
        rows = await log.read_rows(con, after, upto, 2 * window_rows)
        walk.feed(rows)
        # A window can be empty where rows are missing: jump to the next that exists, not through a million windows.
        after = upto if rows else await log.next_seq(con, upto, last) - 1
        if progress is not None:
            progress(after - first + 1, last - first + 1)
        await trio.lowlevel.checkpoint()


async def _start(con: Connection, first: int) -> tuple[Walk, str]:
    """A walk that begins at `first`, and what the row there is checked against."""
    if first == 1:
        return Walk(GENESIS), "genesis"
    rows = await log.read_rows(con, first - 2, first - 1, 1)
    if not rows:
        walk = Walk(Head(first - 1, GENESIS.hash), linked=False)
        walk.missing(first - 1, first - 1)
        return walk, "none"
    before = rows[0]
    if len(before.hash) != HASH_BYTES:
        return Walk(Head(before.seq, GENESIS.hash), linked=False), "none"
    try:
        sound = recompute(before) == before.hash
    except AuditError:
        sound = False
    return Walk(before.head), f"seq {before.seq}" if sound else "none"
