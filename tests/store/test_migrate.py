"""Migrations: in order, once, by one at a time, and never over a changed or newer schema."""

from __future__ import annotations

import re
import uuid

import pytest
import trio

from relay.asyncpg_trio import connect
from relay.errors import MigrationError
from relay.store.migrate import migrations, status, up


async def test_up_applies_everything_once(empty_dsn: str) -> None:
    con = await connect(empty_dsn)
    assert {entry.state for entry in await status(con)} == {"pending"}
    names = [f"{migration.number:04}_{migration.name}" for migration in migrations()]
    assert await up(con) == names
    assert await up(con) == []
    assert {entry.state for entry in await status(con)} == {"applied"}
    con.terminate()


async def test_several_nodes_start_at_once(empty_dsn: str) -> None:
    applied = []

    async def start() -> None:
        con = await connect(empty_dsn)
        applied.extend(await up(con))
        con.terminate()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(start)
    assert len(applied) == len(migrations())


async def test_a_database_in_another_encoding_stops_the_start(empty_dsn: str) -> None:
    con = await connect(empty_dsn)
    name = f"latin_{uuid.uuid4().hex[:8]}"
    await con.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        other = await connect(re.sub(r"/[^/?]*\?", f"/{name}?", empty_dsn, count=1))
        with pytest.raises(MigrationError, match="the database is encoded in LATIN1"):
            await up(other)
        other.terminate()
    finally:
        await con.execute(f"DROP DATABASE {name} WITH (FORCE)")
        con.terminate()


async def test_a_changed_file_stops_the_start(migrated_dsn: str) -> None:
    con = await connect(migrated_dsn)
    await con.execute("UPDATE schema_migrations SET checksum = 'other' WHERE number = 1")
    assert (await status(con))[0].state == "changed"
    with pytest.raises(MigrationError, match="0001 core was changed after it was applied"):
        await up(con)
    con.terminate()


async def test_a_newer_schema_stops_the_start(migrated_dsn: str) -> None:
    con = await connect(migrated_dsn)
    await con.execute("INSERT INTO schema_migrations (number, name, checksum) VALUES (9999, 'future', 'x')")
    with pytest.raises(MigrationError, match="9999 future, which this version does not know"):
        await up(con)
    assert [entry.state for entry in await status(con)][-1] == "unknown"
    con.terminate()


async def test_a_failing_file_leaves_nothing_behind(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from relay.asyncpg_trio.errors import PostgresError
    from relay.store import migrate

    broken = [
        *migrations(),
        migrate.Migration(len(migrations()) + 1, "broken", "CREATE TABLE half (x int); SELECT 1/0"),
    ]
    monkeypatch.setattr(migrate, "migrations", lambda: broken)
    con = await connect(empty_dsn)
    with pytest.raises(PostgresError):
        await up(con)
    assert await con.fetchval("SELECT to_regclass('half')") is None
    assert await con.fetchval("SELECT count(*) FROM schema_migrations") == len(broken) - 1
    # The lock is free again: the next attempt does not hang.
    with trio.fail_after(5), pytest.raises(PostgresError):
        await up(con)
    con.terminate()
