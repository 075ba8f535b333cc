"""What one seed means: how the relay is made, how the database feels, who sends what, and which blows fall when."""

from __future__ import annotations

import random
from dataclasses import dataclass

from scripts.simulations.mood import CALM, Mood

MOODS = (
    CALM,
    Mood("slow", latency_seconds=0.3),
    Mood("moody", latency_seconds=0.05, error=0.05, lost=0.03),
    Mood("doubtful", latency_seconds=0.02, lost=0.02, doubt=0.3),
    Mood("refusing", latency_seconds=0.02, refusal=0.3, error=0.1),
    Mood("hanging", latency_seconds=0.02, hang=0.04, hang_seconds=6.0),
    Mood("beastly", latency_seconds=0.1, error=0.05, lost=0.05, doubt=0.2, refusal=0.1, hang=0.02, hang_seconds=15.0),
)

BLOWS = ("freeze", "crash", "hold row", "flood")
"""To the database, or by it: silence, kill -9, a row that somebody sits on; and from the clients: everybody at once."""
ENDS = ("SIGTERM", "two signals", "sibling", "worker", "cancelled", "launcher")
"""How the relay's life ends: a signal, two of them, the crash of a task beside the audit worker or of the worker's own
sink, cancellation from outside, the launcher's wish."""


@dataclass(frozen=True)
class Scenario:
    seed: int
    mood: Mood
    ending: str
    ends_at: float
    second_signal_after: float
    blows: tuple[tuple[float, str, float], ...]  # when, what, for how long
    clients: int
    requests: int  # of each client
    pause_seconds: float
    impatient: float  # the part of requests whose client goes away while it waits
    queue: int
    batch: int
    commit_queue: int
    effect_workers: int
    grace_seconds: float
    drain_seconds: float
    neighbour: bool
    forgetful: bool  # a producer that nobody closes

    @property
    def outage_seconds(self) -> float:
        """How long the database may be away altogether."""
        return sum(seconds for _, _, seconds in self.blows) + self.mood.hang_seconds


def draw(seed: int) -> Scenario:
    dice = random.Random(seed)
    long = dice.random() < 0.15  # long enough for patience to end, for the spool, and for what comes after it
    ends_at = dice.uniform(10, 40) if long else dice.choice([0.0, dice.uniform(0, 0.5), dice.uniform(0, 4)])
    blows = tuple(
        (
            dice.uniform(0, ends_at) if long else max(0.0, ends_at + dice.uniform(-2, 2)),
            dice.choice(BLOWS),
            dice.choice([0.05, 1.0, 4.9, 14.0]),
        )
        for _ in range(dice.choice([0, 0, 1, 1, 2]))
    )
    return Scenario(
        seed,
        mood=dice.choice(MOODS),
        ending=dice.choice((*ENDS, "SIGTERM", "SIGTERM", "SIGTERM")),
        ends_at=ends_at,
        second_signal_after=dice.uniform(0, 3),
        blows=blows,
        clients=dice.choice([3, 8, 20]),
        requests=dice.choice([2, 4, 8]),
        pause_seconds=8.0 if long else dice.choice([0.0, 0.05, 0.5]),
        impatient=dice.choice([0.0, 0.1]),
        queue=dice.choice([1, 4, 1000]),
        batch=dice.choice([2, 8, 256]),
        commit_queue=dice.choice([1, 2000]),
        effect_workers=dice.choice([1, 3]),
        grace_seconds=dice.choice([0.0, 0.0, 0.5]),
        drain_seconds=dice.choice([5.0, 5.0, 1.0]),
        neighbour=dice.random() < 0.4,
        forgetful=dice.random() < 0.2,
    )
