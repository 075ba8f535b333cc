"""A real database with a pool on it, and keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from relay.asyncpg_trio import Connection, Pool, connect


@dataclass
class Store:
    """`statements` grows with every Execute of the pool; `con` is beside it and not counted."""

    pool: Pool
    con: Connection
    statements: list[str]


@pytest.fixture
async def store(migrated_dsn: str) -> AsyncIterator[Store]:
    statements: list[str] = []
    con = await connect(migrated_dsn)
    async with Pool(migrated_dsn, size_max=4, size_min=1, on_statement=statements.append) as pool:
        yield Store(pool, con, statements)
    con.terminate()
