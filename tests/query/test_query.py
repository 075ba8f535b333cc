"""Filters in SQL, compared with looking at every event; paging, snapshots, limits."""

from __future__ import annotations

import random
from typing import Any

import pytest

from relay.asyncpg_trio import Pool
from relay.nostr.event import Event
from relay.nostr.filter import Filter
from relay.query.conditions import Reach
from relay.query.replay import Limits, Row, pages
from relay.query.sql import select
from relay.store.events import insert_one
from relay.store.snapshot import Snapshot
from tests.query.stock import AUTHORS, CHANNELS, KINDS, NOW, START, Filed, make_event, store

EVERYTHING = Reach(frozenset(CHANNELS))

# Enough rows, and known well enough, for the planner to choose as it would in earnest.
FILL = """
INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, tag_values, signed_json)
SELECT sha256(n::text::bytea), sha256((n % 500)::text::bytea), n, n % 10, '[]', '', decode(repeat('00', 64), 'hex'),
       CASE WHEN n % 10 > 0 THEN ($1::uuid[])[1 + n % 4] END, ARRAY['e:' || n, 'p:' || n % 1000], '{}'
FROM generate_series(1, 20000) AS n"""


async def read(pool: Pool, filters: list[Filter], reach: Reach = EVERYTHING, **limits: Any) -> list[str]:
    found = pages(pool, filters, reach, Limits(**limits), now=NOW)
    return [row.id.hex() async for page in found for row in page]


async def test_a_uuid_in_h_asks_for_events_of_that_channel(pool: Pool) -> None:
    stranger = Filed(make_event(random.Random(1), 0).event, CHANNELS[1])
    stranger.event.tags = [["h", CHANNELS[1]], ["h", CHANNELS[0]]]
    elsewhere = Filed(make_event(random.Random(2), 0).event, None)
    elsewhere.event.tags = [["h", CHANNELS[0]]]
    await store(pool, [stranger, elsewhere])
    assert await read(pool, [Filter(tags={"h": frozenset({CHANNELS[0]})})]) == []
    assert await read(pool, [Filter(tags={"h": frozenset({CHANNELS[1]})})]) == [stranger.event.id]


async def test_a_subscription_about_channels_never_gets_global_events(pool: Pool) -> None:
    """A value that is no UUID keeps the condition on the channel out of the filter; the reach puts it back."""
    notice = Filed(make_event(random.Random(3), 0).event, None)
    notice.event.tags = [["h", CHANNELS[0]], ["p", AUTHORS[0]]]
    await store(pool, [notice])
    wanted = Filter(tags={"h": frozenset({CHANNELS[0], "junk"})})
    assert await read(pool, [wanted]) == [notice.event.id]
    assert await read(pool, [wanted], Reach(frozenset(CHANNELS), channels=frozenset({CHANNELS[0]}))) == []


async def test_deleted_events_are_left_out(pool: Pool) -> None:
    rng = random.Random(5)
    stock = [make_event(rng, number) for number in range(10)]
    await store(pool, stock)
    gone = stock[3].event.id
    await pool.execute("UPDATE events SET deleted_at = now() WHERE id = $1", bytes.fromhex(gone))
    found = await read(pool, [Filter()])
    assert gone not in found
    assert len(found) == 9


async def test_what_has_expired_is_left_out(pool: Pool) -> None:
    """To the second, and with a value that is no time the event stays."""
    ends = {"01": str(NOW - 1), "02": str(NOW), "03": str(NOW + 1), "04": "tomorrow"}
    stock = []
    for digits, end in ends.items():
        event = event_at(START, digits)
        event.tags = [["expiration", end]]
        stock.append(Filed(event, None))
    await store(pool, stock)
    assert await read(pool, [Filter()]) == ["03" * 32, "04" * 32]


async def test_what_is_unreadable_takes_no_place_in_the_limit(pool: Pool) -> None:
    """Original: the limit was applied first, so a caller's quiet channel drowned in everybody else's."""
    old = Filed(event_at(START, "01"), CHANNELS[0])
    newer = [Filed(event_at(START + 1 + number, f"{number + 2:02x}"), CHANNELS[1]) for number in range(50)]
    await store(pool, [old, *newer])
    assert await read(pool, [Filter(limit=5)], Reach(frozenset({CHANNELS[0]}))) == [old.event.id]


def event_at(created_at: int, digits: str) -> Event:
    return Event(digits * 32, AUTHORS[0], created_at, 9, [], "", "00" * 64)


def test_nothing_is_asked_where_nothing_can_match() -> None:
    for wanted in (
        Filter(kinds=frozenset()),
        Filter(ids=frozenset()),
        Filter(tags={"e": frozenset()}),
        Filter(tags={"e": frozenset({"a\0"})}),
        Filter(limit=0),
        Filter(since=2**63),
        Filter(since=5, until=4),
    ):
        assert select(wanted, EVERYTHING, now=NOW, limit_default=5, limit_max=5) is None, wanted
    assert select(Filter(), Reach(frozenset(), global_events=False), now=NOW, limit_default=5, limit_max=5) is None
    elsewhere = Filter(tags={"h": frozenset({CHANNELS[0]})})
    assert select(elsewhere, Reach(frozenset({CHANNELS[1]})), now=NOW, limit_default=5, limit_max=5) is None


async def test_no_filter_no_statement(pool: Pool) -> None:
    before = pool.statistics().statements_total
    found = pages(pool, [Filter(limit=0)], EVERYTHING, Limits(), now=NOW)
    assert [page async for page in found] == []
    assert found.snapshot is None
    assert pool.statistics().statements_total == before


async def test_an_empty_answer_still_has_its_snapshot(pool: Pool) -> None:
    found = pages(pool, [Filter(kinds=frozenset({1}))], EVERYTHING, Limits(), now=NOW)
    assert [page async for page in found] == []
    assert found.snapshot is not None


async def test_later_pages_show_what_the_first_snapshot_shows(pool: Pool) -> None:
    """Rows committed between two pages belong to the live side, wherever they sort."""
    rng = random.Random(8)
    stock = [make_event(rng, number) for number in range(30)]
    await store(pool, stock)
    found = pages(pool, [Filter(), Filter(kinds=frozenset(KINDS))], EVERYTHING, Limits(page_rows=10), now=NOW)
    got: list[Row] = list(await anext(found))
    late = [make_event(rng, number) for number in range(100, 130)]
    await store(pool, late)
    async for page in found:
        got += page
    assert sorted(row.id.hex() for row in got) == sorted(each.event.id for each in stock)
    assert found.snapshot is not None
    xids = [row[0] for row in await pool.fetch("SELECT xmin::text::bigint FROM events WHERE created_at > 0")]
    assert sum(found.snapshot.shows_row(xid) for xid in xids) == len(stock)


async def test_a_transaction_under_way_is_left_to_the_live_side(pool: Pool) -> None:
    """Its number is below the snapshot's end, yet it is not shown: only the list of those in progress says so."""
    rng = random.Random(9)
    stock = [make_event(rng, number) for number in range(20)]
    await store(pool, stock)
    async with pool.acquire() as con:
        pending = make_event(rng, 500)
        async with con.transaction():
            await insert_one(con, pending.event, None)
            await pool.execute("CREATE TABLE later (x int)")  # a later transaction that is over
            found = pages(pool, [Filter()], EVERYTHING, Limits(page_rows=5), now=NOW)
            got = list(await anext(found))
        async for page in found:
            got += page
    assert pending.event.id not in {row.id.hex() for row in got}
    assert len(got) == len(stock)
    assert isinstance(found.snapshot, Snapshot)
    assert found.snapshot.in_progress


async def test_no_connection_is_held_between_pages(pool: Pool) -> None:
    rng = random.Random(10)
    await store(pool, [make_event(rng, number) for number in range(20)])
    found = pages(pool, [Filter()], EVERYTHING, Limits(page_rows=5), now=NOW)
    await anext(found)
    assert pool.statistics().in_use == 0


async def test_ten_thousand_rows(pool: Pool) -> None:
    rng = random.Random(11)
    stock = [make_event(rng, number) for number in range(10_050)]
    await store(pool, stock)
    sizes = [len(page) async for page in pages(pool, [Filter(limit=20_000)], EVERYTHING, Limits(), now=NOW)]
    assert sizes == [500] * 20


async def test_one_channel_is_read_in_index_order(pool: Pool) -> None:
    """No sort: the index gives the page's order, so a page costs its rows and not the channel."""
    selection = select(
        Filter(tags={"h": frozenset({CHANNELS[0]})}), EVERYTHING, now=NOW, limit_default=500, limit_max=10_000
    )  # fmt: skip
    assert selection is not None
    statement, arguments = selection.page(500, (START, bytes(32)))
    async with pool.acquire() as con:
        await con.execute(FILL, CHANNELS)
        await con.execute("ANALYZE events")
        plan = "\n".join(row[0] for row in await con.fetch("EXPLAIN " + statement, *arguments))
    assert "events_channel" in plan
    assert "Sort" not in plan


async def test_another_spelling_of_a_channel_does_not_read_the_whole_channel(pool: Pool) -> None:
    channel = CHANNELS[0]
    spelt = channel.upper()
    filed = [Filed(event_at(START + number, f"{number:02x}"), channel) for number in range(40)]
    filed.append(Filed(make_with_tag(["h", spelt]), channel))
    await store(pool, filed)
    before = pool.statistics().statements_total
    found = await read(pool, [Filter(tags={"h": frozenset({spelt})})], page_rows=5)
    assert found == [filed[-1].event.id]
    assert pool.statistics().statements_total - before == 1


def make_with_tag(tag: list[str]) -> Event:
    return Event("ee" * 32, AUTHORS[0], START, 9, [tag], "", "00" * 64)


# -- plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(since=5),
        Filter(kinds=frozenset({1, 2, 3, 7})),
        Filter(authors=frozenset(f"{number:064x}" for number in range(1000))),
        Filter(tags={"e": frozenset({"5"}), "p": frozenset(AUTHORS)}),
        Filter(ids=frozenset(f"{number:064x}" for number in range(1000))),
    ],
    ids=["all", "since", "kinds", "authors", "two tags", "ids"],
)
async def test_no_filter_reads_the_whole_table(pool: Pool, wanted: Filter) -> None:
    async with pool.acquire() as con:
        await con.execute(FILL, CHANNELS)
        await con.execute("ANALYZE events")
        selection = select(wanted, EVERYTHING, now=NOW, limit_default=100, limit_max=100)
        assert selection is not None
        statement, arguments = selection.page(100, with_snapshot=True)
        plan = [line[0] for line in await con.fetch(f"EXPLAIN {statement}", *arguments)]
        assert not any("Seq Scan" in line for line in plan), "\n".join(plan)


MENTIONED = "ab" * 32

MENTIONS = """
WITH mentioning AS (
    UPDATE events SET tag_values = tag_values || $1::text WHERE created_at % 5 = 0 AND kind = 5
    RETURNING id, created_at, kind, channel_id
)
INSERT INTO event_mentions SELECT $2, id, created_at, kind, channel_id FROM mentioning"""


@pytest.mark.parametrize("after", [None, (15_000, bytes(32))], ids=["first page", "next page"])
async def test_the_newest_mentions_of_a_key_are_read_in_their_order(
    pool: Pool, after: tuple[int, bytes] | None
) -> None:
    """Of four thousand that mention the key a page reads as many as it has rows."""
    wanted = Filter(kinds=frozenset({5, 9}), tags={"p": frozenset({MENTIONED})})
    async with pool.acquire() as con:
        await con.execute(FILL, CHANNELS)
        await con.execute(MENTIONS, f"p:{MENTIONED}", bytes.fromhex(MENTIONED))
        await con.execute("ANALYZE events, event_mentions")
        selection = select(wanted, EVERYTHING, now=NOW, limit_default=50, limit_max=50)
        assert selection is not None
        statement, arguments = selection.page(50, after, with_snapshot=after is None)
        rows = await con.fetch(statement, *arguments)
        plan = "\n".join([line[0] for line in await con.fetch(f"EXPLAIN ANALYZE {statement}", *arguments)])
    newest = 20_000 if after is None else after[0]
    assert [row["created_at"] for row in rows] == [number for number in range(newest, 0, -1) if number % 10 == 5][:50]
    [mentions] = [line for line in plan.splitlines() if "event_mentions_newest" in line]
    assert int(mentions.split(" rows=")[2].split()[0].split(".")[0]) <= 51, plan
    assert "events_tags" not in plan


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(tags={"p": frozenset({MENTIONED})}),
        Filter(kinds=frozenset({9, 39002}), tags={"p": frozenset({MENTIONED})}),
        Filter(authors=frozenset(AUTHORS), kinds=frozenset({9}), tags={"p": frozenset({MENTIONED})}),
        Filter(kinds=frozenset({9}), tags={"p": frozenset({MENTIONED}), "e": frozenset({"5"})}),
        Filter(kinds=frozenset({9}), tags={"p": frozenset({MENTIONED.upper()})}),
        Filter(kinds=frozenset({9}), tags={"p": frozenset({MENTIONED, "ff" * 32})}),
        Filter(kinds=frozenset({9}), tags={"p": frozenset({MENTIONED}), "h": frozenset({CHANNELS[0].upper()})}),
    ],
    ids=["every kind", "lists of members", "an author", "another tag", "spelling", "two keys", "another channel"],
)
def test_what_mentions_alone_cannot_tell_is_asked_of_the_events(wanted: Filter) -> None:
    selection = select(wanted, EVERYTHING, now=NOW, limit_default=100, limit_max=100)
    assert selection is not None
    assert "event_mentions" not in selection.page(100)[0]


async def test_a_list_of_members_is_found_by_whom_it_names(pool: Pool) -> None:
    """Such a list mentions nobody: there is no row for it but its own."""
    event = make_with_tag(["p", MENTIONED])
    event.kind = 39002
    async with pool.acquire() as con:
        assert await insert_one(con, event, None)
    for kinds in (None, frozenset({39002}), frozenset({9, 39002})):
        assert await read(pool, [Filter(kinds=kinds, tags={"p": frozenset({MENTIONED})})]) == [event.id]


async def test_many_tag_values_are_looked_up_one_by_one(pool: Pool) -> None:
    """Which plan `&&` gets depends on statistics: a scan of the whole table comes only with more rows than here."""
    wanted = Filter(tags={"e": frozenset(str(number) for number in range(1000))})
    async with pool.acquire() as con:
        await con.execute(FILL, CHANNELS)
        await con.execute("ANALYZE events")
        selection = select(wanted, EVERYTHING, now=NOW, limit_default=100, limit_max=100)
        assert selection is not None
        statement, arguments = selection.page(100)
        plan = "\n".join([line[0] for line in await con.fetch(f"EXPLAIN {statement}", *arguments)])
    assert "tag_values @>" in plan
    assert "&&" not in plan


async def test_many_tag_values_are_looked_up_once_whatever_the_planner_believes(pool: Pool) -> None:
    """A young relay, before the first ANALYZE: the table is taken for empty."""
    await pool.execute(FILL.replace("20000", "2000"), CHANNELS)
    wanted = Filter(tags={"e": frozenset(str(number) for number in range(1, 500))}, limit=1000)
    selection = select(wanted, EVERYTHING, now=NOW, limit_default=500, limit_max=10_000)
    assert selection is not None
    statement, arguments = selection.page(1000)
    plan = "\n".join([line[0] for line in await pool.fetch(f"EXPLAIN ANALYZE {statement}", *arguments)])
    (values,) = [line for line in plan.splitlines() if "Function Scan on unnest" in line]
    assert "loops=1)" in values, plan
