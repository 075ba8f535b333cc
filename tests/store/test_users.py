"""Users as rows: made once, owned once, on the list or not."""

from __future__ import annotations

import trio

from relay.asyncpg_trio import Connection, connect
from relay.store import users

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32


async def test_ensure_makes_what_is_missing(con: Connection) -> None:
    await users.ensure(con, [A])
    await con.execute("UPDATE users SET display_name = 'Ada'")
    await users.ensure(con, [B, A, B])
    rows = await con.fetch("SELECT encode(pubkey, 'hex'), display_name FROM users ORDER BY 1")
    assert [tuple(row) for row in rows] == [(A, "Ada"), (B, None)]
    assert await con.execute("SELECT 1") is not None
    await users.ensure(con, [])


async def test_ensure_by_two_at_once(con: Connection, migrated_dsn: str) -> None:
    """The second one waits for the first one's row and goes on without an error."""
    second = await connect(migrated_dsn)
    async with trio.open_nursery() as nursery, con.transaction():
        await users.ensure(con, [A])
        nursery.start_soon(users.ensure, second, [A])
        while not await con.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            await trio.sleep(0.01)
    second.terminate()
    assert await con.fetchval("SELECT count(*) FROM users") == 1


async def test_the_first_owner_stays(con: Connection) -> None:
    await users.ensure(con, [A, B, C])
    assert await users.owner(con, A) is None
    assert await users.set_owner(con, A, B)
    assert await users.set_owner(con, A, B)
    assert not await users.set_owner(con, A, C)
    assert await users.owner(con, A) == B
    assert await users.owner(con, "dd" * 32) is None


async def test_the_allow_list(con: Connection) -> None:
    await con.execute("INSERT INTO pubkey_allowlist (pubkey) VALUES ($1)", bytes.fromhex(A))
    assert await users.is_allowed(con, A)
    assert not await users.is_allowed(con, B)
