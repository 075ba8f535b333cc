"""How a simulated database feels: the chances that a statement is taken with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mood:
    """How likely a statement meets what, and for how long."""

    name: str = "calm"
    latency_seconds: float = 0.0
    error: float = 0.0
    lost: float = 0.0
    doubt: float = 0.0  # of a COMMIT: done or not, and never answered
    refusal: float = 0.0  # of a COMMIT
    hang: float = 0.0
    hang_seconds: float = 0.0


CALM = Mood()
