"""Pages of messages and answers over the real table: every row once, in both directions; and the plans behind them."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator

import pytest

from relay.asyncpg_trio import Connection, Pool
from relay.asyncpg_trio.errors import StatementTimeout
from relay.store import message_list, places, thread_list
from relay.store.message_list import PLANNING, RECENT_REPLIES
from relay.store.places import PAIR_ROWS, Place
from relay.store.thread_list import NotReadable

NOW = 1_790_000_000
ME = "ab" * 32
ROOT = b"\x01" * 32


@pytest.fixture
async def pool(migrated_dsn: str) -> AsyncIterator[Pool]:
    async with Pool(migrated_dsn, size_max=2, size_min=1) as found:
        yield found


async def channel(con: Connection) -> str:
    channel_id = str(uuid.uuid4())
    await con.execute("INSERT INTO channels (id, name, created_by) VALUES ($1, 'c', sha256('x'))", channel_id)
    return channel_id


async def fill(con: Connection, channel_id: str, rows: list[tuple[bytes, int]], kind: int = 9) -> None:
    """Events of nothing but an id and a time."""
    await con.execute(
        "INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json) "
        "SELECT i.id, sha256(i.id), i.at, $4, '[]', '', decode(repeat('00', 64), 'hex'), $3, '{}' "
        "FROM unnest($1::bytea[], $2::bigint[]) AS i(id, at)",
        [event_id for event_id, _ in rows],
        [at for _, at in rows],
        channel_id,
        kind,
    )


def some_rows(chosen: random.Random, number: int) -> list[tuple[bytes, int]]:
    """Within four seconds, some with equal first bytes: at most as many as a page and its extra rows can hold."""
    rows = [(chosen.randbytes(32), NOW + chosen.randrange(4)) for _ in range(number)]
    for _ in range(8):
        prefix, at = chosen.randbytes(3), NOW + chosen.randrange(4)
        rows += [(prefix + chosen.randbytes(29), at) for _ in range(chosen.randint(2, 1 + PAIR_ROWS))]
    return rows


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("kinds", [None, [9]])
async def test_the_pages_together_are_the_list(
    pool: Pool, con: Connection, seed: int, descending: bool, kinds: list[int] | None
) -> None:
    chosen = random.Random(seed)
    channel_id = await channel(con)
    rows = some_rows(chosen, 120)
    await fill(con, channel_id, rows)
    await fill(con, await channel(con), [(chosen.randbytes(32), NOW) for _ in range(20)])
    expected = sorted(rows, key=lambda each: (-each[1] if descending else each[1], each[0]))
    seen: list[str] = []
    place = None if descending else Place(NOW - 1)
    while True:
        limit = chosen.choice([1, 2, 3, 10, 50])
        found = await message_list.page(
            pool,
            channel_id,
            ME,
            now=NOW,
            limit=limit,
            statement_seconds=5,
            before=place if descending else None,
            since=None if descending else place,
            kinds=kinds,
        )
        assert found is not None
        end, cursor = places.cut(found, limit)
        seen += [message.event_id for message in found[:end]]
        if cursor is None:
            break
        place = places.parse(cursor)
        assert len(seen) < len(rows)
    assert seen == [event_id.hex() for event_id, _ in expected]


@pytest.mark.parametrize("seed", range(4))
async def test_the_pages_of_a_thread_together_are_the_thread(con: Connection, seed: int) -> None:
    chosen = random.Random(seed)
    channel_id = await channel(con)
    rows = some_rows(chosen, 120)
    await fill(con, channel_id, [(ROOT, NOW - 10), *rows])
    await make_answers(con, channel_id, ROOT, rows)
    seen: list[str] = []
    after: tuple[int, bytes | None] | None = None
    while True:
        limit = chosen.choice([1, 2, 3, 10, 50])
        page = await thread_list.replies(con, channel_id, ME, ROOT, now=NOW, limit=limit, after=after)
        if not page:
            break
        seen += [reply.event_id for reply in page]
        after = (page[-1].created_at, bytes.fromhex(page[-1].event_id))
    assert seen == [event_id.hex() for event_id, _ in sorted(rows, key=lambda each: (each[1], each[0]))]
    whole_second = await thread_list.replies(con, channel_id, ME, ROOT, now=NOW, limit=1000, after=(NOW + 1, None))
    assert {reply.created_at for reply in whole_second} == {NOW + 2, NOW + 3}


async def make_answers(con: Connection, channel_id: str, root: bytes, rows: list[tuple[bytes, int]]) -> None:
    await con.execute(
        "INSERT INTO thread_metadata (event_id, channel_id, created_at, parent_event_id, root_event_id, depth) "
        "SELECT i.id, $3, i.at, $4, $4, 1 FROM unnest($1::bytea[], $2::bigint[]) AS i(id, at)",
        [event_id for event_id, _ in rows],
        [at for _, at in rows],
        channel_id,
        root,
    )
    await con.execute(
        "INSERT INTO thread_metadata (event_id, channel_id, created_at, reply_count, descendant_count) "
        "VALUES ($1, $2, $3, $4, $4)",
        root,
        channel_id,
        NOW,
        len(rows),
    )


async def test_participants_are_looked_for_among_the_newest_answers(con: Connection) -> None:
    channel_id = await channel(con)
    rows = [(number.to_bytes(32, "big"), NOW + number) for number in range(RECENT_REPLIES + 1)]
    await fill(con, channel_id, [(ROOT, NOW - 10), *rows])
    await make_answers(con, channel_id, ROOT, rows)
    # One talks on and on; who wrote before the newest hundred is not looked for.
    await con.execute("UPDATE events SET pubkey = sha256('talker') WHERE created_at > $1", NOW + 1)
    found = await thread_list.root(con, channel_id, ME, ROOT, now=NOW)
    assert found is not None
    assert found.summary is not None
    authors = [await con.fetchval(f"SELECT encode(sha256({what}), 'hex')") for what in ("'talker'", f"'\\x{1:064x}'")]
    assert list(found.summary.participants) == authors


async def test_a_channel_that_the_key_may_not_read(pool: Pool, con: Connection) -> None:
    channel_id = await channel(con)
    await fill(con, channel_id, [(ROOT, NOW)])
    await make_answers(con, channel_id, ROOT, [])
    await con.execute("UPDATE channels SET visibility = 'private'")
    assert await message_list.page(pool, channel_id, ME, now=NOW, limit=9, statement_seconds=5) is None
    with pytest.raises(NotReadable):
        await thread_list.root(con, channel_id, ME, ROOT, now=NOW)
    # Removed between the two statements of a thread: the second one shows nothing.
    assert await thread_list.replies(con, channel_id, ME, ROOT, now=NOW, limit=9) == []


async def test_a_statement_that_takes_too_long(pool: Pool, con: Connection) -> None:
    channel_id = await channel(con)
    async with con.transaction():
        await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StatementTimeout):
            await message_list.page(pool, channel_id, ME, now=NOW, limit=9, statement_seconds=0.05, kinds=[9])


async def test_plans_walk_the_index(con: Connection) -> None:
    """Over a channel with 20 000 messages: the page reads not much more than its rows, by a plan for any arguments too;
    and a kind that the channel has not is found missing without reading the channel."""
    channel_id = await channel(con)
    await con.execute(
        "INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json) "
        "SELECT sha256(i::text::bytea), sha256('x'), $2::bigint + i, 9, '[]', '', decode(repeat('00', 64), 'hex'), $1, "
        "'{}' FROM generate_series(1, 20000) AS i",
        channel_id,
        NOW,
    )
    await con.execute("VACUUM ANALYZE events, thread_metadata, reactions, channels")
    arguments = [channel_id, bytes.fromhex(ME), NOW, 204, *places.older(None), *places.newer(None)]
    for mode in ("force_generic_plan", "force_custom_plan"):
        await con.execute(f"SET plan_cache_mode = {mode}")
        assert await blocks(con, message_list._NEWEST, *arguments) < 100
    async with con.transaction():
        await con.execute(PLANNING)
        assert await blocks(con, message_list._NEWEST_OF_KINDS, *arguments, [45001]) < 20


async def test_a_thread_is_not_looked_for_among_all_messages(con: Connection) -> None:
    """Nor before the first ANALYZE, by either kind of plan: 20 answers among 20 000 messages of the channel."""
    channel_id = await channel(con)
    await con.execute("ALTER TABLE events SET (autovacuum_enabled = false)")
    await con.execute(
        "INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json) "
        "SELECT sha256(i::text::bytea), sha256('x'), $2::bigint + i, 9, '[]', '', decode(repeat('00', 64), 'hex'), $1, "
        "'{}' FROM generate_series(1, 20000) AS i",
        channel_id,
        NOW,
    )
    await con.execute(
        "INSERT INTO thread_metadata (event_id, channel_id, created_at, parent_event_id, root_event_id, depth) "
        "SELECT id, channel_id, created_at, root, root, 1 "
        "FROM (SELECT *, sha256(((created_at - $1) / 20)::text::bytea) AS root FROM events) AS answers",
        NOW,
    )
    root = await con.fetchval("SELECT sha256('7')")
    arguments = [channel_id, bytes.fromhex(ME), root, NOW, 100, *thread_list._FIRST, 501]
    for mode in ("force_generic_plan", "force_custom_plan"):
        await con.execute(f"SET plan_cache_mode = {mode}")
        assert len(await con.fetch(thread_list._REPLIES, *arguments)) == 20
        assert await blocks(con, thread_list._REPLIES, *arguments) < 300


async def blocks(con: Connection, statement: str, *arguments: object) -> int:
    """How many pages the statement touched; the table here has hundreds."""
    rows = await con.fetch(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) {statement}", *arguments)
    line = next(row[0] for row in rows if "Buffers:" in row[0])
    return sum(int(part.partition("=")[2]) for part in line.split() if part.startswith(("hit=", "read=")))
