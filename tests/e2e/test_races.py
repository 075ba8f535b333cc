"""The short form of scripts/race: every race, a few rounds of each. The seed is fixed; who wins never quite is."""

from __future__ import annotations

import pytest

from tests.e2e.races import against_a_process

pytestmark = [pytest.mark.slow, pytest.mark.torture]


async def test_of_two_things_at_once_only_one_has_its_way():
    told: list[str] = []
    breaches = await against_a_process(rounds=30, seed=1, lanes=3, say=told.append)
    assert breaches == [], "\n".join(told)
