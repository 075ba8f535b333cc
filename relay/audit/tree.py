"""The Merkle tree over the entries of the log: roots, inclusion proofs, consistency proofs (RFC 6962, section 2.1).

Leaf i (from 0) is the 32-byte hash of the entry with seq i + 1. A root stands for every entry before it and their
order; a proof shows with about log2(size) hashes that one entry, or a whole shorter log, is under a root.

`Nodes` is where proofs take inner hashes from: memory in tests, rows of audit_tree and audit_log in the relay. Only the
walk that asks is here; the asking is a generator, so that whoever drives it may wait (`sans-IO`).

Pure: no I/O, no clock, no randomness.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

HASH_BYTES = 32

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""The root of a log without entries."""


class Span(NamedTuple):
    """A subtree: the leaves `begin` ≤ i < `end`. `end - begin` is a power of two and `begin` a multiple of it."""

    begin: int
    end: int


Walk = Generator[Span, bytes, list[bytes]]
"""Asks for the hashes of complete subtrees, one after another; returns the proof."""


def leaf_hash(entry_hash: bytes) -> bytes:
    """The leaf of an entry: a prefix keeps it apart from every inner node."""
    return hashlib.sha256(b"\x00" + entry_hash).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: the roots of its complete subtrees, largest first. Memory is log2(size)."""

    __slots__ = ("_subtrees", "size")

    def __init__(self, size: int = 0, subtrees: Iterable[bytes] = ()) -> None:
        self.size = size
        self._subtrees = list(subtrees)
        assert len(self._subtrees) == size.bit_count(), "one complete subtree for each bit of the size"

    @property
    def subtrees(self) -> tuple[bytes, ...]:
        """The roots of its complete subtrees, largest first: with the size, all that there is to a frontier."""
        return tuple(self._subtrees)

    def append(self, entry_hash: bytes) -> None:
        """Adds the leaf of the next entry."""
        self.append_leaf(leaf_hash(entry_hash))

    def append_leaf(self, leaf: bytes) -> None:
        self.append_subtree(leaf, 0)

    def append_subtree(self, node: bytes, level: int) -> None:
        """Adds 2^level leaves by the root of their subtree; the size must be a multiple of that."""
        assert self.size & ((1 << level) - 1) == 0, "a subtree begins at a multiple of its width"
        size, subtrees = self.size >> level, self._subtrees
        while size & 1:
            node = node_hash(subtrees.pop(), node)
            size >>= 1
        subtrees.append(node)
        self.size += 1 << level

    def root(self) -> bytes:
        """The tree head of what was appended so far."""
        if not self._subtrees:
            return EMPTY_ROOT
        node = self._subtrees[-1]
        for left in reversed(self._subtrees[:-1]):
            node = node_hash(left, node)
        return node


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root of some leaf hashes."""
    if len(leaves).bit_count() == 1:
        return _complete_root(leaves)
    frontier = Frontier()
    for leaf in leaves:
        frontier.append_leaf(leaf)
    return frontier.root()


def _complete_root(nodes: Sequence[bytes]) -> bytes:
    # Layer by layer: a third of the time that appending one by one takes, and most leaves go this way.
    while len(nodes) > 1:
        nodes = [
            hashlib.sha256(b"\x01" + left + right).digest() for left, right in zip(nodes[::2], nodes[1::2], strict=True)
        ]
    return nodes[0]


def spans(size: int) -> list[Span]:
    """The complete subtrees of a tree of `size` leaves, from left to right: those of its `Frontier`."""
    return cover(0, size)


def cover(begin: int, end: int) -> list[Span]:
    """The fewest complete subtrees that make up the leaves `begin` ≤ i < `end`, from left to right, where the range is
    one that RFC 6962 meets: `begin` is a multiple of the largest power of two that the range's length reaches."""
    found = []
    while begin < end:
        width = 1 << ((end - begin).bit_length() - 1)
        found.append(Span(begin, begin + width))
        begin += width
    return found


# -- proofs, made ----------------------------------------------------------------------------------------------------


def inclusion(index: int, size: int) -> Walk:
    """The audit path of leaf `index` in the tree of `size` leaves, lowest first (RFC 6962, 2.1.1)."""
    assert 0 <= index < size, "no such leaf"
    begin, end, path = 0, size, []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((begin, middle))
            begin = middle
    return (yield from _roots(reversed(path)))


def consistency(old: int, new: int) -> Walk:
    """The proof that the tree of `new` leaves begins with that of `old` (RFC 6962, 2.1.2). Empty where there is nothing
    to prove: `old` is 0 or equal to `new`."""
    assert 0 <= old <= new, "a log does not shrink"
    if old in (0, new):
        return []
    begin, end, path, whole = 0, new, [], True
    while old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((begin, middle))
            begin, whole = middle, False
    if not whole:
        path.append((begin, end))
    return (yield from _roots(reversed(path)))


def _roots(ranges: Iterable[tuple[int, int]]) -> Walk:
    found = []
    for begin, end in ranges:
        parts: list[bytes] = []
        for span in cover(begin, end):
            answer = yield span
            parts.append(answer)
        node = parts[-1]
        for left in reversed(parts[:-1]):
            node = node_hash(left, node)
        found.append(node)
    return found


def _split(count: int) -> int:
    """The largest power of two below `count`: where RFC 6962 divides a tree."""
    return 1 << ((count - 1).bit_length() - 1)


# -- proofs, checked -------------------------------------------------------------------------------------------------


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `path` shows that `leaf` is at `index` under `root` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    fn, sn, node = index, size - 1, leaf
    for sibling in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            node = node_hash(sibling, node)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            node = node_hash(node, sibling)
        fn >>= 1
        sn >>= 1
    return sn == 0 and node == root


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether `path` shows that the tree `new` begins with the tree `old` (RFC 9162, 2.1.4.2)."""
    if not 0 <= old <= new:
        return False
    if old == new:
        return not path and old_root == new_root
    if old == 0:
        return not path and old_root == EMPTY_ROOT
    if not path:
        return False
    nodes = list(path)
    if old & (old - 1) == 0:
        nodes.insert(0, old_root)
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn >>= 1
        sn >>= 1
    before = after = nodes[0]
    for node in nodes[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            before, after = node_hash(node, before), node_hash(node, after)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            after = node_hash(after, node)
        fn >>= 1
        sn >>= 1
    return sn == 0 and before == old_root and after == new_root
