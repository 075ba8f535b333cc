"""One relay without a port for each test; requests go through the ASGI app."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.http import Rig, running


@pytest.fixture
async def rig(migrated_dsn: str) -> AsyncIterator[Rig]:
    async with running(migrated_dsn) as found:
        yield found
