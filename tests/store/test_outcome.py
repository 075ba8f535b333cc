"""What became of a transaction: asked by its id, believed only with the trace that it leaves behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
import trio

from relay.asyncpg_trio import Connection, connect
from relay.store.outcome import committed
from relay.store.own_connection import OwnConnection

HAS_ASKED = """
SELECT count(*) FROM pg_stat_activity
WHERE query LIKE '%pg_xact_status%' AND pid <> pg_backend_pid() AND datname = current_database()
"""
TRACE = "aaaaaaaa-1111-4111-8111-111111111111"

Asked = Callable[[int, str | None], Awaitable[bool]]


@pytest.fixture
async def con(migrated_dsn: str) -> AsyncIterator[Connection]:
    connection = await connect(migrated_dsn)
    yield connection
    connection.terminate()


@pytest.fixture
async def asked(migrated_dsn: str) -> AsyncIterator[Asked]:
    own = OwnConnection(partial(connect, migrated_dsn), name="test", patience_seconds=3)
    yield partial(committed, own)
    own.close()


async def _xid(con: Connection) -> int:
    return int(await con.fetchval("SELECT pg_current_xact_id()::text"))


async def _leave_trace(con: Connection) -> None:
    await con.execute("INSERT INTO audit_outbox (uuid, time_us, action, metadata) VALUES ($1, 1, 'x', '{}')", TRACE)


async def _move_to_log(con: Connection) -> None:
    async with con.transaction():
        await con.execute("DELETE FROM audit_outbox")
        await con.execute(
            "INSERT INTO audit_log (seq, uuid, time_us, action, metadata, version, prev_hash, hash) "
            "VALUES (1, $1, 1, 'x', '{}', 2, decode(repeat('00', 32), 'hex'), decode(repeat('01', 32), 'hex'))",
            TRACE,
        )


async def test_a_committed_transaction_is_known_by_its_trace_in_the_outbox_and_later_in_the_log(con, asked):
    async with con.transaction():
        xid = await _xid(con)
        await _leave_trace(con)
    assert await asked(xid, TRACE)
    await _move_to_log(con)
    assert await asked(xid, TRACE)


async def test_a_transaction_that_was_rolled_back_is_not_committed(con, asked):
    await con.execute("BEGIN")
    xid = await _xid(con)
    await _leave_trace(con)
    await con.execute("ROLLBACK")
    assert not await asked(xid, TRACE)


async def test_an_id_that_the_crashed_server_has_forgotten_is_not_waited_for(con, asked):
    """What a killed server had not written yet is gone with the ids it was done under: they lie in the future again."""
    xid = await _xid(con)
    with trio.fail_after(5):
        assert not await asked(xid + 1000, TRACE)


async def test_an_id_that_another_transaction_got_after_the_crash_proves_nothing(con, asked):
    """The server says "committed" of whoever had the id last; without our trace it was not us."""
    xid = await _xid(con)
    assert await con.fetchval("SELECT pg_xact_status($1::text::xid8)", str(xid)) == "committed"
    assert not await asked(xid, TRACE)


async def test_what_left_no_trace_may_be_done_again(con, asked):
    assert not await asked(await _xid(con), None)


async def test_a_transaction_that_goes_on_without_us_is_waited_for(con, migrated_dsn, asked):
    other = await connect(migrated_dsn)
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await asked(xid, TRACE))

    async with trio.open_nursery() as nursery, con.transaction():
        xid = await _xid(con)
        await _leave_trace(con)
        nursery.start_soon(ask)
        with trio.fail_after(5):
            while not await other.fetchval(HAS_ASKED):
                await trio.sleep(0.01)
        assert answers == []
    assert answers == [True]
    other.terminate()
