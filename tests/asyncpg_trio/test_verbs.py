"""The verbs, types, counting, errors, large values and misuse of one connection, against a real server."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
import trio
import trio.testing

from relay.asyncpg_trio import Connection, ConnectionLost, connect, errors


async def test_the_five_verbs(connection: Connection):
    assert await connection.execute("CREATE TABLE t (a int PRIMARY KEY, b text)") == "CREATE TABLE"
    async with connection.transaction():
        assert await connection.execute("INSERT INTO t VALUES ($1, $2), (2, NULL)", 1, "x") == "INSERT 0 2"
    assert [tuple(row) for row in await connection.fetch("SELECT a, b FROM t ORDER BY a")] == [(1, "x"), (2, None)]
    row = await connection.fetchrow("SELECT a, b FROM t ORDER BY a")
    assert row is not None
    assert (row["a"], row["b"]) == (1, "x")
    assert await connection.fetchrow("SELECT a FROM t WHERE a = $1", 9) is None
    assert await connection.fetchval("SELECT a, b FROM t ORDER BY a", column=1) == "x"
    assert await connection.fetchval("SELECT a FROM t WHERE a = 9") is None
    assert await connection.fetch("SELECT a FROM t WHERE false") == []


async def test_fetchrow_and_fetchval_run_a_writing_statement_to_its_end(connection: Connection):
    await connection.execute("CREATE TABLE t (a int)")
    assert await connection.fetchval("INSERT INTO t SELECT generate_series(1, 50) RETURNING a") == 1
    assert await connection.fetchval("SELECT count(*) FROM t") == 50


async def test_execute_without_arguments_takes_several_statements(connection: Connection):
    assert await connection.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2)") == "INSERT 0 2"


async def test_types_as_documented(connection: Connection):
    name = "7f2d9c1e-8a54-4f0e-9a3b-2f6f0a3f6a10"
    assert await connection.fetchval("SELECT $1::uuid", name) == uuid.UUID(name)
    assert await connection.fetchval("SELECT $1::uuid::text", name) == name
    assert await connection.fetchval("SELECT $1::jsonb", '{"a": [1]}') == '{"a": [1]}'
    assert await connection.fetchval("SELECT $1::bytea", b"\x00\xff") == b"\x00\xff"
    assert await connection.fetchval("SELECT array_agg(x) FROM unnest($1::bytea[]) x", [b"a", None]) == [b"a", None]
    assert await connection.fetchval("SELECT 3 = ANY($1::int[])", [1, 3])
    moment = datetime(2024, 2, 29, 12, tzinfo=UTC)
    assert await connection.fetchval("SELECT $1::timestamptz", moment) == moment


async def test_jsonb_passes_as_bytes_where_asked_for(empty_dsn: str):
    connection = await connect(empty_dsn, jsonb_bytes=True)
    for value in (b'{"a": 1}', '{"a": 1}'):
        assert await connection.fetchval("SELECT $1::jsonb", value) == b'{"a": 1}'
    assert await connection.fetchval("SELECT $1::jsonb[]", [b"1", "2"]) == [b"1", b"2"]
    await connection.close()


async def test_types_unknown_to_the_codecs_are_looked_up(connection: Connection):
    await connection.execute("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b mood)")
    assert await connection.fetchval("SELECT $1::mood[]", ["ok", "sad"]) == ["ok", "sad"]
    assert tuple(await connection.fetchval("SELECT (1, 'ok')::pair")) == (1, "ok")


async def test_server_settings_and_facts_about_the_session(empty_dsn: str):
    connection = await connect(empty_dsn, server_settings={"lock_timeout": "1234ms", "application_name": "me"})
    assert await connection.fetchval("SHOW lock_timeout") == "1234ms"
    assert await connection.fetchval("SELECT pg_backend_pid()") == connection.backend_pid
    number = int(await connection.fetchval("SHOW server_version_num"))
    assert connection.server_version == (number // 10_000, number % 10_000)
    assert f"backend_pid={connection.backend_pid} idle" in repr(connection)
    await connection.close()
    assert "closed" in repr(connection)


async def test_every_verb_counts_once_and_transaction_control_not_at_all(connection: Connection):
    seen: list[str] = []
    connection.on_statement = seen.append
    await connection.execute("CREATE TABLE t (a int)")
    async with connection.transaction(), connection.transaction():
        await connection.fetch("SELECT 1")
        await connection.fetchrow("SELECT 2")
        await connection.fetchval("SELECT $1::int", 3)
        await connection.execute("INSERT INTO t VALUES ($1)", 4)
    await connection.copy_records_to_table("t", records=[(5,)], columns=["a"])
    async with connection.listen("c"):
        pass
    assert connection.statements == 6
    assert seen == [
        "CREATE TABLE t (a int)",
        "SELECT 1",
        "SELECT 2",
        "SELECT $1::int",
        "INSERT INTO t VALUES ($1)",
        "COPY t",
    ]


async def test_server_errors_keep_their_class_and_the_connection_works_on(connection: Connection):
    await connection.execute("CREATE TABLE t (a int PRIMARY KEY)")
    await connection.execute("INSERT INTO t VALUES ($1)", 1)
    with pytest.raises(errors.UniqueViolationError) as caught:
        await connection.execute("INSERT INTO t VALUES ($1)", 1)
    assert errors.sqlstate(caught.value) == "23505"
    assert errors.sqlstate_class(caught.value) == "23"
    with pytest.raises(errors.PostgresError) as caught:
        await connection.fetch("SELECT syntax error")
    assert errors.sqlstate_class(caught.value) == "42"
    with pytest.raises(errors.PostgresError):
        await connection.execute("SELECT 1/0")
    assert await connection.fetchval("SELECT 1") == 1


def test_sqlstate_looks_through_causes_and_is_empty_for_other_errors():
    error = ConnectionLost("y")
    error.__cause__ = errors.DeadlockDetectedError("x")
    assert errors.sqlstate_class(error) == "40"
    assert errors.sqlstate(ValueError()) == errors.sqlstate_class(None) == ""


@pytest.mark.parametrize("arguments", [("not a number",), (), (1, 2), (2**40,)])
async def test_arguments_that_cannot_be_sent_leave_no_transaction_and_no_lock(
    connection: Connection, other: Connection, arguments: tuple[object, ...]
):
    await connection.execute("CREATE TABLE t (a int)")
    with pytest.raises((errors.InterfaceError, errors.DataError)):
        await connection.fetch("SELECT * FROM t WHERE a = $1", *arguments)
    # A Parse without a Sync would hold its lock on the table until this session's next command.
    await other.execute("SET lock_timeout = '1s'")
    assert await other.execute("DROP TABLE t") == "DROP TABLE"
    assert await connection.fetchval("SELECT 1") == 1


async def test_a_table_that_changed_its_shape_is_prepared_again(connection: Connection, other: Connection):
    await connection.execute("CREATE TABLE t (a int)")
    await connection.execute("INSERT INTO t VALUES ($1)", 1)
    assert await connection.fetch("SELECT * FROM t") == [(1,)]
    await other.execute("ALTER TABLE t ADD b text DEFAULT 'new'")
    assert await connection.fetch("SELECT * FROM t") == [(1, "new")]
    await other.execute("ALTER TABLE t DROP b")
    async with connection.transaction():
        with pytest.raises(errors.PostgresError):
            await connection.fetch("SELECT * FROM t")
        await connection.command("ROLLBACK")
        await connection.command("BEGIN")
    assert await connection.fetch("SELECT * FROM t") == [(1,)]


async def test_a_composite_type_that_changed_is_looked_up_again(connection: Connection, other: Connection):
    await connection.execute(
        "CREATE TYPE pair AS (a int, b int); CREATE TABLE t (p pair); INSERT INTO t VALUES ((1, 2))"
    )
    assert tuple(await connection.fetchval("SELECT p FROM t")) == (1, 2)
    await other.execute("ALTER TYPE pair ADD ATTRIBUTE c text CASCADE; UPDATE t SET p = (1, 2, 'x')")
    with pytest.raises(Exception, match="composite type"):
        await connection.fetchval("SELECT p FROM t")
    assert tuple(await connection.fetchval("SELECT p FROM t")) == (1, 2, "x")


async def test_more_statements_than_the_cache_holds(empty_dsn: str):
    connection = await connect(empty_dsn, statement_cache_size=4)
    for number in [*range(20), *range(20)]:
        assert await connection.fetchval(f"SELECT {number} + $1::int", 1) == number + 1
    assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements") <= 6
    await connection.close()


async def test_no_statement_cache_at_all(empty_dsn: str):
    connection = await connect(empty_dsn, statement_cache_size=0)
    for number in range(3):
        assert await connection.fetchval("SELECT $1::int", number) == number
    assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0
    await connection.close()


@pytest.mark.parametrize("size", [1, 200_000, 5_000_000])
async def test_large_values_both_ways(connection: Connection, size: int):
    value = bytes(range(256)) * (size // 256 + 1)
    assert await connection.fetchval("SELECT $1::bytea || $2::bytea", value, b"end") == value + b"end"


async def test_a_batch_far_beyond_executemanys_limit_by_unnest(connection: Connection):
    await connection.execute("CREATE TABLE t (a int, b text)")
    await connection.execute(
        "INSERT INTO t SELECT * FROM unnest($1::int[], $2::text[])", list(range(2000)), ["x" * 500] * 2000
    )
    assert await connection.fetchval("SELECT sum(a) * 500 + sum(length(b)) * 0 FROM t") == 1999 * 1000 * 500


async def test_a_second_task_is_refused_and_the_first_is_not_disturbed(connection: Connection):
    refused = []

    async def intrude(verb: object) -> None:
        with pytest.raises(trio.BusyResourceError) as caught:
            await verb()
        refused.append(caught.value)

    async with trio.open_nursery() as nursery:

        async def first() -> None:
            assert await connection.fetchval("SELECT 42 FROM pg_sleep(0.1)") == 42
            nursery.cancel_scope.cancel()

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        assert connection.is_busy
        for verb in (
            lambda: connection.fetch("SELECT 1"),
            lambda: connection.execute("SELECT 1"),
            lambda: connection.transaction().__aenter__(),
            lambda: connection.copy_records_to_table("t", records=[]),
        ):
            await intrude(verb)
        await trio.sleep_forever()
    assert len(refused) == 4
    assert connection.statements == 1
    assert await connection.fetchval("SELECT 1") == 1


async def test_a_closed_connection_says_so(connection: Connection):
    await connection.close()
    assert connection.is_closed()
    for verb in (connection.fetch, connection.fetchrow, connection.fetchval, connection.execute):
        with pytest.raises(ConnectionLost, match="closed"):
            await verb("SELECT 1")
    with pytest.raises(ConnectionLost):
        async with connection.transaction():
            pass
    with pytest.raises(ConnectionLost):
        async with connection.listen("c"):
            pass
    await connection.close()
    connection.terminate()


async def test_close_waits_until_the_server_has_ended_the_session(connection: Connection, other: Connection):
    pid = connection.backend_pid
    await connection.close()
    with trio.fail_after(2):
        # The server closes its socket a moment before the entry goes.
        while await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
            await trio.sleep(0.005)


async def test_every_verb_is_a_checkpoint(connection: Connection):
    for verb in (connection.fetch, connection.fetchrow, connection.fetchval, connection.execute):
        with trio.testing.assert_checkpoints():
            await verb("SELECT 1")
        before = connection.statements
        with trio.CancelScope() as scope:
            scope.cancel()
            await verb("SELECT 1")
        assert scope.cancelled_caught
        assert await connection.fetchval("SELECT 2") == 2
        assert connection.statements <= before + 2
