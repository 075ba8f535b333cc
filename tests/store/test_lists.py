"""The two lists must not read what they do not show: their plans, on tables large enough for the planner to choose."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from relay.asyncpg_trio import Connection
from relay.store import channel_list, dm_list

ME = bytes([1]) * 32

_FILL = """
INSERT INTO channels (name, channel_type, visibility, created_by)
SELECT n::text, CASE WHEN n % 4 = 0 THEN 'dm' ELSE 'stream' END::channel_type, 'private', $1
FROM generate_series(1, 400) n;
"""
_MEMBERS = """
INSERT INTO channel_members (channel_id, pubkey)
SELECT c.id, CASE WHEN k = 1 AND c.name::int <= 40 THEN $1 ELSE sha256(k::text::bytea) END
FROM channels c, generate_series(1, 20) k"""
_EVENTS = """
INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json)
SELECT sha256((c.name || ' ' || n)::bytea), $1, n, 9, '[]', '', decode(repeat('00', 64), 'hex'), c.id, ''
FROM channels c, generate_series(1, 100) n"""


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan] + [node for inner in plan.get("Plans", ()) for node in nodes(inner)]


@pytest.mark.parametrize(
    ("query", "arguments"),
    [
        (channel_list._LIST, (None, False, None, 1000, 0)),
        (dm_list._PAGE, (None, 51, None, 0)),
    ],
)
async def test_neither_reads_all_events_or_all_members(
    con: Connection, query: str, arguments: tuple[object, ...]
) -> None:
    for statement in (_FILL, _MEMBERS, _EVENTS):
        await con.execute(statement, ME)
    await con.execute("ANALYZE")
    text = await con.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", ME, *arguments)
    found = nodes(orjson.loads(text)[0]["Plan"])
    read = dict.fromkeys(("events", "channel_members"), 0.0)
    for node in found:
        if node.get("Relation Name") in read:
            assert node["Node Type"] != "Seq Scan", node
            read[node["Relation Name"]] += node["Actual Rows"] * node["Actual Loops"]
    # 40 000 events and 8 000 memberships are there; one message a channel and the members of 40 channels are wanted.
    assert 0 < read["events"] <= 40
    assert 0 < read["channel_members"] <= 40 + 40 * 20


async def test_participants_of_nothing(con: Connection) -> None:
    assert await dm_list.participants(con, []) == {}
