"""Cancellation soak: connections, tasks and cancels at random points; every answer is checked against its question.

What it would find: an answer of a cancelled query handed to the next one, a CancelRequest that hits a stranger, a
connection given back in the middle of something, a slot that never comes back, a row of a transaction that was rolled
back. The short form runs in the suite; `scripts/soak-driver SECONDS [SEED]` is the long one. The seed fixes what the
tasks do, not the scheduling.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field

import trio

from relay.asyncpg_trio import Connection, Pool, PoolTimeout
from tests.support.postgres import PostgresServer

TABLE = "CREATE TABLE soak (a bigint PRIMARY KEY, b bytea)"


@dataclass
class Tally:
    answers: int = 0
    cancelled: int = 0
    timeouts: int = 0
    committed: set[int] = field(default_factory=set)
    rolled_back: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    opened: int = 0

    def check(self, question: object, answer: object) -> None:
        self.answers += 1
        if question != answer:
            self.wrong.append(f"asked {question!r:.80}, got {answer!r:.80}")


async def ask(connection: Connection | Pool, tally: Tally, rng: random.Random, number: int) -> None:
    """One query of a random kind, whose answer contains its question."""
    kind = rng.randrange(6)
    if kind == 0:
        tally.check(number, await connection.fetchval("SELECT $1::bigint", number))
    elif kind == 1:
        rows = await connection.fetch("SELECT i FROM generate_series($1::bigint, $1 + 300) i", number)
        tally.check([number, number + 300, 301], [rows[0][0], rows[-1][0], len(rows)])
    elif kind == 2:
        seconds = rng.random() * 0.01
        tally.check(number, await connection.fetchval("SELECT $1::bigint FROM pg_sleep($2)", number, seconds))
    elif kind == 3:
        value = number.to_bytes(8, "big") * rng.choice((1, 1000, 40_000))
        tally.check(value, await connection.fetchval("SELECT $1::bytea", value))
    elif kind == 4:
        # A new text each time: Parse, Describe and Execute are three chances to be cancelled.
        tally.check(number, await connection.fetchval(f"SELECT {number}::bigint + $1::int", 0))
    else:
        tally.check("SELECT 1", await connection.execute(f"SELECT {number}, pg_sleep(0.001)"))


async def write(pool: Pool, tally: Tally, rng: random.Random, number: int) -> None:
    """One transaction; what is known about its end is checked against the table afterwards."""
    tally.rolled_back.add(number)
    async with pool.transaction() as connection:
        copy = rng.random() < 0.3
        if copy:
            await connection.copy_records_to_table("soak", records=[(number, b"x" * 50_000)], columns=["a", "b"])
        else:
            await connection.execute("INSERT INTO soak VALUES ($1, $2)", number, b"")
        await ask(connection, tally, rng, number)
        if rng.random() < 0.3:
            async with connection.transaction():
                await ask(connection, tally, rng, number)
    tally.rolled_back.discard(number)
    tally.committed.add(number)


async def visitor(pool: Pool, tally: Tally, seed: int, deadline: float) -> None:
    rng = random.Random(seed)
    number = seed << 32
    while trio.current_time() < deadline:
        number += 1
        after_seconds = rng.choice((0, 0.0002, 0.001, 0.003, 0.01, 10)) * rng.random()
        with trio.move_on_after(after_seconds) as scope:
            try:
                if rng.random() < 0.3:
                    await write(pool, tally, rng, number)
                elif rng.random() < 0.5:
                    await ask(pool, tally, rng, number)
                else:
                    async with pool.acquire() as connection:
                        for _ in range(rng.randrange(1, 4)):
                            await ask(connection, tally, rng, number)
            except PoolTimeout:
                tally.timeouts += 1
        tally.cancelled += scope.cancelled_caught


async def soak(dsn: str, seconds: float, seed: int, *, connections: int = 20, tasks: int = 60) -> Tally:
    """Run, then check the table and the pool. `wrong` holds everything that must not be."""
    tally = Tally()
    async with Pool(dsn, size_max=connections, acquire_seconds=0.5) as pool:
        await pool.execute(TABLE)
        deadline = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for number in range(tasks):
                nursery.start_soon(visitor, pool, tally, seed * 1000 + number, deadline)
        found = {row[0] for row in await pool.fetch("SELECT a FROM soak")}
        tally.wrong += [f"{number} was committed and is not there" for number in tally.committed - found]
        # A COMMIT is never interrupted, so a block that was left by an exception was rolled back.
        tally.wrong += [f"{number} was rolled back and is there" for number in tally.rolled_back & found]
        statistics = pool.statistics()
        if statistics.in_use or statistics.size > connections:
            tally.wrong.append(f"connections were lost: {statistics}")
        busy = await pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle' "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        if busy:
            tally.wrong.append(f"{busy} sessions are still at work on the server")
        tally.opened = statistics.opened_total
    return tally


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 16)
    print(f"soaking for {seconds:.0f} s, seed {seed}", flush=True)
    server = PostgresServer()
    try:
        tally = trio.run(soak, server.dsn("postgres"), seconds, seed)
    finally:
        server.stop()
    print(
        f"{tally.answers} answers, {tally.cancelled} cancellations, {len(tally.committed)} commits, "
        f"{tally.timeouts} acquire timeouts, {tally.opened} connections opened, {len(tally.wrong)} wrong"
    )
    for text in tally.wrong[:20]:
        print(text)
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
