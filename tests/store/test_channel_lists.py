"""One channel, its members, its canvas and the agents: what their statements read, and the count of members."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.asyncpg_trio import Connection, connect
from relay.nostr.keys import SecretKey
from relay.store import agent_list, channel_details, channels, members, migrate
from relay.store.channel_details import Joined
from tests.store.test_lists import nodes

ME = bytes([1]) * 32
OWNER = SecretKey.from_bytes(ME).public_hex

_FILL = (
    """
    INSERT INTO channels (name, visibility, created_by)
    SELECT n::text, (CASE WHEN n % 4 = 0 THEN 'open' ELSE 'private' END)::channel_visibility, $1
    FROM generate_series(1, 400) n""",
    """
    INSERT INTO channel_members (channel_id, pubkey, role)
    SELECT c.id, CASE WHEN k = 1 AND c.name::int <= 40 THEN $1 ELSE sha256((k * c.name::int)::text::bytea) END,
           (CASE WHEN k = 2 AND c.name::int % 10 = 0 THEN 'bot' ELSE 'member' END)::member_role
    FROM channels c, generate_series(1, 100) k""",
    """
    INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json)
    SELECT sha256((c.name || ' ' || n)::bytea), $1, n, CASE WHEN n = 7 AND c.name::int % 2 = 0 THEN 40100 ELSE 9 END,
           '[]', '', decode(repeat('00', 64), 'hex'), c.id, ''
    FROM channels c, generate_series(1, 100) n""",
)


async def read(con: Connection, query: str, *arguments: object) -> dict[str, float]:
    """How many rows of each table the statement has read; none of the large ones from end to end."""
    text = await con.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *arguments)
    rows: dict[str, float] = {}
    for node in nodes(orjson.loads(text)[0]["Plan"]):
        table = node.get("Relation Name")
        if table in ("events", "channel_members"):
            assert node["Node Type"] != "Seq Scan", node
        if table is not None:
            read_there = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            rows[table] = rows.get(table, 0.0) + read_there * node["Actual Loops"]
    return rows


@pytest.fixture
async def filled(con: Connection) -> Connection:
    for statement in _FILL:
        await con.execute(statement, ME)
    await con.execute("ANALYZE")
    return con


async def channel_named(con: Connection, name: str) -> str:
    return str(await con.fetchval("SELECT id FROM channels WHERE name = $1", name))


async def test_one_channel_is_one_row(filled: Connection) -> None:
    rows = await read(filled, channel_details._DETAILS, await channel_named(filled, "3"), ME)
    assert rows == {"channels": 1, "channel_members": 1}


async def test_a_page_of_members_reads_this_channels_only(filled: Connection) -> None:
    rows = await read(filled, channel_details._MEMBERS, await channel_named(filled, "3"), ME, None, None, 11)
    assert rows["channel_members"] <= 1 + 100


@pytest.mark.parametrize("name", ["3", "4"])
async def test_a_canvas_is_found_or_missed_without_reading_messages(filled: Connection, name: str) -> None:
    """Channel 3 has none, channel 4 one that is older than most of its messages."""
    rows = await read(filled, channel_details._CANVAS, await channel_named(filled, name), ME, 0)
    assert rows["events"] == (name == "4")


async def test_agents_are_found_without_reading_all_members(filled: Connection) -> None:
    rows = await read(filled, agent_list._AGENTS, ME, None, 1000)
    assert rows["channel_members"] <= 40 + 40  # my channels, and all bots


async def test_a_statement_of_each(con: Connection) -> None:
    """Of nothing: the answers that mean that there is no such channel."""
    nowhere = "11111111-1111-4111-8111-111111111111"
    assert await channel_details.details(con, nowhere, OWNER) is None
    assert await channel_details.members(con, nowhere, OWNER, after=None) is None
    assert await channel_details.canvas(con, nowhere, OWNER, now=0) is None
    assert await agent_list.agents(con, OWNER) == []


@pytest.mark.parametrize("pubkey", ["00" * 32, "ff" * 32])
def test_a_cursor_is_read_as_it_was_written(pubkey: str) -> None:
    for text in ("0" * 16, f"{1_700_000_000_123_456:016x}"):
        found = channel_details.parse_cursor(text + pubkey)
        assert found is not None
        assert found.cursor == text + pubkey
        assert channel_details.parse_cursor(found.cursor) == Joined(found.joined_at, pubkey)


# (who, what is done to him) in one of two channels; several in one statement are what an import or a repair does.
_STEPS = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 4), st.sampled_from(["put", "remove", "hide", "delete", "all", "none"])
    ),
    max_size=25,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
async def test_members_are_counted_whatever_is_done_to_them(
    migrated_dsn: str, steps: list[tuple[int, int, str]]
) -> None:
    con = await connect(migrated_dsn)
    ids = [await _new_channel(con) for _ in range(2)]
    for where, who, what in steps:
        pubkey = f"{who:02x}" * 32
        await _change(con, ids[where], pubkey, what)
        counts = await con.fetch(
            "SELECT member_count, (SELECT count(*) FROM channel_members m WHERE m.channel_id = c.id "
            "AND m.removed_at IS NULL) FROM channels c"
        )
        assert all(kept == counted for kept, counted in counts), what
    con.terminate()


async def _new_channel(con: Connection) -> str:
    found = await channels.create(
        con, channel_id=None, name="c", channel_type="stream", visibility="open", description=None, created_by=OWNER
    )
    assert found is not None
    return found


async def _change(con: Connection, channel_id: str, pubkey: str, what: str) -> Any:
    key = bytes.fromhex(pubkey)
    match what:
        case "put":
            await members.put(con, channel_id, pubkey, "member", None)
        case "remove":
            await members.remove(con, channel_id, pubkey, pubkey)
        case "hide":
            await con.execute("UPDATE channel_members SET hidden_at = now() WHERE pubkey = $1", key)
        case "delete":
            await con.execute("DELETE FROM channel_members WHERE pubkey = $1", key)
        case "all":
            await con.execute("UPDATE channel_members SET removed_at = NULL")
        case _:
            await con.execute("UPDATE channel_members SET removed_at = now() WHERE channel_id = $1", channel_id)


async def test_two_who_join_at_once_are_two(migrated_dsn: str) -> None:
    one, other = await connect(migrated_dsn), await connect(migrated_dsn)
    channel_id = await _new_channel(one)
    # Both have begun before either has ended, and neither sees the other's row.
    await other.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    assert await other.fetchval("SELECT count(*) FROM channel_members") == 0
    await members.put(one, channel_id, "01" * 32, "member", None)
    await members.put(other, channel_id, "02" * 32, "member", None)
    await other.execute("COMMIT")
    assert await one.fetchval("SELECT member_count FROM channels") == 2
    one.terminate()
    other.terminate()


async def test_a_channel_that_is_dropped_takes_its_members_along(con: Connection) -> None:
    channel_id = await _new_channel(con)
    await members.put(con, channel_id, "01" * 32, "member", None)
    await con.execute("DELETE FROM channels")
    assert await con.fetchval("SELECT count(*) FROM channel_members") == 0


async def test_members_of_an_older_database_are_counted_once(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    con = await connect(empty_dsn)
    every = migrate.migrations()
    number = next(each.number for each in every if each.name == "channel_lists")
    with monkeypatch.context() as older:
        older.setattr(migrate, "migrations", lambda: every[: number - 1])
        await migrate.up(con)
    full, _empty = await _new_channel(con), await _new_channel(con)
    for who in range(3):
        await members.put(con, full, f"{who:02x}" * 32, "member", None)
    await members.remove(con, full, "01" * 32, OWNER)
    await migrate.up(con)
    assert {row[0] for row in await con.fetch("SELECT member_count FROM channels")} == {2, 0}
    con.terminate()
