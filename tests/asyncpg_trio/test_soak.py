"""The short form of the cancellation soak; the long one is `scripts/soak-driver SECONDS`."""

from __future__ import annotations

import pytest
import trio

from tests.asyncpg_trio.soak import Tally, soak


@pytest.mark.torture
@pytest.mark.slow
async def test_no_answer_ever_goes_to_another_question(empty_dsn: str):
    with trio.fail_after(60):
        tally = await soak(empty_dsn, 5.0, seed=1)
    assert tally.wrong == []
    assert tally.answers > 500
    assert tally.cancelled > 500
    assert tally.committed
    assert tally.rolled_back


def test_the_tally_notices_a_wrong_answer():
    tally = Tally()
    tally.check(1, 1)
    tally.check(1, 2)
    assert (tally.answers, len(tally.wrong)) == (2, 1)
