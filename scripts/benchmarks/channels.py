"""`GET /api/channels` beside the plan of the original, on one database, through one app, by turns.

The original's route as it was before it was batched: the channels, the members counted with GROUP BY, the last messages
by MAX and GROUP BY, then two queries for every DM, one for its members and one for their names. It is registered beside
ours on the same app, so that signing in, routing and JSON cost both alike, and both must answer the same, row by row.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import orjson
import trio
from quart import Blueprint, Response

from relay.access.scopes import CHANNELS_READ
from relay.asyncpg_trio import connect
from relay.http.app import create_app
from relay.http.auth import authenticate, services
from relay.http.channels import _row
from relay.http.refusals import json_response
from relay.store.channel_list import ListedChannel
from relay.store.dm_list import Participant
from relay.store.migrate import up
from scripts.benchmarks.client import key
from tests.support.http import LOOPBACK, Rig, running

OURS, ORIGINAL = "/api/channels", "/bench/original"
ROOMS, DMS, MESSAGES, MEMBERS = 200, 100, 1000, 50
TURN = 10
"""So many requests one after the other, then as many of the other plan: neither finds its caches emptied each time."""

# Channels are numbered, rooms before DMs, and their ids made of the numbers. The first person of each is the caller.
_FILL = """
CREATE TEMPORARY TABLE place AS
SELECT n, n > {rooms} AS dm, ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS id
FROM generate_series(1, {rooms} + {dms}) n;

INSERT INTO channels (id, name, channel_type, visibility, description, topic, created_by)
SELECT id, CASE WHEN dm THEN 'DM' ELSE 'room ' || n END, (CASE WHEN dm THEN 'dm' ELSE 'stream' END)::channel_type,
       (CASE WHEN dm OR n % 2 = 0 THEN 'private' ELSE 'open' END)::channel_visibility, 'What this is about', 'a topic',
       '{me}'
FROM place;

INSERT INTO channel_members (channel_id, pubkey)
SELECT id, CASE WHEN k = 1 THEN '{me}' ELSE sha256(('person ' || (n * 7 + k) % 500)::bytea) END
FROM place, generate_series(1, {members}) k WHERE NOT dm OR k <= 3;

INSERT INTO users (pubkey, display_name)
SELECT sha256(('person ' || n)::bytea), CASE WHEN n % 5 > 0 THEN 'Person ' || n END FROM generate_series(0, 499) n;

INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json)
SELECT sha256((n || ' ' || k)::bytea), sha256(('person ' || (n + k) % 500)::bytea), 1700000000 + k * 60 + n % 60, 9,
       '[]', 'message ' || k || ' of ' || n || ', long enough to be one', decode(repeat('00', 64), 'hex'), id,
       decode(repeat('20', 400), 'hex')
FROM place, generate_series(1, {messages}) k"""

_ACCESSIBLE = """
SELECT c.id::text, c.name, c.channel_type::text, c.visibility::text, c.description, c.topic, c.purpose,
       encode(c.created_by, 'hex') AS created_by, c.created_at, c.updated_at, c.archived_at, c.ttl_seconds,
       c.ttl_deadline, m.pubkey IS NOT NULL AS is_member
FROM channels c
LEFT JOIN channel_members m ON m.channel_id = c.id AND m.pubkey = $1 AND m.removed_at IS NULL
WHERE c.deleted_at IS NULL AND (c.visibility = 'open' OR m.pubkey IS NOT NULL)
  AND NOT (c.channel_type = 'dm' AND m.hidden_at IS NOT NULL)
ORDER BY c.channel_type, c.name, c.id LIMIT 1000"""
_COUNTS = """
SELECT channel_id::text, count(*) FROM channel_members
WHERE channel_id = ANY ($1::uuid[]) AND removed_at IS NULL GROUP BY channel_id"""
_LAST = """
SELECT channel_id::text, max(created_at) FROM events
WHERE channel_id = ANY ($1::uuid[]) AND deleted_at IS NULL GROUP BY channel_id"""
_DM_MEMBERS = """
SELECT pubkey, role::text FROM channel_members
WHERE channel_id = $1 AND removed_at IS NULL ORDER BY joined_at, pubkey LIMIT 1000"""
_DM_NAMES = "SELECT pubkey, display_name FROM users WHERE pubkey = ANY ($1::bytea[])"

routes = Blueprint("original", __name__)


@routes.get(ORIGINAL)
async def original() -> Response:
    caller = await authenticate(CHANNELS_READ)
    pool = services().pool
    found = await pool.fetch(_ACCESSIBLE, bytes.fromhex(caller.pubkey))
    ids = [row["id"] for row in found]
    counts = {row[0]: row[1] for row in await pool.fetch(_COUNTS, ids)}
    last = {row[0]: row[1] for row in await pool.fetch(_LAST, ids)}
    rows = []
    for channel in found:
        people = []
        if channel["channel_type"] == "dm":
            members = await pool.fetch(_DM_MEMBERS, channel["id"])
            names = {row[0]: row[1] for row in await pool.fetch(_DM_NAMES, [member[0] for member in members])}
            people = [Participant(pubkey.hex(), names.get(pubkey), role) for pubkey, role in members]
        listed = ListedChannel(*channel, counts.get(channel["id"], 0), last.get(channel["id"]))
        rows.append(_row(listed, people))
    return json_response(rows)


async def run(
    dsn: str, *, rooms: int = ROOMS, dms: int = DMS, messages: int = MESSAGES, requests: int = 40, runs: int = 1
) -> list[dict[str, float]]:
    """Fills an empty database and measures `runs` times: milliseconds and statements of a request, ours and theirs."""
    con = await connect(dsn)
    await up(con)
    me = f"\\x{key(0).public_hex}"
    await con.execute(_FILL.format(rooms=rooms, dms=dms, messages=messages, members=MEMBERS, me=me))
    # Without it the original's aggregate has to look at every row of the table and not only at its index.
    await con.execute("VACUUM ANALYZE")
    await con.close()
    async with running(dsn) as rig:
        app = create_app(rig.services)
        app.register_blueprint(routes)
        get = partial(_get, app.asgi_app, await rig.mint(key(0), ["channels:read"]))
        bodies = [orjson.loads(await get(path)) for path in (OURS, ORIGINAL)]
        assert len(bodies[0]) == rooms + dms
        assert bodies[0] == bodies[1], "the two plans answer differently"
        return [await _measure(rig, get, requests) for _ in range(runs)]


async def _measure(rig: Rig, get: Callable[[str], Awaitable[bytes]], requests: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {OURS: [], ORIGINAL: []}
    counted: dict[str, int] = {}
    for _ in range(0, requests, TURN):
        for path, taken in seconds.items():
            for _ in range(TURN):
                rig.statements.clear()
                started = time.perf_counter()
                await get(path)
                taken.append(time.perf_counter() - started)
            counted[path] = len(rig.statements)
    ours, theirs = (1000 * statistics.median(seconds[path]) for path in (OURS, ORIGINAL))
    return {
        "list_p50_ms": ours,
        "list_statements": float(counted[OURS]),
        "original_p50_ms": theirs,
        "original_statements": float(counted[ORIGINAL]),
        "times_faster_than_original": theirs / ours,
    }


async def _get(app: Callable[..., Any], token: str, path: str) -> bytes:
    """The body of an answer of an ASGI app, without a server or a client in between that would cost both alike."""
    body: list[bytes] = []
    ended = False

    async def receive() -> dict[str, Any]:
        nonlocal ended
        if ended:
            await trio.sleep_forever()
        ended = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        assert message.get("status", 200) == 200, message
        body.append(message.get("body", b""))

    headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {token}".encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": headers, "extensions": {}, "state": {}, **LOOPBACK,
    }  # fmt: skip
    await app(scope, receive, send)
    return b"".join(body)
