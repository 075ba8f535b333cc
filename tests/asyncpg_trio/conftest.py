"""Fixtures of the driver's tests: sessions on the shared server, and a cluster of one's own to configure and kill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from relay.asyncpg_trio import Connection, connect
from tests.asyncpg_trio.cluster import Cluster
from tests.support.postgres import PostgresServer


@pytest.fixture
async def connection(empty_dsn: str) -> AsyncIterator[Connection]:
    con = await connect(empty_dsn)
    yield con
    con.terminate()


@pytest.fixture
async def other(empty_dsn: str) -> AsyncIterator[Connection]:
    """A second session on the same database, to look at the first from outside."""
    con = await connect(empty_dsn)
    yield con
    con.terminate()


@pytest.fixture
def socket_path(postgres_server: PostgresServer) -> str:
    return str(postgres_server.base / ".s.PGSQL.5432")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server with passwords on TCP, trust on its Unix socket."""
    server = Cluster()
    yield server
    server.stop()
