"""One truth for what a filter means: stored, counted and live answers against looking at every event.

Random events (deleted, expired, in channels or in none, `h` tags in every spelling, tags of every length) meet random
filters and rights. Each round compares some tens of thousands of (filter, event) decisions, three ways. More rounds:

    RELAY_DIFFERENTIAL_ROUNDS=500 RELAY_DIFFERENTIAL_SEED=1 scripts/test tests/query/test_differential.py
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

import pytest

from relay.asyncpg_trio import Pool
from relay.fanout.index import Subscription, SubscriptionIndex
from relay.nostr.filter import Filter, subscription_channels
from relay.query.conditions import Reach
from relay.query.count import count
from relay.query.replay import Limits, pages
from tests.query.stock import CHANNELS, NOW, Filed, answer, make_event, make_filter, shows, store

ROUNDS = int(os.environ.get("RELAY_DIFFERENTIAL_ROUNDS", "20"))
SEED = int(os.environ.get("RELAY_DIFFERENTIAL_SEED", "0"))
EVENTS = 300
REQUESTS = 120


@dataclass(frozen=True)
class Request:
    """What a client asks, and what it may read: as the relay would find it."""

    filters: list[Filter]
    channels: frozenset[str] | None
    reach: Reach

    @classmethod
    def make(cls, rng: random.Random, stock: list[Filed]) -> Request:
        filters = [make_filter(rng, stock) for _ in range(rng.choice([1, 1, 2, 3]))]
        accessible = frozenset(rng.sample(CHANNELS, rng.randrange(5)))
        channels = subscription_channels(filters)
        if channels is None:
            return cls(filters, None, Reach(accessible, global_events=rng.random() < 0.8))
        return cls(filters, channels & accessible, Reach(accessible, False, channels))


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
async def test_stored_counted_and_live_answers_are_those_of_the_plain_filter(pool: Pool, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    stock = [make_event(rng, number, mortal=True) for number in range(EVENTS)]
    await store(pool, stock)
    decisions = shown = 0
    for _ in range(REQUESTS):
        request = Request.make(rng, stock)
        expected = {each.event.id for each in stock if shows(each, request.filters, request.reach)}
        assert await stored(pool, request, rng) == answer(stock, request.filters, request.reach, default=20, most=30)
        number = await count(
            pool, [(wanted, request.reach) for wanted in request.filters], now=NOW, statement_seconds=10
        )  # fmt: skip
        assert number == len(expected), request
        # Live, a global subscription gets no channel's events; of the store it may be shown them.
        assert live(request, stock) == {
            each.event.id
            for each in stock
            if each.event.id in expected and (each.channel_id is None) == (request.channels is None)
        }, request
        decisions += len(stock) * len(request.filters)
        shown += len(expected)
    assert decisions >= 10_000
    assert shown > REQUESTS, "filters that match nothing prove nothing"


async def stored(pool: Pool, request: Request, rng: random.Random) -> list[str]:
    limits = Limits(rows_default=20, rows_max=30, page_rows=rng.choice([1, 2, 5, 500]))
    found = pages(pool, request.filters, request.reach, limits, now=NOW)
    return [row.id.hex() async for page in found for row in page]


def live(request: Request, stock: list[Filed]) -> set[str]:
    """The hub asks beside the index who may receive a channel, and leaves out what has expired."""
    if request.channels is None and not request.reach.global_events:
        return set()
    index = SubscriptionIndex()
    index.add(Subscription("connection", "s", tuple(request.filters), request.channels, b""))
    return {each.event.id for each in stock if each.is_there and index.match(each.event, each.channel_id)}
