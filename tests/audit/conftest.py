"""A fresh database with the audit tables, and a pool on it."""

from __future__ import annotations

from pathlib import Path

import pytest

import relay.store
from relay.asyncpg_trio import Pool, connect

MIGRATIONS = Path(relay.store.__file__).parent / "migrations"
MIGRATION = MIGRATIONS / "0002_audit.sql"
CHECKPOINTS = MIGRATIONS / "0009_checkpoints.sql"


@pytest.fixture
async def con(empty_dsn):
    connection = await connect(empty_dsn)
    await connection.execute(MIGRATION.read_text())
    await connection.execute(CHECKPOINTS.read_text())
    yield connection
    connection.terminate()


@pytest.fixture
async def pool(con, empty_dsn):
    async with Pool(empty_dsn, size_min=1, size_max=5, name="audit") as opened:
        yield opened
