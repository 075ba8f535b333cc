"""The audit worker against a real PostgreSQL: entries a second, and the time to drain a full queue."""

from __future__ import annotations

import time
from uuid import uuid4

import trio

from relay.asyncpg_trio import Pool
from relay.audit import outbox
from relay.audit.entry import Action, Entry, new_entry
from relay.audit.sink import PoolSink
from relay.audit.worker import AuditWorker
from relay.store.migrate import up

BACKLOG = 20_000
QUEUE = 1000
ONE_BY_ONE = 200


def _entries(count: int) -> list[Entry]:
    return [
        new_entry(
            Action.EVENT_CREATED,
            time_us=time.time_ns() // 1000,
            uuid=str(uuid4()),
            actor="ab" * 32,
            event_id="cd" * 32,
            kind=9,
            channel_id=str(uuid4()),
        )
        for _ in range(count)
    ]


async def _chain(pool: Pool, entries: list[Entry], *, one_by_one: bool = False) -> float:
    """Seconds from the first entry handed over to the last one chained."""
    async with pool.transaction() as con:
        for start in range(0, len(entries), 500):
            await outbox.insert(con, entries[start : start + 500])
    worker = AuditWorker(PoolSink(pool, entries_max=1 if one_by_one else 256), batch_entries=1 if one_by_one else 256)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        started = time.perf_counter()
        producer = worker.producer()
        await producer.send(entries)
        producer.close()
        worker.begin_drain(trio.current_time() + 60)
    seconds = time.perf_counter() - started
    left = await pool.fetchval("SELECT count(*) FROM audit_outbox")
    assert left == 0, left
    return seconds


async def run(dsn: str) -> dict[str, float]:
    """One run on an empty database with the schema applied."""
    async with Pool(dsn, size_max=5, size_min=1, name="audit") as pool:
        async with pool.acquire() as con:
            await up(con)
        backlog = await _chain(pool, _entries(BACKLOG))
        queue = await _chain(pool, _entries(QUEUE))
        single = await _chain(pool, _entries(ONE_BY_ONE), one_by_one=True)
    return {
        "entries_per_second": BACKLOG / backlog,
        "drain_of_1000_seconds": queue,
        "one_by_one_entries_per_second": ONE_BY_ONE / single,
        "batching_ratio": (BACKLOG / backlog) / (ONE_BY_ONE / single),
    }
