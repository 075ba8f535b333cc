"""Lists of stored events against looking at every event; pages that end where the next begins; the bound in bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from relay.asyncpg_trio import Pool
from relay.nostr.filter import Filter, subscription_channels
from relay.query.conditions import Reach
from relay.query.gather import FREE_BYTES, Answers, AnswersTooLarge, AnswerTooLarge, gather
from relay.query.replay import Limits, Row
from relay.query.sql import Cursor
from tests.query.stock import CHANNELS, NOW, START, answer, make_event, make_filter, store

EVERYTHING = Reach(frozenset(CHANNELS))


async def gathered(
    pool: Pool,
    asked: Sequence[tuple[Filter, Cursor | None]],
    reach: Reach,
    limits: Limits,
    answers: Answers | None = None,
) -> list[Row]:
    found = (answers or Answers()).begin()
    await gather(pool, asked, reach, limits, found, now=NOW)
    return found.rows


@pytest.mark.parametrize("seed", range(5))
async def test_it_finds_what_looking_at_everything_finds(pool: Pool, seed: int) -> None:
    rng = random.Random(seed)
    stock = [make_event(rng, number, mortal=True) for number in range(200)]
    await store(pool, stock)
    shown = 0
    for _ in range(80):
        filters = [make_filter(rng, stock) for _ in range(rng.choice([1, 1, 2, 3]))]
        accessible = frozenset(rng.sample(CHANNELS, rng.randrange(5)))
        channels = subscription_channels(filters)
        reach = Reach(accessible, channels is None, channels)
        limits = Limits(rows_default=20, rows_max=30, page_rows=rng.choice([1, 2, 5, 500]))
        rows = await gathered(pool, [(each, None) for each in filters], reach, limits)
        assert [row.id.hex() for row in rows] == answer(stock, filters, reach, default=20, most=30)
        shown += len(rows)
    assert shown > 80, "filters that match nothing prove nothing"


@pytest.mark.parametrize("seed", range(5))
async def test_pages_one_behind_the_other_are_the_whole(pool: Pool, seed: int) -> None:
    """Hundreds of events in twelve seconds, `limit` and the rows of a statement at random, and a condition that is
    decided row by row."""
    rng = random.Random(seed)
    stock = [make_event(rng, number, mortal=True) for number in range(300)]
    await store(pool, stock)
    for wanted in (Filter(), Filter(tags={"h": frozenset(CHANNELS[:2])}), Filter(kinds=frozenset({9, 1059}))):
        channels = subscription_channels([wanted])
        reach = Reach(frozenset(CHANNELS), channels is None, channels)
        whole = answer(stock, [wanted], reach, default=1000, most=1000)
        assert len(whole) > 20
        found: list[str] = []
        after = None
        while True:
            limits = Limits(page_rows=rng.choice([1, 3, 500]))
            asked = rng.randrange(1, 40)
            rows = await gathered(pool, [(replace(wanted, limit=asked), after)], reach, limits)
            found += [row.id.hex() for row in rows]
            if len(rows) < asked:
                break
            after = (rows[-1].created_at, rows[-1].id)
        assert found == whole


async def test_until_goes_with_the_place(pool: Pool) -> None:
    """The place may lie anywhere: `until` is a condition of its own, whichever is earlier counts."""
    rng = random.Random(1)
    stock = [make_event(rng, number) for number in range(100)]
    await store(pool, stock)
    late = (START + 11, bytes(32))
    rows = await gathered(pool, [(Filter(until=START + 5), late)], EVERYTHING, Limits())
    assert [row.id.hex() for row in rows] == answer(
        stock, [Filter(until=START + 5)], EVERYTHING, default=1000, most=1000
    )


async def test_an_answer_is_bounded(pool: Pool) -> None:
    rng = random.Random(2)
    stock = [make_event(rng, number) for number in range(50)]
    await store(pool, stock)
    everything: list[tuple[Filter, Cursor | None]] = [(Filter(), None)]
    size = sum(len(each.event.json) for each in stock)
    assert len(await gathered(pool, everything, EVERYTHING, Limits(), Answers(size))) == 50
    for page_rows in (7, 500):
        limits = Limits(page_rows=page_rows)
        with pytest.raises(AnswerTooLarge):
            await gathered(pool, everything, EVERYTHING, limits, Answers(size - 1))
    # The same event found twice is one in the answer, and counts once.
    twice = everything * 2
    assert len(await gathered(pool, twice, EVERYTHING, Limits(), Answers(size))) == 50


def test_an_event_counts_once() -> None:
    found = Answers(10).begin()
    row = Row(b"1", b"12345678", None, 0)
    found.add([row])
    found.add([row, row])
    assert found.rows == [row]
    with pytest.raises(AnswerTooLarge):
        found.add([Row(b"2", b"123", None, 0)])


def test_all_answers_are_bounded_together() -> None:
    def row(name: bytes, count: int) -> list[Row]:
        return [Row(name, b"x" * count, None, 0)]

    answers = Answers(all_max=1000)
    one, two, small = answers.begin(), answers.begin(), answers.begin()
    one.add(row(b"1", FREE_BYTES + 900))
    two.add(row(b"2", FREE_BYTES + 50))
    two.add(row(b"3", 50))
    assert answers.held == 1000
    with pytest.raises(AnswersTooLarge):
        two.add(row(b"4", 1))
    two.release()
    one.add(row(b"5", 100))
    small.add(row(b"6", FREE_BYTES))
    for each in (one, one, two, small):
        each.release()
    assert answers.held == 0
