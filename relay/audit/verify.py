"""Verifying the log in the database: all of it, a range, or, at every start, its end.

In: a connection, a range, and the checkpoints to hold it against. Out: a `VerifyReport` that says what was covered,
what it stands on, and every fault with its place. Memory is constant: rows come in windows of `seq`.

Without checkpoints this cannot see rows cut off at the end, or a log rewritten as a whole with fresh hashes: both leave
a chain that is intact in itself. With them it sees all but what was cut behind the newest checkpoint that anyone has.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from relay.asyncpg_trio import Connection
from relay.audit import checkpoints, log, outbox, tree_store
from relay.audit.anchors import DATABASE, EVENTS, Anchors
from relay.audit.chain import GENESIS, HASH_BYTES, Head, recompute
from relay.audit.covering import STORED_LEVELS
from relay.audit.note import NoteError
from relay.audit.report import VerifyReport
from relay.audit.tree import Frontier
from relay.audit.verification import Start, Verification
from relay.audit.walk import FaultKind
from relay.errors import AuditError, ChainBroken
from relay.nostr.kinds import AUDIT_CHECKPOINT

__all__ = ["Progress", "VerifyReport", "add_database", "verify", "verify_head"]

# Rows a window: a few hundred bytes each, so about a megabyte, and few round trips for a million rows. Eight stretches
# of the tree, so that a window completes as many stored nodes.
WINDOW_ROWS = 2_048
# How far back the check at start looks. A crash can damage the end; the rest is `relay audit verify`.
TAIL_ROWS = 1_000
# How far behind a range its binding checkpoint is looked for; the relay signs one every 10 000 entries or sooner.
BEYOND_ROWS_MAX = 1_000_000
_LEVEL_MAX = 56
_PAGE = 500

# Rows walked so far, rows to walk.
Progress = Callable[[int, int], object]

_TABLES = (
    "SELECT to_regclass('audit_checkpoints') IS NOT NULL AS checkpoints, to_regclass('events') IS NOT NULL AS events"
)

_LOSSES = "SELECT number, time_us, size, head_seq, reason FROM audit_losses ORDER BY number"

_EVENTS = """
SELECT id, created_at, content FROM events
WHERE kind = $1 AND pubkey = decode($2, 'hex') AND (created_at, id) > ($3, $4) ORDER BY created_at, id LIMIT $5
"""

_HASHES = "SELECT seq, hash FROM audit_log WHERE seq > $1 AND seq <= $2 ORDER BY seq"

_NODES = "SELECT index, hash FROM audit_tree WHERE level = $1 AND index >= $2 AND index < $3"

# Nodes of stretches that no log of this length completes, or at levels where none belongs.
_NODES_OUTSIDE = """
SELECT count(*) AS rows FROM audit_tree
WHERE level < 8 OR level > 56 OR level % 8 <> 0 OR index < 0
   OR (index::numeric + 1) * 2::numeric ^ level > (SELECT coalesce(max(seq), 0) FROM audit_log)
"""


async def add_database(con: Connection, anchors: Anchors) -> None:
    """Give `anchors` every checkpoint that the database has, as rows and as published events, and the losses that were
    accepted. Whatever stands there instead of a checkpoint becomes a fault."""
    tables = await con.fetchrow(_TABLES)
    assert tables is not None
    if tables["checkpoints"]:
        anchors.generation = await checkpoints.generation(con)
        for row in await con.fetch(_LOSSES):
            anchors.warn(
                f"loss {row['number']} was accepted: the log had been signed for {row['size']} entries and ended at "
                f"{row['head_seq']}; the reason given: {row['reason']!r}"
            )
        for origin in await checkpoints.all_origins(con):
            await _add_rows(con, anchors, origin)
    else:
        anchors.warn("the database has no table for checkpoints (`relay migrate up` makes it)")
    if tables["events"]:
        await _add_events(con, anchors)


async def _add_rows(con: Connection, anchors: Anchors, origin: str) -> None:
    after = -1
    while page := await checkpoints.rows(con, origin, after, _PAGE):
        for row in page:
            try:
                stored = checkpoints.stored(row)
            except NoteError as error:
                anchors.bad(DATABASE, f"is not one: {error}", row.size)
            else:
                anchors.add(DATABASE, stored.checkpoint, time_us=stored.time_us, ours=True)
        after = page[-1].size
        await trio.lowlevel.checkpoint()


async def _add_events(con: Connection, anchors: Anchors) -> None:
    place = (-(2**63), b"")
    while page := await con.fetch(_EVENTS, AUDIT_CHECKPOINT, anchors.pubkey, *place, _PAGE):
        for row in page:
            anchors.add_note(EVENTS, row["content"], time_us=row["created_at"] * 1_000_000, ours=True)
        place = (page[-1]["created_at"], page[-1]["id"])
        await trio.lowlevel.checkpoint()


async def verify(
    con: Connection,
    *,
    from_seq: int | None = None,
    to_seq: int | None = None,
    anchors: Anchors | None = None,
    progress: Progress | None = None,
    window_rows: int = WINDOW_ROWS,
) -> VerifyReport:
    """Recompute the rows `from_seq` to `to_seq`, both included; without them, the whole log as it is now; and hold them
    against `anchors`, which were gathered before.

    A `to_seq` behind the head counts as missing rows: whoever names it knows that they were there.

    Cancellation: at any time; nothing is held and nothing was written.
    """
    first = 1 if from_seq is None else from_seq
    if first < 1 or (to_seq is not None and to_seq < first):
        raise AuditError(f"not a range of the log: {from_seq} to {to_seq}")
    # Rows behind the head as it is now are not waited for: they are the next run's. What is signed is in the log
    # before, so the checkpoints, which were read earlier, can only be of rows up to this head.
    head_seq, head_hash = await log.read_end(con)
    last = max(head_seq, first - 1) if to_seq is None else to_seq
    start = await _start(con, first, with_tree=anchors is not None)
    verification = Verification(start, anchors)
    walk = verification.walk
    if start.missing:
        walk.missing(first - 1, first - 1)
    if first == 1 and (below := await log.below_first(con)) is not None:
        walk.outside(*below)
    if from_seq is not None and to_seq is None and head_seq < first:
        walk.missing(first, first)
    nodes = anchors is not None and bool(await con.fetchval("SELECT to_regclass('audit_tree') IS NOT NULL"))
    await _walk_rows(con, verification, first, min(last, head_seq), window_rows, progress, nodes)
    if walk.head.seq < last:
        walk.missing(walk.head.seq + 1, last)
    await _bind(con, verification, last, head_seq, window_rows)
    if nodes and (outside := await con.fetchval(_NODES_OUTSIDE)):
        detail = f"{outside} stored nodes are of entries that are not there"
        verification.faults.note(FaultKind.TREE_NODE, head_seq + 1, detail)
    return verification.report(
        first=first, last=last, head_seq=head_seq, head_hash=head_hash, outbox_rows=await outbox.count(con)
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
    con: Connection,
    verification: Verification,
    first: int,
    last: int,
    window_rows: int,
    progress: Progress | None,
    with_nodes: bool,
) -> None:
    # Windows of seq, not "the next n rows": two rows in one place, which only a log without its primary key can have,
    # then come in the same window and are seen.
    after = first - 1
    while after < last:
        upto = min(after + window_rows, last)
        rows = await log.read_rows(con, after, upto, 2 * window_rows)
        nodes = await _nodes(con, after, upto) if with_nodes else None
        verification.window(rows, after, upto, nodes)
        # A window can be empty where rows are missing: jump to the next that exists, not through a million windows.
        after = upto if rows else await log.next_seq(con, upto, last) - 1
        if progress is not None:
            progress(after - first + 1, last - first + 1)
        await trio.lowlevel.checkpoint()


async def _nodes(con: Connection, after: int, upto: int) -> dict[tuple[int, int], bytes]:
    """The stored nodes whose last leaf is one of `after` < seq ≤ `upto`."""
    found = {}
    for level in range(STORED_LEVELS, _LEVEL_MAX + 1, STORED_LEVELS):
        begin, end = after >> level, upto >> level
        if begin == end:
            break
        for row in await con.fetch(_NODES, level, begin, end):
            found[level, row["index"]] = row["hash"]
    return found


async def _bind(con: Connection, verification: Verification, last: int, head_seq: int, window_rows: int) -> None:
    """Go on to the next checkpoint behind the range, hashes only, so that a range that ends anywhere is under one."""
    mark = verification.beyond(last)
    if mark is None or mark.size > min(head_seq, last + BEYOND_ROWS_MAX):
        return
    after = last
    while after < mark.size:
        upto = min(after + window_rows, mark.size)
        rows = [(row["seq"], row["hash"] or b"") for row in await con.fetch(_HASHES, after, upto)]
        if not rows:
            return
        verification.hashes(rows, mark)
        after = upto
        await trio.lowlevel.checkpoint()


async def _start(con: Connection, first: int, *, with_tree: bool) -> Start:
    """Where the walk begins, and what the row there is checked against."""
    if first == 1:
        return Start(GENESIS, "genesis", frontier=Frontier())
    frontier = await _frontier(con, first - 1) if with_tree else None
    rows = await log.read_rows(con, first - 2, first - 1, 1)
    if not rows:
        return Start(Head(first - 1, GENESIS.hash), "none", linked=False, missing=True)
    before = rows[0]
    if len(before.hash) != HASH_BYTES:
        return Start(Head(before.seq, GENESIS.hash), "none", linked=False)
    try:
        sound = recompute(before) == before.hash
    except AuditError:
        sound = False
    return Start(before.head, f"seq {before.seq}" if sound else "none", frontier=frontier)


async def _frontier(con: Connection, size: int) -> Frontier | None:
    # Made of stored nodes, so it proves nothing yet: the first checkpoint that agrees does.
    try:
        return await tree_store.frontier_at(con, size)
    except AuditError:
        return None
