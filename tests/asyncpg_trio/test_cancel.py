"""Cancellation: the server is freed, the connection stays usable, and what is raised is a plain Cancelled."""

from __future__ import annotations

import time

import pytest
import trio

from relay.asyncpg_trio import Connection, ConnectionLost, connect
from tests.asyncpg_trio.proxy import open_proxy

SLEEPERS = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active' AND pid = $1"
# Its text is shown as active from the Parse message on; only this says that it is being executed.
ASLEEP = f"{SLEEPERS} AND wait_event = 'PgSleep'"


async def raw_cancellation(verb: object, after_seconds: float) -> BaseException:
    """Cancel `verb` and return what came out of it, before any scope could tidy it up."""
    out: list[BaseException] = []
    with trio.move_on_after(after_seconds):
        try:
            await verb()
        except BaseException as error:
            out.append(error)
            raise
    assert out, "it ended by itself"
    return out[0]


@pytest.mark.parametrize(
    "verb",
    [
        lambda con: con.fetch("SELECT pg_sleep(60)"),
        lambda con: con.fetch("SELECT pg_sleep(60), $1::int", 1),
        lambda con: con.execute("SELECT pg_sleep(60)"),
        lambda con: con.execute("SELECT pg_sleep(60) WHERE 1 = $1", 1),
        lambda con: con.fetchval("SELECT count(*) FROM generate_series(1, 3), pg_sleep(60)"),
    ],
)
async def test_the_server_is_freed_and_the_connection_stays(connection: Connection, other: Connection, verb: object):
    pid = connection.backend_pid
    for _ in range(2):  # the second time the statement is prepared already
        started = trio.current_time()
        raised = await raw_cancellation(lambda: verb(connection), 0.1)
        assert type(raised) is trio.Cancelled
        assert trio.current_time() - started < 1
        assert await other.fetchval(SLEEPERS, pid) == 0
        assert await connection.fetchval("SELECT pg_backend_pid()") == pid
        assert not connection.is_in_transaction()


async def test_cancelled_at_once_after_sending_the_request_may_overtake_the_query(
    connection: Connection, other: Connection
):
    for _ in range(30):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel_first(scope: trio.CancelScope = scope) -> None:
                    while not connection.is_busy:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel_first)
                await connection.fetchval("SELECT pg_sleep(60)")
        assert scope.cancelled_caught
        assert await connection.fetchval("SELECT $1::int", 7) == 7
    assert await other.fetchval(SLEEPERS, connection.backend_pid) == 0


async def test_cancelled_while_preparing_holds_no_lock_and_leaves_no_statement(
    connection: Connection, other: Connection
):
    await other.execute("CREATE TABLE t (a int)")
    async with other.transaction():
        await other.execute("LOCK TABLE t")
        raised = await raw_cancellation(lambda: connection.fetch("SELECT a FROM t"), 0.1)
    assert type(raised) is trio.Cancelled
    await other.execute("SET lock_timeout = '1s'")
    await other.execute("DROP TABLE t")
    assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%FROM t'") == 0


async def test_cancelled_between_prepare_and_execute_holds_no_lock_and_leaves_no_statement(
    connection: Connection, other: Connection
):
    """The answer to Parse is in the socket when Cancelled comes: the Execute, and its Sync, never go out.

    Now and then the answer is seen first and the Execute is cancelled instead; what must hold is the same.
    """
    for _ in range(5):
        await other.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel_after_the_answer(scope: trio.CancelScope = scope) -> None:
                    while not connection.is_busy:
                        await trio.lowlevel.checkpoint()
                    time.sleep(0.03)  # on purpose the whole thread: the server answers, Trio does not look
                    scope.cancel()

                nursery.start_soon(cancel_after_the_answer)
                # The sleep keeps the Execute, should it go out, from being over before the other task looks.
                await connection.fetch("SELECT a FROM t, pg_sleep(60)")
        assert scope.cancelled_caught
        await other.execute("SET lock_timeout = '1s'")
        await other.execute("DROP TABLE t")
        # Neither side knows a statement that the other does not.
        held = await connection.fetchval("SELECT count(*) FROM pg_prepared_statements")
        assert held == len(connection._statement_cache)


async def test_a_parameter_half_sent_is_finished_first(connection: Connection, other: Connection):
    """The write side is blocked: the server is still reading 32 MiB when we are cancelled."""
    pid = connection.backend_pid
    value = b"x" * (32 << 20)
    query = "SELECT length($1::bytea), pg_sleep(60)"
    with trio.move_on_after(0.1):
        await connection.fetch(query, b"")
    for after_seconds in (0.0005, 0.003, 0.006):
        raised = await raw_cancellation(lambda: connection.fetch(query, value), after_seconds)
        assert type(raised) is trio.Cancelled
        assert await other.fetchval(SLEEPERS, pid) == 0
        assert await connection.fetchval("SELECT pg_backend_pid()") == pid


async def test_a_blocked_write_raises_a_plain_cancelled(socket_path: str, empty_dsn: str):
    """The wait for readable *or* writable runs in a nursery of the wire's own, which raises groups."""
    async with open_proxy(socket_path) as proxy:
        connection = await connect(proxy.dsn(empty_dsn.split("/")[3].split("?")[0]), settle_seconds=0.2)
        assert await connection.fetchval("SELECT length($1::bytea)", b"x") == 1
        async with trio.open_nursery() as nursery:
            started = trio.current_time()
            proxy.stalled = True
            raised = await raw_cancellation(
                lambda: connection.fetchval("SELECT length($1::bytea)", b"x" * (64 << 20)), 0.2
            )
            nursery.cancel_scope.cancel()
        assert type(raised) is trio.Cancelled
        # Nothing could be brought to rest within settle_seconds, so the connection is gone.
        assert connection.is_closed()
        assert trio.current_time() - started < 1.5


async def test_a_server_that_does_not_react_costs_the_connection_after_the_grace(socket_path: str, empty_dsn: str):
    async with open_proxy(socket_path) as proxy:
        connection = await connect(proxy.dsn(empty_dsn.split("/")[3].split("?")[0]), settle_seconds=0.3)
        proxy.deaf_after = b"pg_sleep"
        started = trio.current_time()
        raised = await raw_cancellation(lambda: connection.fetchval("SELECT pg_sleep(60)"), 0.1)
        assert type(raised) is trio.Cancelled
        assert connection.is_closed()
        assert 0.3 < trio.current_time() - started < 1.5
        with pytest.raises(ConnectionLost):
            await connection.fetch("SELECT 1")


async def test_a_statement_that_cannot_be_interrupted_is_waited_for(connection: Connection):
    """An answer that comes during the grace is read and thrown away; the next question gets its own."""
    await connection.execute(
        "CREATE FUNCTION stubborn() RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN 1; "
        "EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(0.2); RETURN 2; END'"
    )
    await raw_cancellation(lambda: connection.fetchval("SELECT stubborn()"), 0.1)
    assert not connection.is_closed()
    assert await connection.fetchval("SELECT 3") == 3


async def test_terminate_while_another_task_waits(connection: Connection, other: Connection):
    async with trio.open_nursery() as nursery:

        async def victim() -> None:
            with pytest.raises(ConnectionLost):
                await connection.fetchval("SELECT pg_sleep(60)")

        nursery.start_soon(victim)
        while not await other.fetchval(ASLEEP, connection.backend_pid):
            await trio.sleep(0.005)
        connection.terminate()
        assert connection.is_closed()
    # No CancelRequest was sent: the server is still at it. (It looks awake for a moment while it handles a signal.)
    with trio.fail_after(2):
        while await other.fetchval(SLEEPERS, connection.backend_pid) != 1:
            await trio.sleep(0.005)
    # Clean up by hand.
    await other.fetchval("SELECT pg_terminate_backend($1)", connection.backend_pid)


async def test_terminate_while_another_task_waits_to_write(socket_path: str, empty_dsn: str):
    async with open_proxy(socket_path) as proxy:
        connection = await connect(proxy.dsn(empty_dsn.split("/")[3].split("?")[0]))
        await connection.fetchval("SELECT length($1::bytea)", b"x")
        proxy.stalled = True
        with trio.fail_after(2):
            async with trio.open_nursery() as nursery:

                async def victim() -> None:
                    with pytest.raises(ConnectionLost):
                        await connection.fetchval("SELECT length($1::bytea)", b"x" * (64 << 20))

                nursery.start_soon(victim)
                await trio.sleep(0.2)
                connection.terminate()
