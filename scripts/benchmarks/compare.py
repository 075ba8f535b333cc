"""`scripts/bench compare`: the same load against any Nostr relays, by turns with ours, as a table and a picture.

Everything is kind 1, told apart by a tag, so that every relay takes it. Ours runs as it always does: with
authentication, PostgreSQL and its audit log. It and the peers that are started here share one core by turns, the
generator has the other; a relay that is given by its address runs wherever it was started (`taskset -c 0` puts it on
the same core), and without its process id (`--pid`) nothing is said of its memory and CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from relay.nostr import nip19
from relay.nostr.keys import SecretKey
from scripts.benchmarks import load
from scripts.benchmarks.client import Client, key
from scripts.benchmarks.meter import Figures
from scripts.benchmarks.report import plot, table, write_block
from scripts.benchmarks.scene import Notes
from scripts.benchmarks.target import (
    GENERATOR_CORE,
    RELAY_CORE,
    Target,
    free_port,
    pin,
    raise_file_limit,
    running,
    target,
)

OURS = "this relay"
RUN_SECONDS = 3.0
"""About so long a run takes, whatever the relay: the number of events follows from a short first run."""
CHALLENGE_SECONDS = 1.0


@dataclass
class Subject:
    """One relay and what was measured of it; `faults` says in words why a load has no figures."""

    name: str
    scene: Notes
    figures: dict[str, list[Figures]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def median(self, name: str, figure: str) -> float | None:
        runs = self.figures.get(name)
        return statistics.median(run[figure] for run in runs) if runs and figure in runs[0] else None


# name: (a run of so many operations, operations of the first short run, most of a run, what tells its speed)
LOADS: dict[str, tuple[Callable[[Notes, int], Figures], int, int, str]] = {
    # First: memory that another load has used and given back would be taken again.
    "connect": (lambda scene, count: load.connect(scene, connections=count), 100, 2000, "connects_per_second"),
    "ingest": (lambda scene, count: load.ingest(scene, events=count, subscribers=0), 400, 16_000, "events_per_second"),
    "ingest-1x1": (
        lambda scene, count: load.ingest(scene, events=count, subscribers=0, connections=1, depth=1),
        100, 6000, "events_per_second",
    ),
    "req": (lambda scene, count: load.req(scene, requests=count), 40, 2000, "requests_per_second"),
    "fanout": (lambda scene, count: load.fanout(scene, events=count), 100, 1200, "events_per_second"),
    "fanout-1": (lambda scene, count: load.fanout(scene, events=count, in_flight=1), 20, 300, "events_per_second"),
    "fanout-100": (
        lambda scene, count: load.fanout(scene, events=count, in_flight=1, subscribers=100),
        50, 2000, "events_per_second",
    ),
}  # fmt: skip


def measure(subject: Subject, name: str) -> None:
    """One run, after a short one the first time; what goes wrong is kept in words."""
    if name in subject.faults:
        return
    run, first, most, speed = LOADS[name]
    try:
        if name not in subject.sizes:
            rate = run(subject.scene, first)[speed]
            # Whole shares of the eight connections of ingest.
            subject.sizes[name] = int(max(first, min(most, rate * RUN_SECONDS))) // 8 * 8
        subject.figures.setdefault(name, []).append(run(subject.scene, subject.sizes[name]))
    except (AssertionError, OSError) as error:
        subject.faults[name] = f"{type(error).__name__}: {error}"[:300]
        print(f"  {subject.name}: {name}: {subject.faults[name]}", file=sys.stderr)


def secret_key(text: str) -> SecretKey:
    """From nsec or hex."""
    kind, value = nip19.decode(text) if text.startswith("nsec") else ("nsec", text)
    if kind != "nsec" or not isinstance(value, str):
        raise SystemExit("--auth: neither auto, none nor a secret key")
    return SecretKey.from_hex(value)


def wants_login(where: Target) -> bool:
    """Whether the relay greets a new connection with a challenge."""
    client = Client(where.host, where.port, key(0), login=False, path=where.path)
    client.finish_upgrade()
    client.sock.settimeout(CHALLENGE_SECONDS)
    try:
        client.read("AUTH")
    except TimeoutError:
        return False
    finally:
        client.close()
    return True


@contextmanager
def peer(name: str) -> Iterator[Target]:
    """One of `peers`, on the relay's core."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.benchmarks.peers", name, str(port)], preexec_fn=lambda: pin(RELAY_CORE)
    )
    try:
        deadline = time.monotonic() + 300  # the first time it may have to be installed
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield Target("127.0.0.1", port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def subjects(options: argparse.Namespace, stack: ExitStack) -> list[Subject]:
    secret = None if options.auth in ("auto", "none") else secret_key(options.auth)
    found = [(OURS, stack.enter_context(target(None, postgres=options.postgres)))] if not options.without_ours else []
    found += [(name, stack.enter_context(peer(name))) for name in options.peer]
    names = options.name + options.url[len(options.name) :]
    pids = options.pid + [None] * len(options.url)
    found += [(name, running(url, pid)) for name, url, pid in zip(names, options.url, pids, strict=False)]
    return [
        Subject(name, Notes(where, login=options.auth != "none" and wants_login(where), secret=secret))
        for name, where in found
    ]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench compare", description=__doc__)
    parser.add_argument("url", nargs="*", help="ws:// addresses of running relays")
    parser.add_argument("--name", action="append", default=[], help="what to call them, in the same order")
    parser.add_argument("--pid", action="append", type=int, default=[], help="their process ids, in the same order")
    parser.add_argument("--peer", action="append", default=[], help="a relay to start here: nostr-sdk, nostr-relay-js")
    parser.add_argument(
        "--auth", default="auto",
        help="auto: each connection answers a challenge with a key of its own; none; or a secret key (nsec or hex)",
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--load", action="append", choices=list(LOADS), help="only this one; may be given again")
    parser.add_argument("--postgres", choices=["same", "free"], default="same")
    parser.add_argument("--without-ours", action="store_true", help="only the others")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="write a picture (PNG)")
    parser.add_argument("--write", type=Path, help="put the table into the marked block of this Markdown file")
    options = parser.parse_args(arguments)
    raise_file_limit()
    with ExitStack() as stack:
        found = subjects(options, stack)
        pin(GENERATOR_CORE)
        for name in options.load or LOADS:
            for number in range(options.runs):
                print(f"{name}: run {number + 1} of {options.runs}", file=sys.stderr)
                for subject in found:
                    measure(subject, name)
    text = table(found, options.runs)
    print(text)
    if options.json:
        whole = {each.name: {"figures": each.figures, "faults": each.faults} for each in found}
        options.json.write_text(json.dumps(whole, indent=1))
    if options.plot:
        plot(found, options.plot)
    if options.write:
        picture = os.path.relpath(options.plot, options.write.parent) if options.plot else None
        write_block(options.write, text, picture)
