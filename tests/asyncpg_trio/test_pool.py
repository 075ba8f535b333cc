"""The pool: limits, order, deadlines, ageing by a clock of the test's own, what is given back, and the end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from relay.asyncpg_trio import (
    ConnectFailed,
    Connection,
    ConnectionLost,
    Pool,
    PoolClosed,
    PoolTimeout,
    StatementTimeout,
    errors,
)
from tests.asyncpg_trio.proxy import open_proxy


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def pool(empty_dsn: str) -> AsyncIterator[Pool]:
    async with Pool(empty_dsn, size_max=3, size_min=1, acquire_seconds=0.2) as pool:
        yield pool
        pool.abort()


async def test_the_verbs_and_transactions_on_the_pool(pool: Pool):
    await pool.execute("CREATE TABLE t (a int)")
    async with pool.transaction() as connection:
        await connection.execute("INSERT INTO t VALUES ($1)", 1)
        assert await pool.fetchval("SELECT count(*) FROM t") == 0
    with pytest.raises(ZeroDivisionError):
        async with pool.transaction(isolation="serializable"):
            raise ZeroDivisionError
    with pytest.raises(errors.ReadOnlySQLTransactionError):
        async with pool.transaction(readonly=True) as connection:
            await connection.execute("INSERT INTO t VALUES (2)")
    assert await pool.fetch("SELECT a FROM t") == [(1,)]
    assert await pool.fetchrow("SELECT a FROM t") == (1,)
    assert await pool.fetchval("SELECT a, 2 FROM t", column=1) == 2
    assert pool.statistics().in_use == 0


async def test_statistics_and_the_statement_hook(empty_dsn: str):
    seen: list[str] = []
    async with Pool(empty_dsn, size_max=4, size_min=2, name="x", on_statement=seen.append) as pool:
        assert (pool.statistics().size, pool.statistics().opened_total) == (2, 2)
        async with pool.acquire() as first, pool.acquire(), pool.transaction():
            await first.fetch("SELECT 1")
            statistics = pool.statistics()
            assert (statistics.name, statistics.size, statistics.idle, statistics.in_use) == ("x", 3, 0, 3)
        await pool.fetch("SELECT 2")
        assert (pool.statistics().idle, pool.statistics().opened_total) == (3, 3)
    assert seen == ["SELECT 1", "SELECT 2"]
    assert pool.statistics().statements_total == 2
    assert pool.statistics().size == 0


async def test_last_in_first_out(pool: Pool):
    async with pool.acquire() as first:
        async with pool.acquire() as second:
            pass
        async with pool.acquire() as third:
            assert third is second
    async with pool.acquire() as fourth:
        assert fourth is first


async def test_no_more_than_size_max_and_a_deadline_for_those_in_line(pool: Pool):
    async with pool.acquire(), pool.acquire(), pool.acquire():
        started = trio.current_time()
        with pytest.raises(PoolTimeout, match="main"):
            await pool.fetch("SELECT 1")
        assert 0.15 < trio.current_time() - started < 1
    statistics = pool.statistics()
    assert (statistics.acquire_timeouts_total, statistics.waiting, statistics.size) == (1, 0, 3)
    assert statistics.wait_seconds_total >= 0.15
    assert await pool.fetchval("SELECT 1") == 1


async def test_a_statement_that_takes_too_long(empty_dsn: str):
    async with Pool(empty_dsn, size_max=1, statement_seconds=0.2) as pool:
        pid = await pool.fetchval("SELECT pg_backend_pid()")
        for verb in (pool.fetch, pool.fetchrow, pool.fetchval, pool.execute):
            started = trio.current_time()
            with pytest.raises(StatementTimeout, match=r"0\.2 s"):
                await verb("SELECT pg_sleep(60 + $1)", 1)
            assert trio.current_time() - started < 2
        assert pool.statistics().statement_timeouts_total == 4
        # The server was asked to stop, so the same session goes on.
        assert await pool.fetchval("SELECT pg_backend_pid()") == pid


async def test_a_block_has_no_deadline_but_its_own(empty_dsn: str):
    async with Pool(empty_dsn, size_max=1, statement_seconds=0.05) as pool:
        async with pool.acquire() as connection:
            await connection.fetch("SELECT pg_sleep(0.2)")
        async with pool.transaction() as connection:
            await connection.fetch("SELECT pg_sleep(0.2)")


async def test_the_wait_in_line_does_not_count_for_the_statement(empty_dsn: str):
    async with (
        Pool(empty_dsn, size_max=1, statement_seconds=0.2, acquire_seconds=5) as pool,
        trio.open_nursery() as nursery,
        pool.acquire(),
    ):
        nursery.start_soon(pool.fetchval, "SELECT 1")
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.3)  # of real time, which is the server's


async def test_a_caller_that_is_cancelled_is_no_timeout(empty_dsn: str):
    async with Pool(empty_dsn, size_max=1, statement_seconds=60) as pool:
        with trio.move_on_after(0.05) as scope:
            await pool.fetch("SELECT pg_sleep(60)")
        assert scope.cancelled_caught
        assert pool.statistics().statement_timeouts_total == 0


async def test_a_server_that_stops_answering_costs_the_connection(empty_dsn: str, socket_path: str):
    """No deadline of the server's can help here. Afterwards the pool opens a new one."""
    async with open_proxy(socket_path) as proxy:
        dsn = proxy.dsn(empty_dsn.partition("?")[0].rpartition("/")[2])
        async with Pool(dsn, size_max=1, size_min=1, statement_seconds=0.2, settle_seconds=0.1) as pool:
            assert await pool.fetchval("SELECT 1") == 1
            proxy.deaf = True
            started = trio.current_time()
            with pytest.raises(StatementTimeout):
                await pool.fetchval("SELECT 1")
            assert trio.current_time() - started < 2
            assert pool.statistics().size == 0
            proxy.deaf = False
            assert await pool.fetchval("SELECT 1") == 1


async def test_how_long_ago_nobody_got_a_connection(empty_dsn: str):
    clock = Clock()
    async with Pool(empty_dsn, size_max=1, acquire_seconds=0.02, clock=clock) as pool:
        assert pool.statistics().starved_seconds_ago == float("inf")
        async with pool.acquire():
            with pytest.raises(PoolTimeout):
                await pool.fetch("SELECT 1")
        clock.now += 7
        assert pool.statistics().starved_seconds_ago == 7


async def test_those_in_line_are_served_first_come_first_served(pool: Pool):
    order = []

    async def visitor(number: int) -> None:
        async with pool.acquire():
            order.append(number)

    async with trio.open_nursery() as nursery:
        # One slot only is contended for: tasks woken in the same turn would run in random order.
        pool._slots.acquire_nowait()
        pool._slots.acquire_nowait()
        async with pool.acquire():
            for number in range(5):
                nursery.start_soon(visitor, number)
                await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().waiting == 5
    pool._slots.release()
    pool._slots.release()
    assert order == [0, 1, 2, 3, 4]


async def test_cancelled_in_line_gives_up_its_place(pool: Pool):
    async with pool.acquire(), pool.acquire(), pool.acquire():
        with trio.move_on_after(0.02) as scope:
            await pool.fetch("SELECT 1")
        assert scope.cancelled_caught
        assert pool.statistics().waiting == 0
    async with pool.acquire(), pool.acquire(), pool.acquire():
        assert pool.statistics().in_use == 3


async def test_a_transaction_left_open_is_rolled_back_on_return(pool: Pool):
    await pool.execute("CREATE TABLE t (a int)")
    for broken in (False, True):
        async with pool.acquire() as connection:
            await connection.execute("BEGIN")
            await connection.execute("INSERT INTO t VALUES (1)")
            if broken:
                with pytest.raises(errors.PostgresError):
                    await connection.execute("SELECT 1/0")
        assert connection.is_at_rest()
        async with pool.acquire() as again:
            assert again is connection
            assert await again.fetchval("SELECT count(*) FROM t") == 0


async def test_cancelled_with_a_transaction_left_open(pool: Pool):
    with trio.CancelScope() as scope:
        async with pool.acquire() as connection:
            await connection.execute("BEGIN")
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert connection.is_at_rest()
    assert pool.statistics().idle == 1


async def test_given_back_while_a_child_still_uses_it(pool: Pool):
    async with trio.open_nursery() as nursery:

        async def child(connection: Connection) -> None:
            with pytest.raises(ConnectionLost):
                await connection.fetchval("SELECT pg_sleep(60)")

        async with pool.acquire() as connection:
            nursery.start_soon(child, connection)
            while not connection.is_busy:
                await trio.lowlevel.checkpoint()
    assert connection.is_closed()
    assert (pool.statistics().idle, pool.statistics().in_use) == (0, 0)


async def test_old_connections_are_replaced_and_long_idle_ones_closed(empty_dsn: str):
    clock = Clock()
    options = {"size_max": 3, "size_min": 1, "lifetime_seconds": 100, "idle_seconds": 10, "clock": clock}
    async with Pool(empty_dsn, **options) as pool:
        async with pool.acquire(), pool.acquire(), pool.acquire():
            pass
        clock.now += 9
        await pool.fetch("SELECT 1")
        assert pool.statistics().size == 3
        clock.now += 2
        await pool.fetch("SELECT 1")  # the two that slept 11 s go, the warm one stays
        assert pool.statistics().size == 1
        clock.now += 50
        await pool.fetch("SELECT 1")
        assert (pool.statistics().size, pool.statistics().opened_total) == (1, 3)
        clock.now += 50
        await pool.fetch("SELECT 1")  # 111 s old: replaced when it was to be lent
        assert (pool.statistics().size, pool.statistics().opened_total) == (1, 4)
        async with pool.acquire():
            clock.now += 101  # grows old while lent: closed when given back
        assert pool.statistics().size == 0


async def test_connections_that_died_while_idle_are_not_lent(pool: Pool):
    async with pool.acquire() as first, pool.acquire() as second, pool.acquire() as watcher:
        for victim in (first, second):
            await watcher.fetchval("SELECT pg_terminate_backend($1)", victim.backend_pid)
        with trio.fail_after(2):
            while first.is_alive() or second.is_alive():
                await trio.sleep(0.005)
    async with pool.acquire() as one, pool.acquire() as two, pool.acquire() as three:
        for connection in (one, two, three):
            assert await connection.fetchval("SELECT 1") == 1
    assert pool.statistics().opened_total == 5


async def test_a_notice_in_an_idle_socket_is_no_sign_of_death(pool: Pool):
    async with pool.acquire() as listener, pool.acquire() as sender:
        await listener.command("LISTEN c")
        await sender.execute("NOTIFY c")
        with trio.fail_after(2):
            await trio.lowlevel.wait_readable(listener._wire.sock)
        assert listener.is_alive()
        assert await listener.fetchval("SELECT 1") == 1


async def test_a_connection_that_died_in_use_does_not_come_back(pool: Pool):
    with pytest.raises(ConnectionLost):
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")
    assert pool.statistics().size == 0
    assert await pool.fetchval("SELECT 1") == 1


async def test_no_server_frees_the_slot(empty_dsn: str):
    pool = Pool(empty_dsn.replace("host=", "host=/nowhere"), size_max=1, acquire_seconds=0.5)
    for _ in range(3):
        with pytest.raises(ConnectFailed):
            await pool.fetch("SELECT 1")
    with pytest.raises(ConnectFailed):
        await pool.open()
    assert pool.statistics().in_use == 0


async def test_a_server_that_never_answers_counts_as_an_acquire_timeout(nursery: trio.Nursery):
    async def swallow(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    listeners = await nursery.start(trio.serve_tcp, swallow, 0)
    port = listeners[0].socket.getsockname()[1]
    pool = Pool(f"postgresql://127.0.0.1:{port}/x?sslmode=disable", size_max=1, acquire_seconds=0.2)
    for _ in range(2):
        with pytest.raises(PoolTimeout):
            await pool.fetch("SELECT 1")
    assert pool.statistics().acquire_timeouts_total == 2
    nursery.cancel_scope.cancel()


async def test_closing_waits_for_what_is_lent_and_refuses_the_rest(pool: Pool):
    async with trio.open_nursery() as nursery, pool.acquire() as connection:
        nursery.start_soon(pool.aclose)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(PoolClosed):
            await pool.fetch("SELECT 1")
        assert await connection.fetchval("SELECT 1") == 1
    assert connection.is_closed()
    assert pool.statistics().size == 0


async def test_those_in_line_when_it_closes_are_refused(pool: Pool):
    async def visitor() -> None:
        with pytest.raises(PoolClosed):
            await pool.fetch("SELECT 1")

    async with trio.open_nursery() as nursery, pool.acquire(), pool.acquire(), pool.acquire():
        nursery.start_soon(visitor)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(pool.close)
        await trio.testing.wait_all_tasks_blocked()


async def test_abort_ends_everything_at_once(pool: Pool):
    async def user() -> None:
        with pytest.raises(ConnectionLost):
            await pool.fetch("SELECT pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(user)
        nursery.start_soon(user)
        while pool.statistics().in_use < 2:
            await trio.sleep(0.005)
        await trio.testing.wait_all_tasks_blocked()
        with trio.testing.assert_no_checkpoints():
            pool.abort()
    assert pool.statistics().size == 0
    with pytest.raises(PoolClosed):
        await pool.execute("SELECT 1")


async def test_closing_gives_up_waiting_when_cancelled(pool: Pool):
    async with pool.acquire() as connection:
        with trio.move_on_after(0.05):
            await pool.aclose()
        assert connection.is_closed()


@pytest.mark.parametrize(("low", "high"), [(-1, 2), (0, 0)])
def test_senseless_sizes(low: int, high: int):
    with pytest.raises(ValueError, match="makes no sense"):
        Pool("postgresql://", size_min=low, size_max=high)
