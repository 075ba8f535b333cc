"""The short form of scripts/torture: the same kills, the same questions, a few rounds of each.

The seed is fixed, so that what is published is the same in every run; the moment of a kill never quite is.
"""

from __future__ import annotations

import pytest

from scripts.tortures.main import campaign

pytestmark = [pytest.mark.torture, pytest.mark.slow]


@pytest.mark.parametrize(("mode", "rounds"), [("kill", 2), ("postgres", 1), ("sigterm", 1)])
def test_nothing_that_was_acknowledged_is_lost(mode: str, rounds: int):
    told: list[str] = []
    assert campaign(mode, rounds=rounds, seed=1, say=told.append) == [], "\n".join(told)
