"""`GET /api/search` and `GET /api/feed` over many messages: rare words, common ones, beginnings, Japanese.

A database of its own, filled at once: 500 channels, 200 000 messages, every twentieth of them in Japanese. Requests go
through the HTTP app with everything behind it (signing in, the caller's channels, JSON), but over no socket.
"""

from __future__ import annotations

import statistics
import time
from urllib.parse import quote

from relay.asyncpg_trio import connect
from relay.nostr.keys import SecretKey
from relay.store.migrate import up
from tests.support.http import LOOPBACK, Rig, running

CHANNELS, MESSAGES = 500, 200_000
LISTED = 20
"""What a request asks for; the default of the contract."""

# Words by how often they are used: the first stands in every message, the others as a language has them.
QUERIES = {
    "commonest": "common",
    "rare": "rareword",
    "beginning": "rarew",
    "beginning_of_commonest": "comm",
    "two_words": "rareword common",
    "not_there": "neverused",
    "japanese_commonest": "です",
    "japanese_rare": "東京都庁",
}

_CHANNELS = """
INSERT INTO channels (id, name, created_by, visibility)
SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'channel ' || n, $1,
       (CASE WHEN n % 2 = 0 THEN 'open' ELSE 'private' END)::channel_visibility
FROM generate_series(0, $2::int - 1) AS n"""

# A word's number is a power of chance: few words make most of a text, as in any language.
_MESSAGES = """
INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json)
SELECT sha256(n::text::bytea), $1, $4::bigint + n, 9, '[]', said.content, decode(repeat('00', 64), 'hex'),
       ('00000000-0000-4000-8000-' || lpad(to_hex(n % $2::int), 12, '0'))::uuid,
       convert_to(json_build_object('id', encode(sha256(n::text::bytea), 'hex'), 'pubkey', encode($1, 'hex'),
                                    'created_at', $4::bigint + n, 'kind', 9, 'tags', '[]'::json,
                                    'content', said.content)::text, 'UTF8')
FROM generate_series(1, $3::int) AS n,
LATERAL (
    SELECT CASE WHEN n % 20 = 0
        THEN string_agg(chr(19968 + (3000 * random() ^ 4)::int), '') || 'です'
             || CASE WHEN n % 4000 = 0 THEN '東京都庁' ELSE '' END
        ELSE 'common ' || string_agg('w' || to_hex((100000 * random() ^ 4)::int), ' ')
             || CASE WHEN n % 4000 = 1 THEN ' rareword' ELSE '' END
        END AS content
    FROM generate_series(1, 5 + n % 15)
) AS said"""


async def run(
    dsn: str, *, channels: int = CHANNELS, messages: int = MESSAGES, requests: int = 30, runs: int = 1
) -> list[dict[str, float]]:
    """Fills an empty database and measures `runs` times: median milliseconds and most statements of a request."""
    key = SecretKey.from_bytes(b"\1" * 32)
    pubkey = bytes.fromhex(key.public_hex)
    con = await connect(dsn)
    await up(con)
    await con.execute("SELECT setseed(0.5)")
    await con.execute(_CHANNELS, pubkey, channels)
    await con.execute("INSERT INTO channel_members (channel_id, pubkey) SELECT id, $1 FROM channels", pubkey)
    await con.execute(_MESSAGES, pubkey, channels, messages, int(time.time()) - messages)
    await con.execute("VACUUM ANALYZE")
    await con.close()
    async with running(dsn) as rig:
        paths = {name: f"/api/search?limit={LISTED}&q={quote(text)}" for name, text in QUERIES.items()}
        paths |= {"newest": f"/api/search?limit={LISTED}", "feed": f"/api/feed?limit={LISTED}"}
        return [await _measure(rig, key, paths, requests) for _ in range(runs)]


async def _measure(rig: Rig, key: SecretKey, paths: dict[str, str], requests: int) -> dict[str, float]:
    found: dict[str, float] = {}
    most = 0
    for name, path in paths.items():
        rig.services.directory.clear()
        seconds = []
        for _ in range(requests):
            rig.statements.clear()
            started = time.perf_counter()
            # Not `rig.get`: that compares each answer with the document, which takes longer than many a search.
            client = rig.app.test_client(use_cookies=False)
            answer = await client.get(path, headers={"X-Pubkey": key.public_hex}, scope_base=dict(LOOPBACK))
            seconds.append(time.perf_counter() - started)
            assert answer.status_code == 200, answer
            most = max(most, sum(not statement.startswith("SET") for statement in rig.statements))
        found[f"{name}_p50_ms"] = 1000 * statistics.median(seconds)
    return {**found, "statements": float(most)}
