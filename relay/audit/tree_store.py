"""The Merkle tree of the log as the database has it: roots and proofs at any size, for a few hundred rows read.

In: a connection and sizes. Out: frontiers, roots and proofs of `relay/audit/tree.py`. The leaves are the hashes in
`audit_log`; of the inner nodes, `audit_tree` keeps every eighth level (roots of 256, 65 536, ... leaves), which
`fill` makes. A proof takes stored nodes where there are some and rows below them, in two statements; where a node was
not made yet, or was removed, it is made from what is below it: slower, the same answer.

Not done here: trust. A stored node is only as good as the table; whoever gives out what was made from it compares it
with a signed root first (`proofs.py`); whoever signs goes on from a frontier that a signed root stands for (`extend`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import trio

from relay.asyncpg_trio import Connection
from relay.audit.tree import HASH_BYTES, Frontier, Span, Walk, consistency, inclusion, leaf_hash, root_of, spans
from relay.errors import AuditError, ChainTruncated

# Every eighth level is kept: a 256th of the log's size in rows, and a proof reads at most 2 x 255 rows of each.
STORED_LEVELS = 8
_FAN = 1 << STORED_LEVELS
# 2 048 leaves hash in about 4 ms, so nobody else waits longer than that for the loop.
_CHUNK_NODES = 8

_ROWS = "SELECT seq, hash FROM audit_log WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3"

_NODES = "SELECT index, hash FROM audit_tree WHERE level = $1 AND index >= $2 AND index < $3"

_SOME_ROWS = "SELECT seq, hash FROM audit_log WHERE seq = ANY ($1::bigint[])"

_SOME_NODES = """
SELECT level, index, hash FROM audit_tree
JOIN unnest($1::smallint[], $2::bigint[]) AS wanted (level, index) USING (level, index)
"""

# Another node of the relay may make the same ones at the same time: they are the same.
_INSERT_NODES = """
INSERT INTO audit_tree (level, index, hash)
SELECT $1, * FROM unnest($2::bigint[], $3::bytea[])
ON CONFLICT DO NOTHING
"""

# The first place at this level that is empty. The nodes were made from left to right, so that, unless somebody removed
# one, it is behind the last; counting is cheap beside the 256 rows that each node stands for.
_NEXT_NODE = "SELECT coalesce(max(index) + 1, 0) AS next, count(*) AS nodes FROM audit_tree WHERE level = $1"

_FIRST_HOLE = """
SELECT coalesce(min(index), 0) FROM (
    SELECT index + 1 AS index FROM audit_tree AS node WHERE level = $1
    AND NOT EXISTS (SELECT FROM audit_tree AS next WHERE next.level = $1 AND next.index = node.index + 1)
) AS holes
WHERE EXISTS (SELECT FROM audit_tree WHERE level = $1 AND index = 0)
"""

_Progress = Callable[[int, int], object]


# -- making ----------------------------------------------------------------------------------------------------------


async def fill(con: Connection, size: int, *, progress: _Progress | None = None) -> int:
    """Store the nodes that a tree of `size` leaves completes and that are not there yet; says how many were made.

    Constant memory, one short statement a chunk: it may be stopped anywhere and goes on from there. `progress` is told
    leaves done and leaves in all. For two nodes of the relay at once: both make the same.

    Raises:
        ChainTruncated: rows up to `size` are missing.
    Cancellation: at any time; what was made stays.
    """
    assert size >= 0
    made, level = 0, STORED_LEVELS
    while end := size >> level:
        begin = await _first_missing(con, level)
        while begin < end:
            count = min(_CHUNK_NODES, end - begin)
            below = await _children(con, level, begin, count)
            nodes = [root_of(below[at : at + _FAN]) for at in range(0, len(below), _FAN)]
            await con.execute(_INSERT_NODES, level, list(range(begin, begin + count)), nodes)
            begin, made = begin + count, made + count
            if progress is not None and level == STORED_LEVELS:
                progress(begin << level, size)
            await trio.lowlevel.checkpoint()
        level += STORED_LEVELS
    return made


async def clear(con: Connection) -> None:
    """Forget all stored nodes; the next `fill` makes them anew. For when rows were lost or replaced under them."""
    await con.execute("DELETE FROM audit_tree")


async def extend(con: Connection, frontier: Frontier, size: int, *, store: bool = False) -> None:
    """Append the leaves from `frontier.size` on until there are `size`, from the rows alone: if the frontier's root is
    one that was signed, then the new root continues it, whatever `audit_tree` says.

    With `store`, the lowest nodes that this completes are stored by the way, and `fill` need not read the rows again.

    Raises:
        ChainTruncated: a row is missing; the frontier then stands before it.
    Cancellation: at any time; the frontier stays one of the log's, of whatever size it has reached.
    """
    assert frontier.size <= size, "a log does not shrink"
    while frontier.size < size:
        # To the next place where a stored node may begin, then whole nodes.
        edge = -frontier.size % _FAN
        upto = min(frontier.size + (edge or _CHUNK_NODES * _FAN), size)
        leaves = await _leaves(con, frontier.size, upto)
        whole = 0 if edge else len(leaves) // _FAN
        nodes = [root_of(leaves[at : at + _FAN]) for at in range(0, whole * _FAN, _FAN)]
        first = frontier.size // _FAN
        for node in nodes:
            frontier.append_subtree(node, STORED_LEVELS)
        for leaf in leaves[whole * _FAN :]:
            frontier.append_leaf(leaf)
        if store and nodes:
            await con.execute(_INSERT_NODES, STORED_LEVELS, list(range(first, first + whole)), nodes)
        await trio.lowlevel.checkpoint()


# -- asking ----------------------------------------------------------------------------------------------------------


async def frontier_at(con: Connection, size: int) -> Frontier:
    """The tree's right edge after the first `size` entries, ready to be extended.

    Raises:
        ChainTruncated: rows that it needs are missing.
    """
    wanted = spans(size)
    found = await _resolve(con, wanted)
    return Frontier(size, [found[span] for span in wanted])


async def root_at(con: Connection, size: int) -> bytes:
    """The tree head of the first `size` entries. Raises as `frontier_at`."""
    return (await frontier_at(con, size)).root()


async def inclusion_path(con: Connection, seq: int, size: int, *, stored: bool = True) -> list[bytes]:
    """The path of the entry `seq` (from 1) in the tree of `size` entries. Raises as `frontier_at`.

    Without `stored`, from the rows alone, all of them: about 1.5 s for a million, in short statements.
    """
    assert 1 <= seq <= size, "the tree does not cover that entry"
    return await _drive(con, lambda: inclusion(seq - 1, size), stored)


async def consistency_path(con: Connection, old: int, new: int, *, stored: bool = True) -> list[bytes]:
    """The proof that the tree of `new` entries begins with that of `old`. Raises, and takes `stored`, as above."""
    return await _drive(con, lambda: consistency(old, new), stored)


async def _drive(con: Connection, walk: Callable[[], Walk], stored: bool) -> list[bytes]:
    # Twice: what a walk asks for does not depend on the answers, so the first one only collects the questions, and the
    # database is asked once.
    asked: list[Span] = []

    def note(span: Span) -> bytes:
        asked.append(span)
        return bytes(HASH_BYTES)

    _run(walk(), note)
    found = await _resolve(con, asked) if stored else {span: await _from_rows(con, span) for span in asked}
    return _run(walk(), found.__getitem__)


def _run(walk: Walk, answer: Callable[[Span], bytes]) -> list[bytes]:
    try:
        span = next(walk)
        while True:
            span = walk.send(answer(span))
    except StopIteration as end:
        path: list[bytes] = end.value
        return path


# -- hashes of complete subtrees --------------------------------------------------------------------------------------


async def _resolve(con: Connection, wanted: Iterable[Span]) -> dict[Span, bytes]:
    """The roots of complete subtrees: stored nodes and rows, one statement for all of each."""
    parts = {span: _parts(span) for span in dict.fromkeys(wanted)}
    flat = [part for each in parts.values() for part in each]
    found = await _some_nodes(con, [part for part in flat if part[0]])
    found |= await _some_leaves(con, [index for level, index in flat if level == 0])
    for level, index in flat:
        if (level, index) not in found:
            found[level, index] = await _made(con, level, index)
    return {span: root_of([found[part] for part in each]) for span, each in parts.items()}


def _parts(span: Span) -> list[tuple[int, int]]:
    """A complete subtree as (level, index) of the nearest level below that is stored; level 0 is the leaves."""
    level = (span.end - span.begin).bit_length() - 1
    assert 1 << level == span.end - span.begin
    assert span.begin % (1 << level) == 0
    level -= level % STORED_LEVELS
    return [(level, index) for index in range(span.begin >> level, span.end >> level)]


async def _some_nodes(con: Connection, parts: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    if not parts:
        return {}
    rows = await con.fetch(_SOME_NODES, [level for level, _ in parts], [index for _, index in parts])
    return {(row["level"], row["index"]): row["hash"] for row in rows if _is_node(row)}


async def _some_leaves(con: Connection, indices: list[int]) -> dict[tuple[int, int], bytes]:
    if not indices:
        return {}
    rows = await con.fetch(_SOME_ROWS, [index + 1 for index in indices])
    found = {row["seq"] - 1: _leaf(row) for row in rows}
    _demand([index for index in indices if index not in found])
    return {(0, index): leaf for index, leaf in found.items()}


async def _from_rows(con: Connection, span: Span) -> bytes:
    """The root of a complete subtree, whatever `audit_tree` says."""
    tree, done = Frontier(), span.begin
    while done < span.end:
        upto = min(done + _CHUNK_NODES * _FAN, span.end)
        for leaf in await _leaves(con, done, upto):
            tree.append_leaf(leaf)
        done = upto
        await trio.lowlevel.checkpoint()
    return tree.root()


async def _made(con: Connection, level: int, index: int) -> bytes:
    """A node that should be stored and is not."""
    return root_of(await _children(con, level, index, 1))


async def _children(con: Connection, level: int, index: int, count: int) -> list[bytes]:
    """What is under `count` neighbours at a stored level: their 256 children each, from the level below."""
    begin, end = index * _FAN, (index + count) * _FAN
    if level == STORED_LEVELS:
        return await _leaves(con, begin, end)
    below = level - STORED_LEVELS
    rows = await con.fetch(_NODES, below, begin, end)
    found = {row["index"]: row["hash"] for row in rows if _is_node(row)}
    return [found[child] if child in found else await _made(con, below, child) for child in range(begin, end)]


async def _leaves(con: Connection, begin: int, end: int) -> list[bytes]:
    rows = await con.fetch(_ROWS, begin, end, end - begin)
    if len(rows) < end - begin:
        present = {row["seq"] - 1 for row in rows}
        _demand([index for index in range(begin, end) if index not in present])
    return [_leaf(row) for row in rows]


async def _first_missing(con: Connection, level: int) -> int:
    row = await con.fetchrow(_NEXT_NODE, level)
    assert row is not None, "an aggregate has one row"
    following: int = row["next"]
    return following if row["nodes"] == following else int(await con.fetchval(_FIRST_HOLE, level))


def _demand(missing: list[int]) -> None:
    """Raises if any leaf is missing; says which, by seq."""
    if missing:
        first, last = missing[0] + 1, missing[-1] + 1
        which = f"seq {first}" if first == last else f"{len(missing)} of seq {first} to {last}"
        raise ChainTruncated(f"the audit log has no row {which}")


def _leaf(row: Any) -> bytes:
    digest: bytes = row["hash"] or b""
    if len(digest) != HASH_BYTES:
        raise AuditError(f"the row seq {row['seq']} of the audit log has no hash of {HASH_BYTES} bytes")
    return leaf_hash(digest)


def _is_node(row: Any) -> bool:
    # What cannot be a hash is as good as not stored.
    return len(row["hash"] or b"") == HASH_BYTES
