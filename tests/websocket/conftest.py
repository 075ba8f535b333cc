"""The relay of the WebSocket tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.relay import RelayUnderTest, serving


@pytest.fixture
async def relay(migrated_dsn: str) -> AsyncIterator[RelayUnderTest]:
    async with serving(migrated_dsn) as running:
        yield running
