"""The sinks: one suite for the database and for what stands in for it."""

from __future__ import annotations

import pytest
import trio

from relay.audit import outbox
from relay.audit.chain import GENESIS, link
from relay.audit.log import read_rows
from relay.audit.sink import PoolSink
from relay.audit.walk import Walk
from tests.audit.memory import MemoryDatabase, MemorySink, entries, entry


class InDatabase:
    def __init__(self, con, pool):
        self.con, self.pool = con, pool

    def sink(self, **options):
        return PoolSink(self.pool, **options)

    async def commit(self, some):
        await outbox.insert(self.con, some)

    async def rows(self):
        return await read_rows(self.con, 0, 10**9, 10**6)

    async def waiting(self):
        return await outbox.count(self.con)


class InMemory:
    def __init__(self):
        self.database = MemoryDatabase()

    def sink(self, **options):
        return MemorySink(self.database, **options)

    async def commit(self, some):
        self.database.commit(some)

    async def rows(self):
        return list(self.database.log)

    async def waiting(self):
        return len(self.database.outbox)


@pytest.fixture(params=["database", "memory"])
async def store(request, con, pool):
    return InDatabase(con, pool) if request.param == "database" else InMemory()


class TestBoth:
    async def test_nothing_to_do(self, store):
        batch = await store.sink().chain_batch()
        assert (batch.uuids, batch.written, batch.prev, batch.head, batch.full) == ((), 0, GENESIS, GENESIS, False)
        assert await store.sink().oldest() is None
        assert await store.rows() == []

    async def test_outbox_order_is_chain_order(self, store):
        some = [entry(number) for number in (5, 3, 9, 1)]
        await store.commit(some[:2])
        await store.commit(some[2:])
        batch = await store.sink().chain_batch()
        assert batch.uuids == tuple(one.uuid for one in some)
        assert await store.rows() == link(GENESIS, some)
        assert await store.waiting() == 0

    async def test_a_batch_is_bounded_and_says_when_more_may_wait(self, store):
        await store.commit(entries(1, 7))
        sink = store.sink(entries_max=3)
        batches = [await sink.chain_batch() for _ in range(4)]
        assert [(batch.written, batch.full) for batch in batches] == [(3, True), (3, True), (1, False), (0, False)]
        assert [batch.head.seq for batch in batches] == [3, 6, 7, 7]
        assert [batch.prev for batch in batches] == [GENESIS, *(batch.head for batch in batches[:-1])]
        assert [row.entry for row in await store.rows()] == entries(1, 7)

    async def test_the_oldest_is_the_next(self, store):
        await store.commit(entries(1, 2))
        sink = store.sink(entries_max=1)
        first = await sink.oldest()
        assert first == await sink.oldest() or first.age_seconds >= 0
        await sink.chain_batch()
        assert (await sink.oldest()).id > first.id

    async def test_what_is_chained_is_never_chained_again(self, store):
        await store.commit(entries(1, 2))
        await store.sink().chain_batch()
        await store.commit(entries(2, 2))  # 2 is there already, 3 is new
        batch = await store.sink().chain_batch()
        assert (len(batch.uuids), batch.written, batch.head.seq) == (2, 1, 3)
        assert [row.entry for row in await store.rows()] == entries(1, 3)
        assert await store.waiting() == 0

    async def test_two_writers_make_one_chain(self, store):
        async def work(sink):
            for _ in range(20):
                await sink.chain_batch()

        await store.commit(entries(1, 60))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, store.sink(entries_max=2))
            nursery.start_soon(work, store.sink(entries_max=2))
        walk = Walk()
        walk.feed(await store.rows())
        assert (walk.faults, walk.rows) == ([], 60)

    async def test_abort_when_idle_is_nothing(self, store):
        sink = store.sink()
        sink.abort()
        await store.commit(entries(1, 1))
        assert (await sink.chain_batch()).written == 1
