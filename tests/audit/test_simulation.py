"""A thousand lives of a relay in virtual time (scripts/simulate runs more), and bugs that they have to find."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from relay.audit.sink import PoolSink
from relay.shutdown import ExitCode
from scripts.simulations import main
from scripts.simulations.connection import SimulatedPool
from scripts.simulations.judge import judge
from scripts.simulations.planted import PLANTS
from scripts.simulations.scenario import draw
from scripts.simulations.server import Server
from scripts.simulations.world import live
from tests.audit.test_sink import TestBoth as OfEverySink

SEEDS, BLOCK = 1000, 250


class Simulated:
    """The real sink on the simulated server, for the suite that the real server runs too."""

    def __init__(self, server):
        self.server = server

    def sink(self, **options):
        return PoolSink(SimulatedPool(self.server, "test", name="audit"), **options)

    async def commit(self, some):
        self.server.commit_entries(some, "test")

    async def rows(self):
        return list(self.server.log)

    async def waiting(self):
        return len(self.server.outbox)


@pytest.fixture
async def store(nursery):
    return Simulated(Server(random.Random(1), nursery))


class TestTheServerIsLikeTheRealOne(OfEverySink):
    pass


class TestLives:
    @pytest.mark.torture
    @pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
    def test_what_was_promised_is_kept_in_every_life(self, first):
        ends: Counter[ExitCode] = Counter()
        failed = {}
        for seed in range(first, first + BLOCK):
            life = live(draw(seed))
            ends[life.code] += 1
            if breaches := judge(life):
                failed[seed] = breaches
        assert failed == {}  # repeat one with: scripts/simulate --first SEED --seeds 1
        assert all(ends[code] > BLOCK / 20 for code in (ExitCode.DRAINED, ExitCode.UNFINISHED, ExitCode.CRASHED))

    def test_a_seed_is_a_life(self):
        def told(life):
            answers = [(one.what, one.began, one.ended, one.outcome and one.outcome.message) for one in life.requests]
            return answers, life.ended, life.code, len(life.server.log), life.server.commits

        scenario = draw(26)
        assert told(live(scenario)) == told(live(scenario))
        assert told(live(scenario)) != told(live(replace(scenario, seed=27)))

    def test_a_life_that_fails_is_told_with_the_command_that_repeats_it(self, capsys):
        with PLANTS["last row forgotten"]():
            assert main.campaign(0, 2) > 0
        out = capsys.readouterr().out
        assert "scripts/simulate --first" in out
        assert "2/2 seeds" in out
        assert "virtual hours" in out


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name):
    with PLANTS[name]():
        seed = main.search(0, 2 * SEEDS)
    assert seed is not None
    assert main.trial(seed)[0] == []  # it was the bug
