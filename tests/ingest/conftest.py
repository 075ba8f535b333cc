"""Admission on a database that nobody changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import trio

from relay.access.directory import Directory
from relay.asyncpg_trio import Pool
from relay.config import load
from relay.ingest.admit import Admitter
from tests.support.admission import NOW, RELAY, fill
from tests.support.postgres import PostgresServer


@pytest.fixture(scope="session")
def stocked_dsn(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """Admission changes nothing, so one database serves all its tests."""
    name = postgres_server.create_database(migrated_template)
    trio.run(fill, postgres_server.dsn(name))
    yield postgres_server.dsn(name)
    postgres_server.drop_database(name)


@pytest.fixture
async def admitter(stocked_dsn: str) -> AsyncIterator[Admitter]:
    settings = load({"database_url": stocked_dsn, "relay_url": "wss://team.example"})
    async with Pool(stocked_dsn, size_max=2, size_min=0) as pool:
        clock = partial(int, NOW * 1_000_000)
        yield Admitter(settings, Directory(pool, settings), pool, clock, relay_pubkey=RELAY.public_hex)
