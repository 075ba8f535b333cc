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

from scripts.benchmarks import audit, channels, http_list, idle, index, load, search, start, stopped
from scripts.benchmarks.meter import Figures, fsync_ms
from scripts.benchmarks.scene import Rooms
from scripts.benchmarks.target import GENERATOR_CORE, Target, pin, raise_file_limit, target

LOADS: dict[str, Callable[[Target], Figures]] = {
    "ingest": lambda where: load.ingest(Rooms(where)),
    "ingest-1x1": lambda where: load.ingest(Rooms(where), connections=1, depth=1, events=3000),
    "ingest-32x16": lambda where: load.ingest(Rooms(where), connections=32, subscribers=0),
    "fanout": lambda where: load.fanout(Rooms(where)),
    "fanout-16": lambda where: load.fanout(Rooms(where), in_flight=16, events=600),
    "fanout-1": lambda where: load.fanout(Rooms(where), in_flight=1, events=300),
    "fanout-100": lambda where: load.fanout(Rooms(where), subscribers=100, in_flight=1, events=1500),
    "req": lambda where: load.req(Rooms(where)),
    "req-1": lambda where: load.req(Rooms(where), connections=1, requests=300),
    "connect": lambda where: load.connect(Rooms(where)),
    "channels": http_list.channels,
    "channels-4": partial(http_list.channels, connections=4),
    "stopped": stopped.stopped,
    "idle": idle.idle,
    "bystanders": index.through_relay,
}
TABLE = (
    "ingest", "ingest-1x1", "fanout", "fanout-16", "fanout-1", "fanout-100", "req", "req-1", "connect", "channels",
    "channels-4", "audit", "start", "stopped", "idle",
)  # fmt: skip
"""What the targets are about; `bench table` runs it whole."""
OTHERS = ("search", "audit", "index", "start")
SETTINGS = {
    "channels": {"SPROUT_DEV_X_PUBKEY": "true"},
    "channels-4": {"SPROUT_DEV_X_PUBKEY": "true"},
    "idle": {"SPROUT_MAX_CONNECTIONS": "20000"},
}
# Their warm-up would take as long as they do, and they have nothing to warm up.
COLD = ("idle", "stopped")
Result = dict[str, dict[str, float]]


def measure_load(name: str, options: argparse.Namespace, runs: int) -> list[Figures]:
    """One warm-up run and `runs` that count, against one relay."""
    with target(options.url, pid=options.pid, postgres=options.postgres, **SETTINGS.get(name, {})) as where:
        pin(GENERATOR_CORE)
        if name not in COLD:
            LOADS[name](where)
        fsync = {"fsync_ms": fsync_ms(where.data_dir)} if where.data_dir and name.startswith("ingest") else {}
        return [LOADS[name](where) | fsync for _ in range(runs)]


def measure_channels(options: argparse.Namespace, runs: int) -> list[Figures]:
    """The list over the socket, and, where the database is ours to fill, beside the original's plan."""
    from tests.support.postgres import PostgresServer

    compared: list[Figures] = [{}] * runs
    if options.url is None:
        # Before the generator is put on one core: the database would inherit it, and share it with the app.
        server = PostgresServer()
        gc.freeze()  # as the relay does when it has started
        try:
            compared = trio.run(partial(channels.run, server.dsn(server.create_database()), runs=runs + 1))[1:]
        finally:
            server.stop()
    served = measure_load("channels", options, runs)
    return [{**over_socket, **beside} for over_socket, beside in zip(served, compared, strict=True)]


def measure_other(name: str, url: str | None, runs: int) -> list[Figures]:
    """Those that bring their own database, or none: one warm-up and `runs` that count."""
    from tests.support.postgres import PostgresServer

    if url is not None:
        raise SystemExit(f"{name}: measures what it has started itself, not a running relay")
    if name == "index":
        pin(GENERATOR_CORE)
        return [trio.run(index.run) for _ in range(runs + 1)][1:]
    if name == "start":
        return start.run(runs)
    server = PostgresServer(durable=name == "audit")
    try:
        if name == "search":
            return trio.run(partial(search.run, server.dsn(server.create_database()), runs=runs + 1))[1:]
        return [trio.run(audit.run, server.dsn(server.create_database())) for _ in range(runs + 1)][1:]
    finally:
        server.stop()


def measure(name: str, options: argparse.Namespace) -> list[Figures]:
    if name == "channels":
        return measure_channels(options, options.runs)
    if name in OTHERS:
        return measure_other(name, options.url, options.runs)
    return measure_load(name, options, options.runs)


def summary(figures: list[Figures]) -> Result:
    """Median, lowest and highest of each figure."""
    return {
        name: {
            "median": statistics.median(run[name] for run in figures),
            "low": min(run[name] for run in figures),
            "high": max(run[name] for run in figures),
        }
        for name in figures[0]
    }


def number(value: float) -> str:
    """Three digits or more, whatever the size."""
    return f"{value:,.{1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3}f}"


def show(benchmark: str, result: Result, baseline: Result | None) -> None:
    print(benchmark)
    for name, values in result.items():
        line = f"  {name:32} {number(values['median']):>14}   ({number(values['low'])} to {number(values['high'])})"
        if baseline and name in baseline and baseline[name]["median"]:
            line += f"   {values['median'] / baseline[name]['median']:.2f} x baseline"
        print(line, flush=True)


def main() -> None:
    # These have options of their own.
    if sys.argv[1:2] in (["compare"], ["growth"], ["soak"]):
        from importlib import import_module

        import_module(f"scripts.benchmarks.{sys.argv[1]}").main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        epilog="also: compare, growth and soak, each with --help; `table` is what the targets are about.",
    )
    parser.add_argument("benchmark", choices=[*LOADS, *OTHERS, "driver", "table", "all"])
    parser.add_argument("--url", help="ws:// address of a running relay; default: start one on a core of its own")
    parser.add_argument("--pid", type=int, help="its process id, for what it uses")
    parser.add_argument("--runs", type=int, default=5, help="runs that count, after one warm-up (default 5)")
    parser.add_argument(
        "--postgres", choices=["same", "free"], default="same", help="PostgreSQL on the relay's core, or anywhere"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--baseline", type=Path, help="print ratios to the results in this file")
    options, rest = parser.parse_known_args()
    if options.benchmark == "driver":
        arguments = ["--json", str(options.json)] if options.json else []
        script = Path(__file__).parent.parent / "bench_driver.py"
        raise SystemExit(subprocess.run([sys.executable, script, *arguments, *rest], check=False).returncode)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    raise_file_limit()
    saved = json.loads(options.baseline.read_text())["results"] if options.baseline else {}
    groups = {"all": (*LOADS, *OTHERS), "table": TABLE}
    results = {}
    for name in groups.get(options.benchmark, (options.benchmark,)):
        results[name] = summary(measure(name, options))
        show(name, results[name], saved.get(name))
        if options.json:  # after each: a long table that is interrupted is not lost
            machine = {"python": platform.python_version(), "machine": platform.machine(), "runs": options.runs}
            about = machine | {"postgres": options.postgres}
            options.json.write_text(json.dumps({"machine": about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
