"""COPY in: any length, any kind of iterable, errors and cancellation in the middle."""

from __future__ import annotations

import pytest
import trio

from relay.asyncpg_trio import Connection, ConnectionLost, errors


@pytest.fixture
async def table(connection: Connection) -> None:
    await connection.execute('CREATE SCHEMA "s x"; CREATE TABLE "s x".t (a int PRIMARY KEY, b text, c bytea)')


async def count(connection: Connection) -> int:
    return await connection.fetchval('SELECT count(*) FROM "s x".t')


async def test_rows_of_all_kinds(connection: Connection, table: None):
    rows = [(number, None if number % 2 else "ä", b"\x00") for number in range(5)]
    assert await connection.copy_records_to_table("t", records=rows, schema="s x") == "COPY 5"
    more = ((number, b"z") for number in range(5, 1000))
    assert await connection.copy_records_to_table("t", records=more, columns=["a", "c"], schema="s x") == "COPY 995"

    async def slowly():
        for number in range(1000, 1003):
            await trio.lowlevel.checkpoint()
            yield (number, "x", None)

    assert await connection.copy_records_to_table("t", records=slowly(), schema="s x") == "COPY 3"
    assert await count(connection) == 1003
    assert await connection.fetchval('SELECT b FROM "s x".t WHERE a = 2') == "ä"


async def test_far_more_than_the_socket_holds_is_taken_as_it_drains(
    connection: Connection, table: None, monkeypatch: pytest.MonkeyPatch
):
    wire = connection._wire
    backlogs = []
    drain = wire.drain_output

    async def watched() -> None:
        backlogs.append(sum(len(part) for part in wire._out))
        await drain()

    monkeypatch.setattr(wire, "drain_output", watched)
    rows = ((number, "x" * 10_000, None) for number in range(4000))
    assert await connection.copy_records_to_table("t", records=rows, schema="s x") == "COPY 4000"
    assert backlogs
    assert max(backlogs) < 2_000_000, "40 MB must not pile up in memory"


async def test_an_error_in_the_rows_undoes_the_copy_and_keeps_the_connection(connection: Connection, table: None):
    def rows(good: int):
        for number in range(good):
            yield (number, "x" * 1000, None)
        raise KeyError("no more")

    for good in (0, 1, 5000):
        with pytest.raises(KeyError, match="no more"):
            await connection.copy_records_to_table("t", records=rows(good), schema="s x")
        assert await count(connection) == 0
    assert connection.is_at_rest()


async def test_a_duplicate_key_is_a_server_error(connection: Connection, table: None):
    with pytest.raises(errors.UniqueViolationError):
        await connection.copy_records_to_table("t", records=[(1, "", b"")] * 3, schema="s x")
    with pytest.raises(errors.UniqueViolationError):  # reported while rows are still being sent
        await connection.copy_records_to_table("t", records=[(1, "x" * 10_000, b"")] * 3000, schema="s x")
    assert await count(connection) == 0


async def test_a_table_that_is_not_there(connection: Connection):
    with pytest.raises(errors.UndefinedTableError):
        await connection.copy_records_to_table("nowhere", records=[(1,)])
    assert await connection.fetchval("SELECT 1") == 1


async def test_a_row_that_cannot_be_encoded_costs_the_connection_and_stores_nothing(
    connection: Connection, other: Connection, table: None
):
    with pytest.raises(Exception, match="integer"):
        await connection.copy_records_to_table("t", records=[(1, "", b""), ("one", "", b"")], schema="s x")
    assert connection.is_closed()
    with pytest.raises(ConnectionLost):
        await connection.fetch("SELECT 1")
    assert await count(other) == 0


async def test_cancelled_at_any_point(connection: Connection, table: None):
    async def rows(scope: trio.CancelScope, cancel_at: int):
        for number in range(3000):
            if number == cancel_at:
                scope.cancel()
            yield (number, "x" * 5000, None)

    pid = connection.backend_pid
    for cancel_at in (0, 1, 1500, 2999):
        with trio.CancelScope() as scope:
            await connection.copy_records_to_table("t", records=rows(scope, cancel_at), schema="s x")
        assert scope.cancelled_caught
        assert await connection.fetchval("SELECT pg_backend_pid()") == pid
        # With the last row everything is on its way: the server may be done before it hears of the end.
        assert await count(connection) in ((0, 3000) if cancel_at == 2999 else (0,))


async def test_cancelled_while_looking_at_the_table(connection: Connection, other: Connection, table: None):
    async with other.transaction():
        await other.execute('LOCK TABLE "s x".t')
        with trio.move_on_after(0.1) as scope:
            await connection.copy_records_to_table("t", records=[(1, "", b"")], schema="s x")
        assert scope.cancelled_caught
    await other.execute("SET lock_timeout = '1s'")
    await other.execute('DROP TABLE "s x".t')
    assert connection.is_at_rest()


async def test_cancelled_in_the_servers_part(connection: Connection, other: Connection, table: None):
    await other.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'; "
        'CREATE TRIGGER wait AFTER INSERT ON "s x".t EXECUTE FUNCTION wait()'
    )
    with trio.move_on_after(0.1) as scope:
        await connection.copy_records_to_table("t", records=[(1, "", b"")], schema="s x")
    assert scope.cancelled_caught
    assert await count(connection) == 0


async def test_inside_a_transaction(connection: Connection, other: Connection, table: None):
    async with connection.transaction():
        await connection.copy_records_to_table("t", records=[(1, "", b"")], schema="s x")
        assert await count(other) == 0
    assert await count(other) == 1


async def test_the_session_dies_in_the_middle(connection: Connection, other: Connection, table: None):
    async def rows():
        for number in range(100_000):
            if number == 500:
                await other.fetchval("SELECT pg_terminate_backend($1)", connection.backend_pid)
            yield (number, "x" * 1000, None)

    with trio.fail_after(5), pytest.raises(ConnectionLost):
        await connection.copy_records_to_table("t", records=rows(), schema="s x")
    assert connection.is_closed()
