"""NIP-45: what is counted, and how often."""

from __future__ import annotations

import random
from typing import Any

import pytest

from relay import metrics
from relay.asyncpg_trio import Pool
from relay.nostr.event import Event
from relay.nostr.filter import Filter
from relay.query.conditions import Reach
from relay.query.count import count, statement
from tests.query.stock import AUTHORS, CHANNELS, NOW, START, Filed, make_event, spellings, store

EVERYTHING = Reach(frozenset(CHANNELS))


async def number(pool: Pool, *filters: Filter, reach: Reach = EVERYTHING) -> int:
    return await count(pool, [(wanted, reach) for wanted in filters], now=NOW, statement_seconds=10)


def event(digits: str, tags: list[list[str]] | None = None, content: str = "", kind: int = 9, at: int = 0) -> Event:
    return Event(digits * 32, AUTHORS[0], START + at, kind, tags or [], content, "00" * 64)


async def test_limit_does_not_count(pool: Pool) -> None:
    rng = random.Random(1)
    await store(pool, [make_event(rng, each) for each in range(700)])
    for limit in (None, 0, 5, 10_000):
        assert await number(pool, Filter(limit=limit)) == 700


async def test_an_event_counts_once_however_many_filters_it_meets(pool: Pool) -> None:
    await store(pool, [Filed(event("01"), None), Filed(event("02", kind=1), None), Filed(event("03"), CHANNELS[0])])
    nine, all_of_it, one = Filter(kinds=frozenset({9})), Filter(), Filter(ids=frozenset({"02" * 32}))
    assert await number(pool, nine) == 2
    assert await number(pool, nine, one) == 3
    assert await number(pool, nine, one, all_of_it, all_of_it) == 3
    assert await number(pool, nine, Filter(kinds=frozenset()), Filter(since=5, until=4)) == 2


async def test_deleted_and_expired_events_do_not_count(pool: Pool) -> None:
    stock = [Filed(event(f"{each:02x}", [["expiration", str(NOW + each)]]), None) for each in (0, 1, 2)]
    await store(pool, [*stock, Filed(event("0a"), None, deleted=True)])
    assert await number(pool, Filter()) == 2
    assert await number(pool, Filter(), Filter(kinds=frozenset({9}))) == 2


async def test_channels_out_of_reach_do_not_count(pool: Pool) -> None:
    await store(pool, [Filed(event("01"), CHANNELS[0]), Filed(event("02"), CHANNELS[1]), Filed(event("03"), None)])
    first = frozenset({CHANNELS[0]})
    assert await number(pool, Filter(), reach=Reach(first)) == 2
    assert await number(pool, Filter(), reach=Reach(first, global_events=False)) == 1
    assert await number(pool, Filter(tags={"h": frozenset({CHANNELS[1]})}), reach=Reach(first)) == 0


# What stands in `h`, and whether `#h` of the canonical channel counts it.
TAGS: list[tuple[list[list[str]], bool]] = [
    ([], True),
    ([["h", CHANNELS[0]]], True),
    ([["e", "x"], ["h", CHANNELS[0], "wss://relay"]], True),
    ([["h", CHANNELS[0].upper()]], False),
    ([["h", CHANNELS[0].upper()], ["h", CHANNELS[0]]], True),
    ([["h"]], False),
    ([["h"], ["h", CHANNELS[0]]], True),
    ([["h", "general"]], False),
    ([["p", "h", CHANNELS[0]], ["h", "general"]], False),
    ([["e", CHANNELS[0]], ["h", "general"]], False),
    ([["h", "general", CHANNELS[0]]], False),
    ([["hh", CHANNELS[0]], ["H", "x"]], True),
    ([["h", 'a"b\\c'], ["h", CHANNELS[0]]], True),
]


@pytest.mark.parametrize(("tags", "counts"), TAGS)
async def test_h_is_decided_to_the_byte(pool: Pool, tags: list[list[str]], counts: bool) -> None:
    await store(pool, [Filed(event("01", tags), CHANNELS[0])])
    assert await number(pool, Filter(tags={"h": frozenset({CHANNELS[0]})})) == counts
    assert await number(pool, Filter(tags={"h": frozenset({CHANNELS[0], "junk"})})) == counts
    for spelling in spellings(CHANNELS[0])[1:]:
        exact = any(tag[:2] == ["h", spelling] for tag in tags)
        assert await number(pool, Filter(tags={"h": frozenset({spelling})})) == exact


async def test_searches_count_what_has_at_least_one_word(pool: Pool) -> None:
    texts = ["alpha beta", "alpha", "beta gamma", "delta", "alpha sealed"]
    stock = [Filed(event(f"{at:02x}", content=text), None) for at, text in enumerate(texts)]
    stock[-1].event.kind = 1059
    await store(pool, stock)
    assert await number(pool, Filter(search="alpha")) == 2
    assert await number(pool, Filter(search="alpha beta")) == 3
    assert await number(pool, Filter(search="alpha"), Filter(search="delta"), Filter(kinds=frozenset({1059}))) == 4
    for nothing in ("", "!?", "language:en", "zeta"):
        assert await number(pool, Filter(search=nothing)) == 0


async def test_where_nothing_can_match_nothing_is_asked(pool: Pool) -> None:
    before = pool.statistics().statements_total
    for wanted in (Filter(kinds=frozenset()), Filter(search=" "), Filter(tags={"h": frozenset({"a\0"})})):
        assert statement([(wanted, EVERYTHING)], NOW) is None
        assert await number(pool, wanted) == 0
    assert await number(pool) == 0
    assert pool.statistics().statements_total == before


async def test_the_time_is_measured(pool: Pool) -> None:
    def observed() -> Any:
        return metrics.REGISTRY.get_sample_value("sprout_count_seconds_count")

    before = observed()
    await number(pool, Filter())
    assert observed() == before + 1
