"""The tree of RFC 6962: published vectors, its definition as an oracle, pymerkle as a second implementation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree, MerkleProof
from pymerkle import verify_consistency as pymerkle_verifies

from relay.audit.tree import (
    EMPTY_ROOT,
    Frontier,
    Span,
    Walk,
    consistency,
    cover,
    inclusion,
    leaf_hash,
    node_hash,
    root_of,
    spans,
    verify_consistency,
    verify_inclusion,
)

SIZES_MAX = 1024
ENTRIES = [hashlib.sha256(number.to_bytes(4)).digest() for number in range(SIZES_MAX)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
ROOTS = [root_of(LEAVES[:size]) for size in range(SIZES_MAX + 1)]


class Nodes:
    """Complete subtrees by span, made once each."""

    def __init__(self, leaves: list[bytes]) -> None:
        self._leaves = leaves
        self._found: dict[Span, bytes] = {}

    def __call__(self, span: Span) -> bytes:
        width = span.end - span.begin
        assert width & (width - 1) == 0, "complete"
        assert span.begin % width == 0, "where such a subtree stands"
        if width == 1:
            return self._leaves[span.begin]
        if span not in self._found:
            middle = span.begin + width // 2
            self._found[span] = node_hash(self(Span(span.begin, middle)), self(Span(middle, span.end)))
        return self._found[span]

    def walk(self, walk: Walk) -> list[bytes]:
        try:
            span = next(walk)
            while True:
                span = walk.send(self(span))
        except StopIteration as end:
            return list(end.value)


NODES = Nodes(LEAVES)


# -- the definition, word for word -----------------------------------------------------------------------------------


def head(leaves: list[bytes]) -> bytes:
    """MTH of section 2.1."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    middle = split(len(leaves))
    return node_hash(head(leaves[:middle]), head(leaves[middle:]))


def path(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of section 2.1.1."""
    if len(leaves) == 1:
        return []
    middle = split(len(leaves))
    if index < middle:
        return [*path(index, leaves[:middle]), head(leaves[middle:])]
    return [*path(index - middle, leaves[middle:]), head(leaves[:middle])]


def subproof(old: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of section 2.1.2."""
    if old == len(leaves):
        return [] if whole else [head(leaves)]
    middle = split(len(leaves))
    if old <= middle:
        return [*subproof(old, leaves[:middle], whole), head(leaves[middle:])]
    return [*subproof(old - middle, leaves[middle:], False), head(leaves[:middle])]


def split(count: int) -> int:
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def test_all_small_trees_are_those_of_the_definition():
    for size in range(34):
        leaves = LEAVES[:size]
        assert root_of(leaves) == head(leaves) == ROOTS[size]
        for index in range(size):
            assert NODES.walk(inclusion(index, size)) == path(index, leaves)
        for old in range(1, size + 1):
            assert NODES.walk(consistency(old, size)) == subproof(old, leaves, True)


# -- the vectors of Certificate Transparency's reference implementations ---------------------------------------------

CT_INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
N10 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
N11 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
N12 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
N13 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
N21 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
L4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"

CT_LEAVES = [leaf_hash(bytes.fromhex(each)) for each in CT_INPUTS]


def test_published_roots():
    frontier = Frontier()
    for number, text in enumerate(CT_ROOTS):
        assert frontier.root().hex() == text
        if number < len(CT_INPUTS):
            frontier.append(bytes.fromhex(CT_INPUTS[number]))


@pytest.mark.parametrize(
    ("index", "size", "expected"),
    [(0, 1, []), (0, 8, [N10, N11, N21]), (5, 8, [L4, N13, CT_ROOTS[4]]), (2, 3, [CT_ROOTS[2]]),
     (1, 5, [CT_ROOTS[1], N11, L4])],
)  # fmt: skip
def test_published_inclusion_paths(index: int, size: int, expected: list[str]):
    found = Nodes(CT_LEAVES).walk(inclusion(index, size))
    assert [each.hex() for each in found] == expected
    assert verify_inclusion(CT_LEAVES[index], index, size, found, bytes.fromhex(CT_ROOTS[size]))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [(1, 1, []), (1, 8, [N10, N11, N21]), (6, 8, [N12, N13, CT_ROOTS[4]]), (2, 5, [N11, L4])],
)
def test_published_consistency_proofs(old: int, new: int, expected: list[str]):
    found = Nodes(CT_LEAVES).walk(consistency(old, new))
    assert [each.hex() for each in found] == expected
    assert verify_consistency(old, new, bytes.fromhex(CT_ROOTS[old]), bytes.fromhex(CT_ROOTS[new]), found)


# -- pymerkle --------------------------------------------------------------------------------------------------------


def places(size: int, chance: random.Random) -> set[int]:
    """The edges of a tree, and some places between."""
    return {0, size - 1, size // 2, split(size) if size > 1 else 0, chance.randrange(size), chance.randrange(size)}


@pytest.fixture(scope="module")
def other() -> InmemoryTree:
    tree = InmemoryTree(algorithm="sha256")
    for entry in ENTRIES:
        tree.append_entry(entry)
    return tree


def test_roots_and_inclusion_proofs_equal_pymerkles_for_all_sizes(other: InmemoryTree):
    chance = random.Random(6962)
    assert InmemoryTree(algorithm="sha256").hash_empty() == ROOTS[0]
    for size in range(1, SIZES_MAX + 1):
        assert other.get_state(size) == ROOTS[size]
        for index in places(size, chance):
            found = NODES.walk(inclusion(index, size))
            assert other.prove_inclusion(index + 1, size).path == [LEAVES[index], *found]
            assert verify_inclusion(LEAVES[index], index, size, found, ROOTS[size])


def test_consistency_proofs_agree_with_pymerkles_for_all_sizes(other: InmemoryTree):
    """pymerkle proves with complete subtrees only, RFC 6962 with what they make up. So each proof is checked by the
    other side's own arithmetic."""
    chance = random.Random(2)
    for new in range(1, SIZES_MAX + 1):
        for old in {place + 1 for place in places(new, chance)}:
            theirs = other.prove_consistency(old, new)
            assert (theirs.retrieve_prior_state(), theirs.resolve()) == (ROOTS[old], ROOTS[new])
            found = NODES.walk(consistency(old, new))
            assert verify_consistency(old, new, ROOTS[old], ROOTS[new], found)
            pymerkle_verifies(ROOTS[old], ROOTS[new], as_pymerkle(old, new, found))


def as_pymerkle(old: int, new: int, found: list[bytes]) -> MerkleProof:
    """Where it begins, and on which side each of the following hashes stands."""
    sides = list(siblings(old, 0, new))
    # A whole old tree is not sent in RFC 6962: its root is known.
    hashes = found if len(found) > len(sides) else [ROOTS[old], *found]
    rule = [int(side == "left") for side in sides] + [0]
    subset = [1] + [int(side == "left") for side in sides]
    return MerkleProof("sha256", True, new, rule, subset, hashes)


def siblings(old: int, begin: int, end: int) -> Iterator[str]:
    if old == end:
        return
    middle = begin + split(end - begin)
    yield from siblings(old, begin, middle) if old <= middle else siblings(old, middle, end)
    yield "right" if old <= middle else "left"


# -- what a wrong proof is good for ----------------------------------------------------------------------------------


@given(st.data())
def test_a_changed_inclusion_proof_proves_nothing(data: st.DataObject):
    size = data.draw(st.integers(1, 200))
    index = data.draw(st.integers(0, size - 1))
    found = NODES.walk(inclusion(index, size))
    for changed in changes(data, found):
        assert not verify_inclusion(LEAVES[index], index, size, changed, ROOTS[size])
    assert not verify_inclusion(LEAVES[index + 1], index, size, found, ROOTS[size])
    assert not verify_inclusion(LEAVES[index], index, size, found, ROOTS[size + 1])
    # A size beside it may have a path of the same form; then the root is another one, and so it is not the same claim.
    elsewhere = data.draw(st.integers(-1, size + 1).filter(lambda other: other != index))
    assert not verify_inclusion(LEAVES[index], elsewhere, size, found, ROOTS[size])


@given(st.data())
def test_a_changed_consistency_proof_proves_nothing(data: st.DataObject):
    new = data.draw(st.integers(2, 200))
    old = data.draw(st.integers(1, new - 1))
    found = NODES.walk(consistency(old, new))
    for changed in changes(data, found):
        assert not verify_consistency(old, new, ROOTS[old], ROOTS[new], changed)
    assert not verify_consistency(old, new, ROOTS[old + 1], ROOTS[new], found)
    assert not verify_consistency(old, new, ROOTS[old], ROOTS[new + 1], found)
    assert not verify_consistency(new, old, ROOTS[new], ROOTS[old], found)


def changes(data: st.DataObject, found: list[bytes]) -> Iterator[list[bytes]]:
    stranger = hashlib.sha256(b"stranger").digest()
    place = data.draw(st.integers(0, len(found)))
    yield [*found[:place], stranger, *found[place:]]
    for at in range(len(found)):
        yield found[:at] + found[at + 1 :]
        yield [*found[:at], stranger, *found[at + 1 :]]


def test_sizes_that_are_none():
    one, two = ROOTS[1], ROOTS[2]
    assert not verify_inclusion(LEAVES[0], 0, 0, [], EMPTY_ROOT)
    assert not verify_inclusion(LEAVES[0], -1, 1, [], one)
    assert not verify_consistency(-1, 1, one, one, [])
    assert verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    assert verify_consistency(0, 2, EMPTY_ROOT, two, [])
    assert not verify_consistency(0, 2, one, two, [])
    assert not verify_consistency(0, 2, EMPTY_ROOT, two, [one])
    assert verify_consistency(2, 2, two, two, [])
    assert not verify_consistency(2, 2, two, two, [one])
    assert not verify_consistency(2, 2, two, one, [])
    assert not verify_consistency(1, 2, one, two, [])
    assert NODES.walk(consistency(0, 5)) == []


# -- the right edge --------------------------------------------------------------------------------------------------


@given(st.integers(0, 600), st.integers(0, 600))
def test_a_frontier_that_was_put_together_goes_on_like_one_that_grew(first: int, last: int):
    first, last = min(first, last), max(first, last)
    frontier = Frontier(first, [NODES(span) for span in spans(first)])
    assert frontier.root() == ROOTS[first]
    for entry in ENTRIES[first:last]:
        frontier.append(entry)
    assert (frontier.size, frontier.root()) == (last, ROOTS[last])
    assert frontier.subtrees == tuple(NODES(span) for span in spans(last))


def test_a_frontier_has_one_subtree_for_each_bit_of_its_size():
    with pytest.raises(AssertionError):
        Frontier(3, [ROOTS[2]])


def test_a_range_is_covered_from_left_to_right_by_the_fewest():
    assert cover(0, 7) == spans(7) == [Span(0, 4), Span(4, 6), Span(6, 7)]
    assert cover(8, 12) == [Span(8, 12)]
    assert spans(0) == []
