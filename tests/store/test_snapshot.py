"""Snapshots: what Python says of one is what PostgreSQL says of it."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from relay.asyncpg_trio import connect
from relay.store.snapshot import Snapshot


@pytest.mark.parametrize(
    ("text", "shown", "hidden"),
    [
        ("100:100:", [99, 1], [100, 101]),
        ("100:104:100,102", [99, 101, 103], [100, 102, 104]),
    ],
)
def test_shows(text: str, shown: list[int], hidden: list[int]) -> None:
    snapshot = Snapshot.parse(text)
    assert all(snapshot.shows(xid) and snapshot.shows_row(xid) for xid in shown)
    assert not any(snapshot.shows(xid) or snapshot.shows_row(xid) for xid in hidden)


@pytest.mark.parametrize("text", ["", "1:2", "a:b:c", "1:2:x"])
def test_other_text_is_no_snapshot(text: str) -> None:
    with pytest.raises(ValueError):
        Snapshot.parse(text)


@given(
    xmin=st.integers(3, 2**40),
    length=st.integers(0, 50),
    running=st.sets(st.integers(0, 49)),
    offset=st.integers(-1000, 1000),
)
def test_rows_are_judged_like_transactions_also_across_the_wrap(
    xmin: int, length: int, running: set[int], offset: int
) -> None:
    snapshot = Snapshot(xmin, xmin + length, frozenset(xmin + number for number in running if number < length))
    xid = max(1, xmin + offset)
    assert snapshot.shows_row(xid % 2**32) == snapshot.shows(xid)


async def test_agrees_with_the_server(empty_dsn: str) -> None:
    """Transactions before, during and after a snapshot, some of them still running when it was taken."""
    reader, writer, slow = [await connect(empty_dsn) for _ in range(3)]
    await writer.execute("CREATE TABLE t (n int)")
    xids = {}

    async def write(con: object, number: int) -> None:
        await con.execute("INSERT INTO t VALUES ($1)", number)
        xids[number] = int(await con.fetchval("SELECT pg_current_xact_id()::text"))

    async with writer.transaction():
        await write(writer, 1)
    ready, go_on = trio.Event(), trio.Event()

    async def hold() -> None:
        async with slow.transaction():
            await write(slow, 2)
            ready.set()
            await go_on.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        await ready.wait()
        async with writer.transaction():
            await write(writer, 3)
        async with reader.transaction(isolation="repeatable_read"):
            snapshot = Snapshot.parse(await reader.fetchval("SELECT pg_current_snapshot()::text"))
            go_on.set()
            async with writer.transaction():
                await write(writer, 4)
            visible = {row[0] for row in await reader.fetch("SELECT n FROM t")}
    assert visible == {1, 3}
    assert {number for number, xid in xids.items() if snapshot.shows(xid)} == visible
    rows = await reader.fetch("SELECT n, xmin::text::bigint FROM t")
    assert {row[0] for row in rows if snapshot.shows_row(row[1])} == visible
    for con in (reader, writer, slow):
        con.terminate()
