"""Real races: hold a row from outside until everybody waits for it, then let go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from relay.asyncpg_trio import Connection, connect
from tests.support.core import Core

_WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"""


@asynccontextmanager
async def held(core: Core, query: str, *arguments: Any) -> AsyncIterator[Connection]:
    """Keeps the locks that the query takes for as long as the body runs; more may be taken on the connection."""
    con = await connect(core.dsn)
    try:
        async with con.transaction():
            assert await con.fetch(query, *arguments), "nothing to hold"
            yield con
    finally:
        con.terminate()


async def waiting(core: Core, count: int) -> None:
    """Returns when that many transactions wait for a lock."""
    with trio.fail_after(30):
        while await core.pool.fetchval(_WAITING) < count:
            await trio.sleep(0.005)
