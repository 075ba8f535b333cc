"""The tree in the database: as in memory at every size, few rows a proof, and nothing that needs a stored node."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio

from relay.asyncpg_trio import Connection, connect
from relay.audit import tree_store
from relay.audit.tree import Frontier, leaf_hash, verify_consistency, verify_inclusion
from relay.errors import AuditError, ChainTruncated
from tests.support.audit_log import grow, root_of_rows, unprotect
from tests.support.postgres import PostgresServer

# One node of level 16, one row more than a node of level 8 behind it, and some rows.
SIZE = 65_536 + 256 + 7
# Two sets of up to 255 leaves and two of up to 255 nodes of level 8; above these, a tree of this size has one node.
ROWS_MAX = 4 * 255 + 1
SIZES = (0, 1, 2, 255, 256, 257, 511, 4096, 65_535, 65_536, 65_537, 65_792, SIZE)

_ROWS = """
INSERT INTO audit_log SELECT seq, gen_random_uuid(), 1, 'event_created', NULL, NULL, NULL, NULL, '{}', 2,
    sha256(int8send(seq - 1)), sha256(int8send(seq)), NULL FROM generate_series(1, %d) AS seq
"""


def entry_hash(seq: int) -> bytes:
    return hashlib.sha256(seq.to_bytes(8)).digest()


@pytest.fixture(scope="module")
def roots() -> dict[int, bytes]:
    """The roots at all sizes, as they grow in memory."""
    frontier = Frontier()
    found = {0: frontier.root()}
    for seq in range(1, SIZE + 1):
        frontier.append(entry_hash(seq))
        found[seq] = frontier.root() if seq in SIZES or seq % 64 == 5 else b""
    return {size: root for size, root in found.items() if root}


@pytest.fixture(scope="module")
def large_dsn(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """A database with a log of `SIZE` rows: their hashes are those of their numbers, which is all that counts here."""
    name = postgres_server.create_database(migrated_template)
    postgres_server.psql(name, _ROWS % SIZE + "; ANALYZE audit_log")
    yield postgres_server.dsn(name)
    postgres_server.drop_database(name)


@pytest.fixture
async def large(large_dsn: str) -> AsyncIterator[Connection]:
    con = await connect(large_dsn)
    yield con
    con.terminate()


@pytest.fixture
async def small(migrated_dsn: str) -> AsyncIterator[Connection]:
    con = await connect(migrated_dsn)
    yield con
    con.terminate()


class Counted:
    """A connection that counts what is fetched."""

    def __init__(self, con: Connection) -> None:
        self._con = con
        self.statements = 0
        self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        found = await self._con.fetch(query, *args)
        self.statements += 1
        self.rows += len(found)
        return found


async def nodes(con: Connection) -> set[tuple[int, int, bytes]]:
    rows = await con.fetch("SELECT level, index, hash FROM audit_tree")
    return {(row["level"], row["index"], row["hash"]) for row in rows}


async def check_roots(con: Connection, roots: dict[int, bytes], sizes: tuple[int, ...] = SIZES) -> None:
    for size in sizes:
        frontier = await tree_store.frontier_at(con, size)
        assert (frontier.size, frontier.root()) == (size, roots[size])


async def test_filled_or_not_the_roots_are_those_of_the_rows(large: Connection, roots: dict[int, bytes]):
    await tree_store.clear(large)
    await check_roots(large, roots)
    told: list[tuple[int, int]] = []
    assert await tree_store.fill(large, SIZE, progress=lambda done, of: told.append((done, of))) == 257 + 1
    assert told[-1] == (257 * 256, SIZE)
    made = await nodes(large)
    assert {(level, index) for level, index, _ in made} == {(8, index) for index in range(257)} | {(16, 0)}
    await check_roots(large, roots)
    assert await tree_store.fill(large, SIZE) == 0
    assert await nodes(large) == made
    # Bit by bit it becomes the same.
    await tree_store.clear(large)
    assert [await tree_store.fill(large, size) for size in (0, 255, 256, 65_535, SIZE)] == [0, 0, 1, 254, 3]
    assert await nodes(large) == made


async def test_proofs_at_any_size_for_two_statements_and_a_thousand_rows(large: Connection, roots: dict[int, bytes]):
    await tree_store.fill(large, SIZE)
    chance = random.Random(5)
    for size in [*chance.sample([size for size in roots if size], 60), 65_535, 65_536, 65_537, SIZE, 1]:
        for seq in {1, size, chance.randint(1, size)}:
            counted: Any = Counted(large)
            path = await tree_store.inclusion_path(counted, seq, size)
            assert verify_inclusion(leaf_hash(entry_hash(seq)), seq - 1, size, path, roots[size])
            assert counted.statements <= 2
            assert counted.rows <= ROWS_MAX
        old = chance.choice([each for each in roots if each <= size])
        counted = Counted(large)
        path = await tree_store.consistency_path(counted, old, size)
        assert verify_consistency(old, size, roots[old], roots[size], path)
        assert counted.statements <= 2
        assert counted.rows <= ROWS_MAX


async def test_what_was_removed_is_made_again(large: Connection, roots: dict[int, bytes]):
    await tree_store.fill(large, SIZE)
    made = await nodes(large)
    removals = [
        "level = 16",
        "level = 8 AND index IN (0, 1)",
        "level = 8 AND index = 100",
        "level = 8 AND index >= 250",
        "level = 16 OR index % 7 = 3",
    ]
    for removed in removals:
        await large.execute(f"DELETE FROM audit_tree WHERE {removed}")
        await check_roots(large, roots, (65_536, SIZE))
        await tree_store.fill(large, SIZE)
        assert await nodes(large) == made
    # A row in a place that a tree of this size does not have is no reason to leave others out.
    await large.execute("DELETE FROM audit_tree WHERE index = 200")
    await large.execute("INSERT INTO audit_tree VALUES (8, 1000000, $1)", bytes(32))
    await tree_store.fill(large, SIZE)
    await large.execute("DELETE FROM audit_tree WHERE index = 1000000")
    assert await nodes(large) == made


async def test_two_that_fill_at_once(large: Connection, large_dsn: str, roots: dict[int, bytes]):
    await tree_store.clear(large)
    other = await connect(large_dsn)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree_store.fill, large, SIZE)
        nursery.start_soon(tree_store.fill, other, SIZE)
    other.terminate()
    assert len(await nodes(large)) == 258
    await check_roots(large, roots)


async def test_extending_looks_at_no_stored_node(large: Connection, roots: dict[int, bytes]):
    await tree_store.fill(large, SIZE)
    frontier = await tree_store.frontier_at(large, 4096)
    await large.execute("UPDATE audit_tree SET hash = $1 WHERE index > 15 OR level = 16", bytes(32))
    for size in (4096, 65_536, SIZE):
        await tree_store.extend(large, frontier, size)
        assert frontier.root() == roots[size]
    # What is made from them is another thing: hence whoever gives it out compares it with a signed root.
    assert await tree_store.root_at(large, SIZE) != roots[SIZE]
    await tree_store.clear(large)


@pytest.mark.parametrize("steps", [(65_536, SIZE), (255, 256, 300, 2048, 2049, 9000, 65_535, SIZE), (SIZE,)])
async def test_what_extending_stores_is_what_filling_makes(
    large: Connection, roots: dict[int, bytes], steps: tuple[int, ...]
):
    await tree_store.clear(large)
    frontier = Frontier()
    for size in steps:
        await tree_store.extend(large, frontier, size, store=True)
        await tree_store.fill(large, size)
    assert frontier.root() == roots[SIZE]
    stored = await nodes(large)
    await tree_store.clear(large)
    await tree_store.fill(large, SIZE)
    assert stored == await nodes(large)


async def test_extending_that_is_stopped_leaves_a_frontier_of_the_log(large: Connection, roots: dict[int, bytes]):
    frontier = Frontier()
    with trio.CancelScope() as scope:

        class Stopping(Counted):
            async def fetch(self, query: str, *args: Any) -> list[Any]:
                if self.statements == 3:
                    scope.cancel()
                return await super().fetch(query, *args)

        stopping: Any = Stopping(large)
        await tree_store.extend(stopping, frontier, SIZE)
    assert scope.cancelled_caught
    assert 0 < frontier.size < SIZE
    await tree_store.extend(large, frontier, SIZE)
    assert frontier.root() == roots[SIZE]


async def test_rows_that_are_missing_are_named(small: Connection):
    rows = await grow(small, 600)
    assert await tree_store.root_at(small, 600) == root_of_rows(rows)
    with pytest.raises(ChainTruncated, match=r"has no row 5 of seq 601 to 605$"):
        await tree_store.root_at(small, 605)
    with pytest.raises(ChainTruncated, match=r"has no row seq 601$"):
        await tree_store.extend(small, await tree_store.frontier_at(small, 600), 601)
    await unprotect(small)
    await small.execute("DELETE FROM audit_log WHERE seq = 300")
    with pytest.raises(ChainTruncated, match=r"has no row seq 300$"):
        await tree_store.fill(small, 600)
    assert {(level, index) for level, index, _ in await nodes(small)} == set()
    with pytest.raises(ChainTruncated, match=r"has no row seq 300$"):
        await tree_store.inclusion_path(small, 299, 600)
    await tree_store.fill(small, 299)
    with pytest.raises(ChainTruncated, match=r"has no row seq 300$"):
        await tree_store.consistency_path(small, 256, 600)


async def test_a_row_without_a_whole_hash_is_named(small: Connection):
    await grow(small, 3)
    await unprotect(small)
    await small.execute("UPDATE audit_log SET hash = $1 WHERE seq = 2", b"short")
    with pytest.raises(AuditError, match="seq 2 of the audit log has no hash of 32 bytes"):
        await tree_store.root_at(small, 3)
