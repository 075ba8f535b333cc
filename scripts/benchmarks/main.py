"""`scripts/bench`: runs a benchmark several times and prints median, spread and the ratio to a saved baseline."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from scripts.benchmarks import audit, channels, index, load, search
from scripts.benchmarks.target import GENERATOR_CORE, Target, pin, target

LOADS: dict[str, Callable[[Target], load.Figures]] = {
    "ingest": load.ingest,
    "fanout": load.fanout,
    "req": load.req,
    "connect": load.connect,
    "channels": load.channels,
    "bystanders": index.through_relay,
}
Result = dict[str, dict[str, float]]


def measure_load(name: str, url: str | None, runs: int) -> list[load.Figures]:
    """One warm-up run and `runs` that count, against one relay."""
    pin(GENERATOR_CORE)
    settings = {"SPROUT_DEV_X_PUBKEY": "true"} if name == "channels" else {}
    with target(url, **settings) as where:
        LOADS[name](where)
        return [LOADS[name](where) for _ in range(runs)]


def measure_channels(url: str | None, runs: int) -> list[load.Figures]:
    """The list over the socket, and, where the database is ours to fill, beside the original's plan."""
    from tests.support.postgres import PostgresServer

    compared: list[load.Figures] = [{}] * runs
    if url is None:
        # Before the generator is put on one core: the database would inherit it, and share it with the app.
        server = PostgresServer()
        gc.freeze()  # as the relay does when it has started
        try:
            compared = trio.run(partial(channels.run, server.dsn(server.create_database()), runs=runs + 1))[1:]
        finally:
            server.stop()
    served = measure_load("channels", url, runs)
    return [{**over_socket, **beside} for over_socket, beside in zip(served, compared, strict=True)]


def measure_search(url: str | None, runs: int) -> list[load.Figures]:
    from tests.support.postgres import PostgresServer

    if url is not None:
        raise SystemExit("search: measures on a database of its own, which it fills, not a running relay")
    server = PostgresServer()
    try:
        return trio.run(partial(search.run, server.dsn(server.create_database()), runs=runs + 1))[1:]
    finally:
        server.stop()


def measure_audit(url: str | None, runs: int) -> list[load.Figures]:
    from tests.support.postgres import PostgresServer

    if url is not None:
        raise SystemExit("audit: measures the worker on a database of its own, not a running relay")
    server = PostgresServer(durable=True)
    try:
        return [trio.run(audit.run, server.dsn(server.create_database())) for _ in range(runs + 1)][1:]
    finally:
        server.stop()


def measure_index(url: str | None, runs: int) -> list[load.Figures]:
    if url is not None:
        raise SystemExit("index: measures in its own process, not a running relay; `bystanders` does that")
    pin(GENERATOR_CORE)
    return [trio.run(index.run) for _ in range(runs + 1)][1:]


def summary(figures: list[load.Figures]) -> Result:
    """Median, lowest and highest of each figure."""
    return {
        name: {
            "median": statistics.median(run[name] for run in figures),
            "low": min(run[name] for run in figures),
            "high": max(run[name] for run in figures),
        }
        for name in figures[0]
    }


def show(benchmark: str, result: Result, baseline: Result | None) -> None:
    print(benchmark)
    for name, values in result.items():
        line = f"  {name:32} {values['median']:14,.1f}   ({values['low']:,.1f} to {values['high']:,.1f})"
        if baseline and name in baseline and baseline[name]["median"]:
            line += f"   {values['median'] / baseline[name]['median']:.2f} x baseline"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("benchmark", choices=[*LOADS, "search", "audit", "index", "driver", "all"])
    parser.add_argument("--url", help="ws:// address of a running relay; default: start one on a core of its own")
    parser.add_argument("--runs", type=int, default=5, help="runs that count, after one warm-up (default 5)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--baseline", type=Path, help="print ratios to the results in this file")
    options, rest = parser.parse_known_args()
    if options.benchmark == "driver":
        arguments = ["--json", str(options.json)] if options.json else []
        script = Path(__file__).parent.parent / "bench_driver.py"
        raise SystemExit(subprocess.run([sys.executable, script, *arguments, *rest], check=False).returncode)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    saved = json.loads(options.baseline.read_text())["results"] if options.baseline else {}
    names = [*LOADS, "search", "audit", "index"] if options.benchmark == "all" else [options.benchmark]
    results = {}
    for name in names:
        if name == "audit":
            figures = measure_audit(options.url, options.runs)
        elif name == "channels":
            figures = measure_channels(options.url, options.runs)
        elif name == "search":
            figures = measure_search(options.url, options.runs)
        elif name == "index":
            figures = measure_index(options.url, options.runs)
        else:
            figures = measure_load(name, options.url, options.runs)
        results[name] = summary(figures)
        show(name, results[name], saved.get(name))
    if options.json:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "runs": options.runs}
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
