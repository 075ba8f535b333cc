"""Transactions: commit, rollback, savepoints, cancellation at each step, and a line that dies around COMMIT."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from relay.asyncpg_trio import CommitOutcomeUnknown, Connection, ConnectionLost, connect, errors
from tests.asyncpg_trio.proxy import open_proxy


async def rows(connection: Connection) -> list[int]:
    return [row["a"] for row in await connection.fetch("SELECT a FROM t ORDER BY a")]


@pytest.fixture
async def table(connection: Connection) -> None:
    await connection.execute("CREATE TABLE t (a int PRIMARY KEY)")


async def test_commit_and_rollback(connection: Connection, other: Connection, table: None):
    async with connection.transaction() as inside:
        assert inside is connection
        await connection.execute("INSERT INTO t VALUES (1)")
        assert connection.is_in_transaction()
        assert await rows(other) == []
    assert not connection.is_in_transaction()
    assert await rows(other) == [1]
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (2)")
            raise ZeroDivisionError
    assert not connection.is_in_transaction()
    assert await rows(other) == [1]


async def test_savepoints(connection: Connection, other: Connection, table: None):
    async with connection.transaction():
        await connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(errors.UniqueViolationError):  # noqa: PT012
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (2)")
                await connection.execute("INSERT INTO t VALUES (1)")
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (3)")
            with pytest.raises(KeyError):  # noqa: PT012
                async with connection.transaction():
                    await connection.execute("INSERT INTO t VALUES (4)")
                    raise KeyError
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (5)")
    assert await rows(other) == [1, 3, 5]
    assert connection.depth == 0


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (None, "read committed"),
        ("read_committed", "read committed"),
        ("repeatable_read", "repeatable read"),
        ("serializable", "serializable"),
    ],
)
async def test_isolation_levels(connection: Connection, level: str | None, name: str):
    async with connection.transaction(isolation=level):
        assert await connection.fetchval("SHOW transaction_isolation") == name


async def test_a_read_only_transaction_refuses_to_write(connection: Connection, table: None):
    with pytest.raises(errors.ReadOnlySQLTransactionError):
        async with connection.transaction(readonly=True):
            await connection.execute("INSERT INTO t VALUES (1)")
    assert await rows(connection) == []


async def test_refusals(connection: Connection):
    with pytest.raises(ValueError, match="unknown isolation"):
        connection.transaction(isolation="snapshot")
    await connection.execute("BEGIN")
    with pytest.raises(RuntimeError, match=r"begun with execute\(\)"):
        async with connection.transaction():
            pytest.fail("entered")
    await connection.execute("ROLLBACK")
    async with connection.transaction():
        for options in ({"isolation": "serializable"}, {"readonly": True}):
            with pytest.raises(RuntimeError, match="savepoint"):
                async with connection.transaction(**options):
                    pytest.fail("entered")
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_swallowed_error_is_not_taken_for_a_commit(connection: Connection, table: None):
    with pytest.raises(errors.InFailedSQLTransactionError, match="answered with ROLLBACK"):  # noqa: PT012
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(errors.UniqueViolationError):
                await connection.execute("INSERT INTO t VALUES (1)")
    assert await rows(connection) == []


async def test_a_server_that_refuses_the_commit_is_a_server_error(connection: Connection, table: None):
    await connection.execute("CREATE TABLE u (a int REFERENCES t DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(errors.ForeignKeyViolationError):
        async with connection.transaction():
            await connection.execute("INSERT INTO u VALUES (7)")
    assert not connection.is_in_transaction()
    assert await connection.fetchval("SELECT count(*) FROM u") == 0


async def test_serialization_failures_and_deadlocks_keep_their_names(
    connection: Connection, other: Connection, table: None
):
    await connection.execute("INSERT INTO t VALUES (1), (2)")
    with pytest.raises(errors.SerializationError):  # noqa: PT012
        async with connection.transaction(isolation="serializable"), other.transaction(isolation="serializable"):
            for con in (connection, other):
                await con.fetch("SELECT * FROM t")
            await other.execute("UPDATE t SET a = a + 10 WHERE a = 1")
            await other.command("COMMIT")
            await connection.execute("UPDATE t SET a = a + 20 WHERE a = 1")
            pytest.fail("not serialized")


async def test_cancelled_before_begin_nothing_is_sent_and_the_next_is_a_true_transaction(
    connection: Connection, other: Connection, table: None
):
    with trio.CancelScope() as scope:
        scope.cancel()
        async with connection.transaction():
            pytest.fail("entered")
    assert scope.cancelled_caught
    assert not connection.is_in_transaction()
    async with connection.transaction():
        await connection.execute("INSERT INTO t VALUES (1)")
    # A SAVEPOINT in place of that BEGIN would have failed, or left the row uncommitted.
    assert await rows(other) == [1]


async def test_cancelled_during_begin_the_block_is_rolled_back(empty_dsn: str, socket_path: str, other: Connection):
    async with open_proxy(socket_path) as proxy:
        connection = await connect(proxy.dsn(empty_dsn.split("/")[3].split("?")[0]))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_busy, connection, scope)
                async with connection.transaction():
                    await trio.lowlevel.checkpoint()
                    pytest.fail("a checkpoint inside the block did not see the cancellation")
        assert scope.cancelled_caught
        assert not connection.is_in_transaction()
        assert await connection.fetchval("SELECT 1") == 1
        connection.terminate()


async def _cancel_when_busy(connection: Connection, scope: trio.CancelScope) -> None:
    while not connection.is_busy:
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_cancelled_in_a_query_inside_the_block_rolls_back(connection: Connection, other: Connection, table: None):
    pid = connection.backend_pid
    with trio.move_on_after(0.1) as scope:
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            await connection.execute("SELECT pg_sleep(60)")
    assert scope.cancelled_caught
    assert not connection.is_in_transaction()
    assert await connection.fetchval("SELECT pg_backend_pid()") == pid
    assert await rows(other) == []


async def test_a_cancellation_the_block_did_not_notice_does_not_stop_the_commit(
    connection: Connection, other: Connection, table: None
):
    with trio.CancelScope() as scope:
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            scope.cancel()
        assert not connection.is_in_transaction()
        await trio.lowlevel.checkpoint()
        pytest.fail("not cancelled")
    assert scope.cancelled_caught
    assert await rows(other) == [1]


async def through_proxy(
    empty_dsn: str,
    socket_path: str,
    act: Callable[[Connection, object], Awaitable[None]],
    *,
    settle_seconds: float = 2.0,
) -> None:
    async with open_proxy(socket_path) as proxy:
        name = empty_dsn.split("/")[3].split("?")[0]
        connection = await connect(proxy.dsn(name), settle_seconds=settle_seconds)
        await act(connection, proxy)
        assert connection.is_closed()


@pytest.mark.parametrize(("marker", "happened"), [("cut_before", False), ("cut_after", True), ("deaf_after", True)])
async def test_a_commit_without_an_answer_is_unknown_and_can_be_resolved(
    empty_dsn: str, socket_path: str, other: Connection, marker: str, happened: bool
):
    await other.execute("CREATE TABLE t (a int)")

    async def act(connection: Connection, proxy: object) -> None:
        setattr(proxy, marker, b"COMMIT")
        with pytest.raises(CommitOutcomeUnknown) as caught:  # noqa: PT012
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (1)")
                xid = await connection.current_xid()
        assert caught.value.xid == xid
        assert isinstance(caught.value.__cause__, ConnectionLost)
        with trio.fail_after(2):
            while (status := await other.transaction_status(xid)) == "in progress":
                await trio.sleep(0.005)
        assert status == ("committed" if happened else "aborted")
        assert bool(await rows(other)) is happened

    with trio.fail_after(1.5):
        await through_proxy(empty_dsn, socket_path, act, settle_seconds=0.3)


async def test_a_line_lost_before_commit_is_known_not_to_have_committed(empty_dsn: str, other: Connection):
    await other.execute("CREATE TABLE t (a int)")
    connection = await connect(empty_dsn)
    with pytest.raises(ConnectionLost, match="nothing was kept"):  # noqa: PT012
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            connection.terminate()
    with trio.fail_after(2):
        while await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", connection.backend_pid):
            await trio.sleep(0.005)
    assert await rows(other) == []


async def test_a_backend_killed_in_commit_is_unknown(connection: Connection, other: Connection, table: None):
    await connection.execute(
        "CREATE TABLE slow (a int); CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'; CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON slow "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION linger()"
    )

    async def kill() -> None:
        while not await other.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND query = 'COMMIT' AND state = 'active' "
            "AND wait_event = 'PgSleep'",
            connection.backend_pid,
        ):
            await trio.sleep(0.005)
        await other.fetchval("SELECT pg_terminate_backend($1)", connection.backend_pid)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        with pytest.raises(CommitOutcomeUnknown) as caught:
            async with connection.transaction():
                await connection.execute("INSERT INTO slow VALUES (1)")
        assert caught.value.xid is None
        assert isinstance(caught.value.__cause__, ConnectionLost)


async def test_begin_waits_no_longer_than_its_deadline_even_when_cancelled(empty_dsn: str, socket_path: str):
    async def act(connection: Connection, proxy: object) -> None:
        proxy.deaf_after = b"BEGIN"
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_when_busy, connection, scope)
                with pytest.raises(ConnectionLost, match=r"BEGIN was not answered within 0\.3 s"):
                    async with connection.transaction():
                        pytest.fail("entered")
        assert 0.2 < trio.current_time() - started < 1
        assert proxy.accepted == 1, "no CancelRequest: it would be a second connection"

    await through_proxy(empty_dsn, socket_path, act, settle_seconds=0.3)


async def test_rollback_waits_no_longer_than_its_deadline_and_hides_nothing(empty_dsn: str, socket_path: str):
    async def act(connection: Connection, proxy: object) -> None:
        proxy.deaf_after = b"ROLLBACK"
        started = trio.current_time()
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                raise ZeroDivisionError
        assert 0.2 < trio.current_time() - started < 1
        assert proxy.accepted == 1, "no CancelRequest: it would be a second connection"

    await through_proxy(empty_dsn, socket_path, act, settle_seconds=0.3)


async def test_leaving_while_a_child_is_still_inside_a_verb_drops_the_connection(
    connection: Connection, table: None, other: Connection
):
    async def child() -> None:
        with pytest.raises(ConnectionLost):
            await connection.fetchval("SELECT pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        with pytest.raises(trio.BusyResourceError):  # noqa: PT012
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (1)")
                nursery.start_soon(child)
                while not connection.is_busy:
                    await trio.lowlevel.checkpoint()
    assert connection.is_closed()
