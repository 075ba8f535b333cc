"""Death and return of the server: a killed backend, a killed postmaster, a pool that comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from relay.asyncpg_trio import (
    CommitOutcomeUnknown,
    ConnectFailed,
    Connection,
    ConnectionLost,
    Pool,
    PoolTimeout,
    connect,
    connect_retrying,
    driver,
    errors,
)
from tests.asyncpg_trio.cluster import Cluster
from tests.asyncpg_trio.proxy import open_proxy

# Older versions of asyncpg forget the FATAL error that preceded the end of the stream.
KEEPS_LAST_WORDS = tuple(map(int, driver.asyncpg.__version__.split(".")[:2])) >= (0, 32)
DEATHS = (ConnectionLost, CommitOutcomeUnknown, PoolTimeout)


@pytest.fixture
def mortal() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.stop()


@pytest.mark.parametrize(
    "verb",
    [
        lambda con: con.fetch("SELECT pg_sleep(60)"),
        lambda con: con.fetchval("SELECT pg_sleep(60), $1::int", 1),
        lambda con: con.execute("SELECT pg_sleep(60)"),
    ],
)
async def test_a_backend_killed_in_a_query(connection: Connection, other: Connection, verb: object):
    async def kill() -> None:
        while not await other.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'", connection.backend_pid
        ):
            await trio.sleep(0.005)
        await other.fetchval("SELECT pg_terminate_backend($1)", connection.backend_pid)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        with pytest.raises(ConnectionLost) as caught:
            await verb(connection)
    if KEEPS_LAST_WORDS:
        assert errors.sqlstate(caught.value) == "57P01"
        assert "administrator" in str(caught.value)
    assert connection.is_closed()
    with pytest.raises(ConnectionLost):
        await connection.fetch("SELECT 1")


@pytest.mark.parametrize("size", [1, 5_000_000])
async def test_a_backend_killed_while_idle_is_noticed_by_the_next_verb(
    connection: Connection, other: Connection, size: int
):
    await connection.fetchval("SELECT length($1::bytea)", b"")
    await other.fetchval("SELECT pg_terminate_backend($1)", connection.backend_pid)
    with trio.fail_after(2):
        while connection.is_alive():
            await trio.sleep(0.005)
        with pytest.raises(ConnectionLost) as caught:
            await connection.fetchval("SELECT length($1::bytea)", b"x" * size)
    assert caught.value.__cause__ is not None
    if KEEPS_LAST_WORDS:  # although the question itself could not be sent any more
        assert errors.sqlstate(caught.value) == "57P01"


async def test_a_backend_killed_inside_a_transaction_block(connection: Connection, other: Connection):
    with pytest.raises(ConnectionLost):  # noqa: PT012
        async with connection.transaction():
            await other.fetchval("SELECT pg_terminate_backend($1)", connection.backend_pid)
            await connection.fetch("SELECT pg_sleep(60)")
    assert connection.is_closed()


async def test_the_postmaster_is_killed_under_load_and_the_pool_recovers(mortal: Cluster):
    (await connect(mortal.dsn())).terminate()
    wrong: list[object] = []
    deaths = 0
    answers_after = 0
    revived = trio.Event()

    async def user(pool: Pool, number: int) -> None:
        nonlocal deaths, answers_after
        question = number
        while answers_after < 200:
            question += 1000
            back = revived.is_set()
            try:
                if question % 2000 == number:
                    answer = await pool.fetchval("SELECT $1::int", question)
                else:
                    async with pool.transaction() as connection:
                        answer = await connection.fetchval("SELECT $1::int FROM pg_sleep(0.001)", question)
            except DEATHS:
                deaths += 1
                await trio.sleep(0.005)
                continue
            if answer != question:
                wrong.append((question, answer))
            answers_after += back

    async with Pool(mortal.dsn(), size_max=5, acquire_seconds=1) as pool:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(user, pool, number)
                await trio.sleep(0.2)
                mortal.kill()
                while not deaths:
                    await trio.sleep(0.005)
                await trio.to_thread.run_sync(mortal.revive)
                revived.set()
        assert wrong == []
        assert pool.statistics().size <= 5
        assert pool.statistics().in_use == 0


async def test_while_it_is_down_and_when_it_is_back(mortal: Cluster):
    async with Pool(mortal.dsn(), size_max=2, acquire_seconds=1) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        mortal.kill()
        with trio.fail_after(5):
            while True:
                try:
                    await pool.fetch("SELECT 1")
                except ConnectFailed as error:
                    if isinstance(error.__cause__, ConnectionRefusedError):
                        break
                except ConnectionLost:
                    pass
                await trio.sleep(0.01)
        assert pool.statistics().size == 0
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await (await connect_retrying(mortal.dsn(), within_seconds=20)).close()

            nursery.start_soon(wait)
            await trio.to_thread.run_sync(mortal.revive)
        assert await pool.fetchval("SELECT 1") == 1


async def test_a_server_restarted_while_everything_was_idle_costs_no_user_an_error(mortal: Cluster):
    async with Pool(mortal.dsn(), size_max=3, size_min=3) as pool:
        mortal.kill()
        await trio.to_thread.run_sync(mortal.revive)
        for number in range(5):
            assert await pool.fetchval("SELECT $1::int", number) == number
        assert pool.statistics().opened_total == 4


async def test_a_verb_that_is_not_answered_in_time_ends_the_session(empty_dsn: str, socket_path: str):
    """For tasks that own a connection: a server that hangs is as good as one that is gone."""
    async with open_proxy(socket_path) as proxy:
        dsn = proxy.dsn(empty_dsn.partition("?")[0].rpartition("/")[2])
        connection = await connect(dsn, answer_seconds=0.2, settle_seconds=0.1)
        assert await connection.fetchval("SELECT 1") == 1
        transaction = connection.transaction()
        await transaction.__aenter__()
        proxy.deaf = True
        with pytest.raises(ConnectionLost, match=r"within 0\.2 s"):
            await connection.execute("SELECT $1::int", 1)
        assert connection.is_closed()


async def test_a_verb_that_the_server_can_still_stop_ends_the_session_too(empty_dsn: str):
    """It is not used again: whoever set this limit has told the server a shorter one."""
    connection = await connect(empty_dsn, answer_seconds=0.1)
    with pytest.raises(ConnectionLost, match="no answer"):
        await connection.fetchval("SELECT pg_sleep(60)")
    assert connection.is_closed()
