"""Kills a relay, or its PostgreSQL, under load, round after round, and checks what was promised.

    scripts/torture [--rounds N] [--seed N] [--connections N] [--postgres | --sigterm] [--keep]

Without an option the relay is killed with SIGKILL, now and then a second time while it starts again. --postgres kills
the embedded server in one of three ways while the relay goes on. --sigterm stops the relay in mid-load.

After every round, on the same data: every event that was answered OK true, or delivered, is stored; every stored event
has exactly one `event_created` entry, in outbox and log together and, once the outbox is empty, in the log; nothing
that was refused is stored; no effect is half done; `relay audit verify` exits 0.

Exit code 0: no breach; 1: at least one. The seed decides the load and the moments; it is printed.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from scripts.tortures.checks import check
from scripts.tortures.load import Load, Record
from scripts.tortures.process import ReadinessWatch, Relay, fresh_relay, kill_postgres

LOAD_SECONDS = (0.1, 1.5)
"""Between these the moment of the kill is chosen."""
AFTERWARDS_SECONDS = 1.0
"""How long the load goes on after PostgreSQL was killed, at least."""
ANSWER_SECONDS = 20.0
EXIT_SECONDS_MAX = 8.5
"""The promise is eight; the half is for a machine that does other things."""


@dataclass
class Campaign:
    """One relay's sufferings: what was found wrong, and the figures."""

    relay: Relay
    record: Record
    chance: random.Random
    connections: int
    breaches: list[str] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def figure(self, name: str, value: float) -> str:
        self.figures.setdefault(name, []).append(value)
        return f"{name} {value:.2f} s"

    def load(self) -> Load:
        return Load(self.relay.port, self.connections, self.record, self.chance)

    def moment(self) -> float:
        return self.chance.uniform(*LOAD_SECONDS)

    def start(self) -> str:
        return self.figure("ready after", self.relay.start())


def kill_round(campaign: Campaign) -> list[str]:
    """SIGKILL of the relay; PostgreSQL, its child, is told so by the kernel."""
    relay = campaign.relay
    load = campaign.load()
    _at(campaign.moment(), lambda: relay.signal(signal.SIGKILL))
    if not load.run(lambda: load.all_gone, 10):
        campaign.breaches.append("connections outlived the relay that served them")
    load.close()
    relay.wait(10)
    told = []
    if campaign.chance.random() < 0.25:
        relay.spawn()
        time.sleep(campaign.chance.uniform(0, 1.5))
        relay.kill()
        told.append("killed again at its start")
    return [campaign.start(), *told]


def postgres_round(campaign: Campaign) -> list[str]:
    """SIGKILL of PostgreSQL: the relay goes on, loses no connection, and works again."""
    relay, breaches = campaign.relay, campaign.breaches
    load, killed, ways = campaign.load(), [0.0], [""]

    def kill() -> None:
        killed[0] = time.monotonic()
        ways[0] = kill_postgres(relay, campaign.chance)

    with ReadinessWatch(relay.port) as watch:
        timer = _at(campaign.moment(), kill)
        load.run(lambda: not timer.is_alive(), 10)
        works = load.run(lambda: bool(load.moments) and load.moments[-1] > killed[0] + AFTERWARDS_SECONDS, 15)
        answered = load.run(lambda: load.waiting == 0 or load.all_gone, ANSWER_SECONDS, publish=False)
    if not works:
        breaches.append("nothing was accepted any more after PostgreSQL had been killed")
    if not answered:
        breaches.append(f"{load.waiting} events were never answered")
    if load.gone:
        breaches.append(f"{load.gone} connections were lost with PostgreSQL")
    if not ways[0]:
        breaches.append("PostgreSQL could not be killed")
    if strange := {status for _, status in watch.answers} - {200, 503}:
        breaches.append(f"readiness answered {strange}")
    down, up = watch.outage(killed[0])
    told = [f"killed {ways[0]}", campaign.figure("longest silence", load.silence())]
    if down is None:
        told.append("never seen unready")
    elif up is None:
        breaches.append("readiness did not return")
    else:
        told += [campaign.figure("unready after", down), campaign.figure("ready again after", up)]
    load.close()
    if relay.process is None or relay.process.poll() is not None:
        breaches.append("the relay did not survive the death of PostgreSQL")
    return told


def sigterm_round(campaign: Campaign) -> list[str]:
    """SIGTERM in mid-load, then a new start."""
    relay = campaign.relay
    load, told_at = campaign.load(), [0.0]

    def terminate() -> None:
        told_at[0] = time.monotonic()
        relay.signal(signal.SIGTERM)

    _at(campaign.moment(), terminate)
    load.run(lambda: load.all_gone, 15)
    load.close()
    return [*_exit(campaign, told_at), campaign.start()]


def _exit(campaign: Campaign, told_at: list[float]) -> list[str]:
    """Judges the end of a relay that was told to stop."""
    try:
        code = campaign.relay.wait(20)
    except subprocess.TimeoutExpired:
        campaign.breaches.append("the relay does not end")
        campaign.relay.kill()
        return []
    took = time.monotonic() - told_at[0]
    if code not in (0, 75):
        campaign.breaches.append(f"exit code {code}")
    if took > EXIT_SECONDS_MAX:
        campaign.breaches.append(f"the stop took {took:.1f} s")
    return [f"exit code {code}", campaign.figure("stopped after", took)]


def _at(seconds: float, act: Callable[[], None]) -> threading.Timer:
    """Whatever the load is doing at that moment."""
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


ROUNDS: dict[str, Callable[[Campaign], list[str]]] = {
    "kill": kill_round,
    "postgres": postgres_round,
    "sigterm": sigterm_round,
}


def campaign(
    mode: str, *, rounds: int, seed: int, connections: int = 8, keep: bool = False, say: Callable[[str], None] = print
) -> list[str]:
    """Run it; returns the breaches of all rounds."""
    with fresh_relay(keep=keep) as relay:
        current = Campaign(relay, Record(), random.Random(f"{mode} {seed}"), connections)
        current.start()
        for number in range(1, rounds + 1):
            before, accepted = len(current.breaches), len(current.record.accepted)
            told = ROUNDS[mode](current)
            accepted = len(current.record.accepted) - accepted
            found, counts = check(relay, current.record)
            current.breaches += found
            new = [f"round {number}: {breach}" for breach in current.breaches[before:]]
            current.breaches[before:] = new
            say(
                f"{mode} {number}/{rounds}: {accepted} accepted, "
                f"{counts['stored']} stored and {counts['entries']} chained in all; {', '.join(told)}; "
                + ("ok" if not new else "BREACH")
            )
            for breach in new:
                say(f"  {breach}")
            if mode == "postgres" and number < rounds:
                # A server that dies again and again within a minute ends the relay on purpose: a new one each round.
                began = time.monotonic()
                relay.signal(signal.SIGTERM)
                _exit(current, [began])
                current.start()
        _summary(current, say)
        return current.breaches


def _summary(current: Campaign, say: Callable[[str], None]) -> None:
    for name, values in current.figures.items():
        say(f"{name}: median {statistics.median(values):.2f} s, worst {max(values):.2f} s, of {len(values)}")
    record = current.record
    say(f"{len(record.sent)} sent, {len(record.accepted)} accepted, {len(record.delivered)} delivered")
    for reason, count in record.reasons().most_common():
        say(f"refused {count} times: {reason}")
    say(f"breaches: {len(current.breaches)}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--keep", action="store_true", help="leave the data directory and the log where they are")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--postgres", dest="mode", action="store_const", const="postgres", default="kill")
    mode.add_argument("--sigterm", dest="mode", action="store_const", const="sigterm")
    options = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)

    def say(text: str) -> None:
        print(text, flush=True)

    breaches = campaign(
        options.mode, rounds=options.rounds, seed=seed, connections=options.connections, keep=options.keep, say=say
    )
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
