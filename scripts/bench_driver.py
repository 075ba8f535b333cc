"""Ways to talk to Postgres from Trio, measured side by side: queries/s and client CPU.

    python scripts/bench_driver.py [--runs 5] [--seconds 2] [--json FILE] [--dsn DSN] [--python PATH] [ENGINE …]

Each engine runs in a process of its own, the engines take turns (so that a slow minute of the machine hits all alike),
and the table shows the median of the runs with their spread. Three loads: one connection, one query after the other; a
pool of 20 with 50 tasks; 500 rows written in one statement. CPU is user + system time of the client. asyncpg's own pool
resets a connection when it is given back, ours does not: that is part of its figure. Without --dsn a server of its own
is started (fsync off). --python is the interpreter for the engines, such as one with the optional libraries.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUERY = "SELECT id, body FROM bench WHERE id = $1"
INSERT = "INSERT INTO bench_rows SELECT * FROM unnest($1::bytea[], $2::int[], $3::text[])"
SETUP = """
DROP TABLE IF EXISTS bench, bench_rows;
CREATE TABLE bench (id int PRIMARY KEY, body text);
INSERT INTO bench SELECT i, repeat('x', 300) FROM generate_series(1, 1000) i;
CREATE UNLOGGED TABLE bench_rows (id bytea, kind int, body text);
"""
BATCH = ([number.to_bytes(32, "big") for number in range(500)], list(range(500)), ["x" * 400] * 500)
POOL_SIZE = 20
TASKS = 50

Verb = Callable[[str, Any], Awaitable[Any]]
Meter = dict[str, float]


class Load:
    """The three loads, for any engine: `one` and `pooled` are verbs, `batch` a verb for INSERT, `gather` runs tasks."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def run(
        self, one: Verb, pooled: Verb, batch: Verb, gather: Callable[..., Awaitable[None]]
    ) -> dict[str, Meter]:
        for number in range(200):
            row = await one(QUERY, number + 1)
            assert row[0] == number + 1
        return {
            "one": await self._measure(lambda count: self._repeat(one, QUERY, count)),
            "pool": await self._measure(lambda count: gather([lambda: self._repeat(pooled, QUERY, count)] * TASKS)),
            "batch": await self._measure(lambda count: self._batches(batch, count)),
        }

    async def _repeat(self, verb: Verb, query: str, count: list[int]) -> None:
        end = time.perf_counter() + self.seconds
        number = 0
        while time.perf_counter() < end:
            number = number % 1000 + 1
            await verb(query, number)
            count[0] += 1

    async def _batches(self, verb: Verb, count: list[int]) -> None:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            await verb(INSERT, BATCH)
            count[0] += 1

    async def _measure(self, load: Callable[[list[int]], Awaitable[None]]) -> Meter:
        count = [0]
        wall, cpu = time.perf_counter(), time.process_time()
        await load(count)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"per_second": count[0] / wall, "cpu_us": cpu / count[0] * 1e6}


# ---- engines: each returns what Load.run returned


async def _asyncpg(dsn: str, load: Load) -> dict[str, Meter]:
    import asyncpg

    async def gather(functions: list[Callable[[], Awaitable[None]]]) -> None:
        await asyncio.gather(*(function() for function in functions))

    connection = await asyncpg.connect(dsn)

    async def batch(query: str, rows: Any) -> None:
        await connection.execute(query, *rows)

    async with asyncpg.create_pool(dsn, min_size=POOL_SIZE, max_size=POOL_SIZE) as pool:
        result = await load.run(connection.fetchrow, pool.fetchrow, batch, gather)
    await connection.close()
    return result


async def _trio_gather(functions: list[Callable[[], Awaitable[None]]]) -> None:
    import trio

    async with trio.open_nursery() as nursery:
        for function in functions:
            nursery.start_soon(function)


def asyncpg_driven_by_trio(dsn: str, load: Load) -> dict[str, Meter]:
    import trio

    sys.path.insert(0, str(ROOT))
    from relay.asyncpg_trio import Pool, connect

    async def main() -> dict[str, Meter]:
        connection = await connect(dsn)

        async def batch(query: str, rows: Any) -> None:
            await connection.execute(query, *rows)

        async with Pool(dsn, size_max=POOL_SIZE, size_min=POOL_SIZE, acquire_seconds=60) as pool:
            result = await load.run(connection.fetchrow, pool.fetchrow, batch, _trio_gather)
        await connection.close()
        return result

    return trio.run(main)


def psycopg_with_trio_waits(dsn: str, load: Load) -> dict[str, Meter]:
    import psycopg
    import trio
    from psycopg import generators
    from psycopg.waiting import Ready, Wait

    async def drive(generator: Any, fileno: int) -> Any:
        try:
            state = next(generator)
            while True:
                if isinstance(state, tuple):  # the connecting generator names its socket each time
                    fileno, state = state
                if state & Wait.W:
                    await trio.lowlevel.wait_writable(fileno)
                    ready = Ready.W
                else:
                    await trio.lowlevel.wait_readable(fileno)
                    ready = Ready.R
                state = generator.send(ready)
        except StopIteration as end:
            return end.value

    class Connection(psycopg.AsyncConnection):  # type: ignore[type-arg]
        async def wait(self, gen: Any, interval: float = 0.0) -> Any:  # noqa: ARG002  (psycopg's signature)
            return await drive(gen, self.pgconn.socket)

    async def connect() -> Connection:
        connection = Connection(await drive(generators.connect(dsn), -1))
        await connection.set_autocommit(True)
        return connection

    async def main() -> dict[str, Meter]:
        query = QUERY.replace("$1", "%s")
        idle = [await connect() for _ in range(POOL_SIZE)]
        slots = trio.Semaphore(POOL_SIZE)
        connection = await connect()

        async def one(_: str, number: int, on: Any = connection) -> Any:
            return await (await on.execute(query, (number,), prepare=True, binary=True)).fetchone()

        async def pooled(_: str, number: int) -> Any:
            async with slots:
                lent = idle.pop()
                try:
                    return await one(_, number, lent)
                finally:
                    idle.append(lent)

        async def batch(_: str, rows: Any) -> None:
            text = INSERT.replace("$1", "%b").replace("$2", "%b").replace("$3", "%b")
            await connection.execute(text, rows, prepare=True)

        result = await load.run(one, pooled, batch, _trio_gather)
        for each in (*idle, connection):
            each.pgconn.finish()
        return result

    return trio.run(main)


def asyncpg_over_trio_asyncio(dsn: str, load: Load) -> dict[str, Meter]:
    import asyncpg
    import trio
    from trio_asyncio import aio_as_trio, open_loop

    async def main() -> dict[str, Meter]:
        async with open_loop():
            connection = await aio_as_trio(asyncpg.connect)(dsn)

            pool = await aio_as_trio(asyncpg.create_pool(dsn, min_size=POOL_SIZE, max_size=POOL_SIZE).__aenter__)()

            async def batch(query: str, rows: Any) -> None:
                await aio_as_trio(connection.execute)(query, *rows)

            result = await load.run(aio_as_trio(connection.fetchrow), aio_as_trio(pool.fetchrow), batch, _trio_gather)
            await aio_as_trio(pool.close)()
            await aio_as_trio(connection.close)()
        return result

    return trio.run(main)


def triopg(dsn: str, load: Load) -> dict[str, Meter]:
    import trio
    import triopg as library
    from trio_asyncio import open_loop

    async def main() -> dict[str, Meter]:
        async with (
            open_loop(),
            library.connect(dsn) as connection,
            library.create_pool(dsn, min_size=POOL_SIZE, max_size=POOL_SIZE) as pool,
        ):

            async def batch(query: str, rows: Any) -> None:
                await connection.execute(query, *rows)

            async def pooled(query: str, number: int) -> Any:
                async with pool.acquire() as lent:
                    return await lent.fetchrow(query, number)

            return await load.run(connection.fetchrow, pooled, batch, _trio_gather)

    return trio.run(main)


# name: (function, what it imports, how to get that)
ENGINES: dict[str, tuple[Callable[[str, Load], dict[str, Meter]], list[str], str]] = {
    "asyncpg on asyncio": (lambda dsn, load: asyncio.run(_asyncpg(dsn, load)), ["asyncpg"], "asyncpg"),
    "asyncpg on uvloop": (
        lambda dsn, load: importlib.import_module("uvloop").run(_asyncpg(dsn, load)),
        ["asyncpg", "uvloop"],
        "uvloop",
    ),
    "asyncpg driven by Trio": (asyncpg_driven_by_trio, ["asyncpg", "trio"], "asyncpg trio"),
    "psycopg 3 with Trio waits": (psycopg_with_trio_waits, ["psycopg", "trio"], "'psycopg[binary]'"),
    "asyncpg over trio-asyncio": (asyncpg_over_trio_asyncio, ["asyncpg", "trio_asyncio"], "trio-asyncio"),
    "triopg": (triopg, ["triopg", "trio_asyncio"], "triopg async_generator"),
}


def run_engine(name: str, dsn: str, seconds: float) -> dict[str, Any]:
    """In the child: one run of one engine, or what is missing."""
    function, modules, install = ENGINES[name]
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            return {"missing": f"not installed: pip install {install}"}
    return function(dsn, Load(seconds))


def start_engine(options: argparse.Namespace, name: str, dsn: str) -> dict[str, Any]:
    command = [options.python, __file__, "--child", "--dsn", dsn, "--seconds", str(options.seconds), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 + 10 * options.seconds, check=False)
    if done.returncode:
        return {"missing": "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, lowest and highest of each figure."""
    if missing := [run["missing"] for run in runs if "missing" in run]:
        return {"missing": missing[0]}
    figures: dict[str, Any] = {}
    for load, meter in runs[0].items():
        for unit in meter:
            values = [run[load][unit] for run in runs]
            figures[f"{load}_{unit}"] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return figures


def show(name: str, figures: dict[str, Any]) -> str:
    if "missing" in figures:
        return f"{name:<26} {figures['missing']}"

    def cell(key: str, scale: float, digits: int) -> str:
        low, median, high = (figures[key][part] / scale for part in ("low", "median", "high"))
        return f"{median:>7.{digits}f} ({low:.{digits}f}–{high:.{digits}f})".ljust(22)

    cells = [("one_per_second", 1000, 1), ("one_cpu_us", 1, 0), ("pool_per_second", 1000, 1), ("pool_cpu_us", 1, 0)]
    return f"{name:<26} " + " ".join(cell(*each) for each in cells) + " " + cell("batch_cpu_us", 1000, 2)


def compare(options: argparse.Namespace, dsn: str) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.engines}
    for number in range(options.runs):
        for name in options.engines:
            if not any("missing" in run for run in runs[name]):
                print(f"run {number + 1} of {options.runs}: {name}", file=sys.stderr)
                runs[name].append(start_engine(options, name, dsn))
    return {name: summarise(each) for name, each in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("engines", nargs="*", default=[], metavar="ENGINE", help=", ".join(ENGINES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="per load and run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dsn")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the engines")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.engines = options.engines or list(ENGINES)
    if options.child:
        print(json.dumps(run_engine(options.engines[0], options.dsn, options.seconds)))
        return
    server, dsn = None, options.dsn
    if dsn is None:
        sys.path.insert(0, str(ROOT))
        from tests.support.postgres import PostgresServer

        server = PostgresServer()
        dsn = server.dsn("postgres")
    try:
        asyncio.run(prepare(dsn))
        results = compare(options, dsn)
    finally:
        if server is not None:
            server.stop()
    print(f"{'':<26} {'one: k/s':<22} {'one: CPU µs':<22} {'pool: k/s':<22} {'pool: CPU µs':<22}  500 rows: CPU ms")
    for name, figures in results.items():
        print(show(name, figures))
    if options.json:
        options.json.write_text(
            json.dumps({"runs": options.runs, "seconds": options.seconds, "engines": results}, indent=2)
        )


async def prepare(dsn: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(dsn)
    await connection.execute(SETUP)
    await connection.close()


if __name__ == "__main__":
    main()
