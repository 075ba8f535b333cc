"""One connection to a fresh database with this version's schema."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from relay.asyncpg_trio import Connection, connect


@pytest.fixture
async def con(migrated_dsn: str) -> AsyncIterator[Connection]:
    found = await connect(migrated_dsn)
    yield found
    found.terminate()
