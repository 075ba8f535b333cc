from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from relay.asyncpg_trio import Pool


@pytest.fixture
async def pool(migrated_dsn: str) -> AsyncIterator[Pool]:
    async with Pool(migrated_dsn, size_min=1) as opened:
        yield opened
