"""A campaign: one relay, round after round of one kind of suffering, and after each the same questions.

In: a `Mode`, which says what is done to the relay. Out: breaches as sentences, figures, and a line that sums up.
"""

from __future__ import annotations

import random
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from scripts.tortures.checks import check
from scripts.tortures.failpoints import FAILPOINTS
from scripts.tortures.load import Load, Record
from scripts.tortures.process import NotReadyError, Relay, fresh_relay

LOAD_SECONDS = (0.1, 1.5)
"""Between these the moment of a kill is chosen."""
EXIT_SECONDS_MAX = 8.0
READY, STOPPED = "ready after", "stopped after"
NO_GRACE = {"SPROUT_GRACE_SECONDS": "0"}
OFTEN = {"SPROUT_AUDIT_CHECKPOINT_ENTRIES": "200", "SPROUT_AUDIT_CHECKPOINT_SECONDS": "1"}
"""Checkpoints all the time, so that every round has some to lose."""

Say = Callable[[str], None]


@dataclass
class Campaign:
    """One relay's sufferings: what was found wrong, and the figures."""

    relay: Relay
    record: Record
    chance: random.Random
    connections: int = 8
    number: int = 0
    """Of the round."""
    breaches: list[str] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)
    lost: int = 0
    doubled: int = 0
    places: Sequence[str] = tuple(FAILPOINTS)
    """At which the relay dies, one after the other."""

    def place(self, number: int) -> str:
        return self.places[number % len(self.places)]

    def figure(self, name: str, value: float) -> str:
        self.figures.setdefault(name, []).append(value)
        return f"{name} {value:.2f} s"

    def load(self, relay: Relay | None = None) -> Load:
        return Load((relay or self.relay).port, self.connections, self.record, self.chance)

    def moment(self) -> float:
        return self.chance.uniform(*LOAD_SECONDS)

    def start(self, relay: Relay | None = None) -> str:
        """After whatever happened a start must work; checkpoints that do not fit the log would forbid it.

        Raises:
            NotReadyError: It does not.
        """
        return self.figure(READY, (relay or self.relay).start())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> list[str]:
        """Tells the relay to stop, now, and judges its end."""
        began = time.monotonic()
        self.relay.signal(number)
        return self.judge_exit(began)

    def judge_exit(self, told_at: float, codes: tuple[int, ...] = (0, 75)) -> list[str]:
        """Judges the end of a relay that was told to stop."""
        try:
            code = self.relay.wait(20)
        except subprocess.TimeoutExpired:
            self.breaches.append("the relay does not end")
            self.relay.end()
            return []
        took = time.monotonic() - told_at
        if code not in codes:
            self.breaches.append(f"exit code {code}")
        if took > EXIT_SECONDS_MAX:
            self.breaches.append(f"the stop took {took:.2f} s")
        return [f"exit code {code}", self.figure(STOPPED, took)]

    def ask(self) -> str:
        """The questions, to a relay that runs."""
        found = check(self.relay, self.record)
        self.breaches += found.breaches
        self.lost += found.lost
        self.doubled += found.doubled
        return f"{found.stored} stored, {found.entries} chained and {found.checkpoints} checkpoints in all"


@contextmanager
def embedded(settings: Mapping[str, str], *, keep: bool) -> Iterator[Relay]:
    """A relay with the database that it brings along: what it usually is."""
    with fresh_relay(keep=keep) as relay:
        relay.settings = dict(settings)
        yield relay


@dataclass(frozen=True, slots=True)
class Mode:
    """`suffer` does one round and leaves a relay that runs; it returns what is told of it, and adds to the breaches.
    `rounds` of them are a campaign that can be believed."""

    about: str
    suffer: Callable[[Campaign], list[str]]
    rounds: int
    settings: Mapping[str, str] = field(default_factory=dict)
    anew: bool = False
    """A relay of its own for each round, on the same data."""
    place: Callable[..., AbstractContextManager[Relay]] = embedded
    begin: Callable[[Campaign], object] = Campaign.start


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of a mode. `places`: for the mode that has some; `settings` go over the mode's own."""

    rounds: int
    seed: int
    connections: int = 8
    keep: bool = False
    places: Sequence[str] = tuple(FAILPOINTS)
    settings: Mapping[str, str] = field(default_factory=dict)


def run(name: str, mode: Mode, plan: Plan, say: Say) -> list[str]:
    """Returns the breaches of all rounds. A relay that does not start again is the last of them."""
    rounds = plan.rounds
    with mode.place(OFTEN | dict(mode.settings) | dict(plan.settings), keep=plan.keep) as relay:
        chance = random.Random(f"{name} {plan.seed}")
        current = Campaign(relay, Record(), chance, plan.connections, places=plan.places)
        began = time.monotonic()
        try:
            mode.begin(current)
            for current.number in range(1, rounds + 1):
                _round(name, mode, current, rounds, say)
        except NotReadyError as error:
            current.breaches.append(f"round {current.number}: the relay is not ready: {error}")
            say(f"  {current.breaches[-1]}")
        _summary(name, current, time.monotonic() - began, say)
        return current.breaches


def _round(name: str, mode: Mode, current: Campaign, rounds: int, say: Say) -> None:
    before, accepted = len(current.breaches), len(current.record.accepted)
    told = mode.suffer(current)
    accepted = len(current.record.accepted) - accepted
    counts = current.ask()
    new = [f"round {current.number}: {breach}" for breach in current.breaches[before:]]
    current.breaches[before:] = new
    verdict = "BREACH" if new else "ok"
    say(f"{name} {current.number}/{rounds}: {accepted} accepted, {counts}; {', '.join(told)}; {verdict}")
    for breach in new:
        say(f"  {breach}")
    if mode.anew and current.number < rounds:
        current.stop()
        current.start()


def _summary(name: str, current: Campaign, seconds: float, say: Say) -> None:
    for figure, values in current.figures.items():
        say(f"{figure}: median {statistics.median(values):.2f} s, worst {max(values):.2f} s, of {len(values)}")
    record = current.record
    say(f"{len(record.sent)} sent, {len(record.accepted)} accepted, {len(record.delivered)} delivered")
    for reason, count in record.reasons().most_common():
        say(f"refused {count} times: {reason}")
    acknowledged = len(record.accepted) + record.logins
    say(
        f"{name}: {current.number} rounds in {seconds:.0f} s, {acknowledged} acknowledged, {current.lost} lost, "
        f"{current.doubled} doubled, slowest exit {_worst(current, STOPPED)}, slowest ready {_worst(current, READY)}, "
        f"{len(current.breaches)} breaches"
    )


def _worst(current: Campaign, name: str) -> str:
    values = current.figures.get(name)
    return f"{max(values):.2f} s" if values else "-"


def at(seconds: float, act: Callable[[], None]) -> threading.Timer:
    """Whatever the load is doing at that moment."""
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer
