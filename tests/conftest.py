"""Fixtures that every part of the tree shares: one real PostgreSQL a run, one fresh database a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from relay.asyncpg_trio import connect
from relay.store.migrate import up
from tests.support.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture
def empty_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of a fresh, empty database of the run's server (Unix socket, trust)."""
    name = postgres_server.create_database()
    yield postgres_server.dsn(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """A database with every migration applied, to be copied: cheaper than migrating for each test."""
    name = postgres_server.create_database()

    async def migrate() -> None:
        con = await connect(postgres_server.dsn(name))
        await up(con)
        con.terminate()

    trio.run(migrate)
    for _ in range(100):  # the template must have no session left
        if postgres_server.psql("postgres", f"select count(*) from pg_stat_activity where datname='{name}'") == "0":
            break
    return name


@pytest.fixture
def migrated_dsn(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """The address of a fresh database with the schema of this version."""
    name = postgres_server.create_database(migrated_template)
    yield postgres_server.dsn(name)
    postgres_server.drop_database(name)
