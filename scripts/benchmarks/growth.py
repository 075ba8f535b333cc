"""`scripts/bench growth`: what an event and a REQ cost as the relay fills, from ten thousand to millions of events.

The database of a running relay is filled by SQL: 200 rooms, 500 authors, 24 months, more of them lately than long ago,
with tags and mentions as messages have them. At each size the same questions are asked, for what is new and for what is
old, and the same events published. The relay is not restarted in between: its prepared statements have to live with a
database that grows. At the end the ten subscribers are measured beside 10 and 10 000 subscriptions that do not match.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from pathlib import Path

import orjson
import trio

from relay.asyncpg_trio import connect
from scripts.benchmarks import index, load
from scripts.benchmarks.client import Client, key, masked
from scripts.benchmarks.meter import Figures, use
from scripts.benchmarks.report import number
from scripts.benchmarks.scene import Rooms
from scripts.benchmarks.target import (
    ALL_CORES,
    GENERATOR_CORE,
    RELAY_CORE,
    Target,
    pin,
    place_postgres,
    raise_file_limit,
    target,
)

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
ROOMS, AUTHORS = 200, 500
SECONDS = 730 * 86_400
CHUNK = 50_000
ASKED = 100
"""REQs of each kind; each asks for another room, author or week."""

ROUNDS = 4

_ROOMS = """
INSERT INTO channels (id, name, created_by)
SELECT ('00000000-0000-4000-9000-' || lpad(to_hex(n), 12, '0'))::uuid, 'filled ' || n, decode(repeat('0b', 32), 'hex')
FROM generate_series(0, $1::int - 1) n ON CONFLICT DO NOTHING"""

# $1 first and $2 last number, $3 rooms, $4 the authors' keys, $5 the first second and $6 how many there are. Few rooms
# and few authors have most of the messages. In order of time, as they would have come.
_FILL = """
WITH chosen AS MATERIALIZED (
    SELECT n, sha256(('event ' || n)::bytea) AS id,
           ($4::bytea[])[1 + floor(random() ^ 2 * cardinality($4::bytea[]))::int] AS author,
           ('00000000-0000-4000-9000-' || lpad(to_hex(floor(random() ^ 2 * $3::int)::int), 12, '0'))::uuid AS room,
           $5::bigint + (sqrt(random()) * $6::int)::bigint AS at,
           CASE WHEN n % 5 = 0 THEN ($4::bytea[])[1 + n / 5 % cardinality($4::bytea[])] END AS mentioned,
           'topic' || n % 100 AS topic,
           (SELECT string_agg('w' || to_hex((20000 * random() ^ 3)::int + ((n + i) % 2)::int), ' ')
            FROM generate_series(1, 8) i) AS said
    FROM generate_series($1::bigint, $2::bigint) n
), tagged AS (
    SELECT *, json_build_array(json_build_array('h', room), json_build_array('t', topic))::jsonb
              || CASE WHEN mentioned IS NULL THEN '[]'::jsonb
                 ELSE json_build_array(json_build_array('p', encode(mentioned, 'hex')))::jsonb END AS tags
    FROM chosen
), stored AS (
    INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, tag_values, signed_json)
    SELECT id, author, at, 9, tags, said, decode(repeat('0a', 64), 'hex'), room,
           ARRAY['t:' || topic]
           || CASE WHEN mentioned IS NULL THEN '{}' ELSE ARRAY['p:' || encode(mentioned, 'hex')] END,
           convert_to(concat('{"id":"', encode(id, 'hex'), '","pubkey":"', encode(author, 'hex'), '","created_at":', at,
                             ',"kind":9,"tags":', tags, ',"content":"', said, '","sig":"', repeat('0a', 64), '"}'),
                      'UTF8')
    FROM tagged ORDER BY at
)
INSERT INTO event_mentions (pubkey, event_id, created_at, kind, channel_id)
SELECT mentioned, id, at, 9, room FROM chosen WHERE mentioned IS NOT NULL"""


async def fill(dsn: str, have: int, wanted: int, now: int) -> None:
    """From `have` to `wanted` events, and fresh statistics."""
    authors = [bytes.fromhex(key(number).public_hex) for number in range(AUTHORS)]
    con = await connect(dsn)
    await con.execute("SET synchronous_commit = off")
    await con.execute("SET statement_timeout = 0")
    await con.execute(_ROOMS, ROOMS)
    for first in range(have + 1, wanted + 1, CHUNK):
        last = min(wanted, first + CHUNK - 1)
        await con.execute(_FILL, first, last, ROOMS, authors, now - SECONDS, SECONDS - 3600)
    await con.execute("VACUUM ANALYZE")
    await con.execute("CHECKPOINT")
    await con.close()


def _room(number: int) -> str:
    return f"00000000-0000-4000-9000-{number % ROOMS:012x}"


def questions(now: int) -> dict[str, list[dict[str, object]]]:
    """Filters by name: each list asks the same of other rooms, authors and times."""
    authors = [key(number).public_hex for number in range(ASKED)]
    weeks = [now - SECONDS // 2 - n * 86_400 for n in range(ASKED)]
    numbers = range(ASKED)
    return {
        "room_newest_500": [{"kinds": [9], "#h": [_room(n)], "limit": 500} for n in numbers],
        "room_a_year_ago": [{"kinds": [9], "#h": [_room(n)], "until": weeks[n], "limit": 100} for n in numbers],
        "author_newest_100": [{"authors": [authors[n]], "kinds": [9], "limit": 100} for n in numbers],
        "mentions_newest_50": [{"#p": [authors[n]], "kinds": [9], "limit": 50} for n in numbers],
        "one_by_id": [
            {"ids": [hashlib.sha256(f"event {n * 97 + 1}".encode()).hexdigest()]} for n in numbers
        ],
    }  # fmt: skip


def ask(where: Target, client: Client, name: str, filters: list[dict[str, object]]) -> Figures:
    """One REQ after the other on one connection."""
    # So often that the clock of the system, which counts hundredths of a second, says something about each.
    frames = [masked(orjson.dumps(["REQ", "s", each])) for each in filters] * ROUNDS
    taken, size = [], 0
    before = use(where.pid)
    for frame in frames:
        started = time.perf_counter()
        client.sock.sendall(frame)
        data = b""
        while not data.endswith(b'["EOSE","s"]'):
            more = client.sock.recv(1 << 18)
            assert more, "the relay closed the connection"
            data += more
            assert b'["CLOSED"' not in data[:200] and b'["NOTICE"' not in data[:200], data  # noqa: PT018
        taken.append(time.perf_counter() - started)
        size += len(data)
    used = use(where.pid) - before
    return {
        f"{name}_p50_ms": 1000 * statistics.median(taken),
        f"{name}_relay_us": 1e6 * used.relay_seconds / len(frames),
        f"{name}_postgres_us": 1e6 * used.postgres_seconds / len(frames),
        f"{name}_kib": size / len(frames) / 1024,
    }


def measure(where: Target, now: int) -> Figures:
    scene = Rooms(where)
    published = load.ingest(scene)
    names = ("events_per_second", "latency_p50_ms", "relay_cpu_us_per_event", "postgres_cpu_us_per_event")
    figures = {f"ingest_{name}": published[name] for name in names}
    asked = load.req(scene, requests=300)
    names = ("requests_per_second", "latency_p50_ms", "relay_cpu_us_per_request", "postgres_cpu_us_per_request")
    figures |= {f"req_{name}": asked[name] for name in names}
    [client] = scene.connect([0])
    for name, filters in questions(now).items():
        figures |= ask(where, client, name, filters)
    client.close()
    return figures


def medians(runs: list[Figures]) -> Figures:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def show(found: dict[int, Figures]) -> None:
    """One line a figure, one column a size, and the ratio of the last to the first."""
    sizes = list(found)
    print(f"{'':36}" + "".join(f"{size:>12,}" for size in sizes) + f"{'ratio':>9}")
    for name, first in found[sizes[0]].items():
        ratio = f"{found[sizes[-1]][name] / first:9.2f}" if first else ""
        print(f"{name:36}" + "".join(f"{number(found[size][name]):>12}" for size in sizes) + ratio)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench growth", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="stored events at which to measure")
    parser.add_argument("--runs", type=int, default=3, help="runs at each size, after one warm-up")
    parser.add_argument("--without-bystanders", action="store_true")
    parser.add_argument("--postgres", choices=["same", "free"], default="same")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    raise_file_limit()
    now = int(time.time())
    found: dict[int, Figures] = {}
    bystanders: Figures = {}
    with target(None, postgres=options.postgres) as where:
        dsn = where.dsn()
        assert dsn is not None
        have = 0
        for size in sorted(options.sizes):
            started = time.perf_counter()
            place_postgres(where, ALL_CORES)  # filling is not what is measured
            trio.run(fill, dsn, have, size, now)
            if options.postgres == "same":
                place_postgres(where, {RELAY_CORE})
            have = size
            print(f"{size:,} events after {time.perf_counter() - started:.0f} s", file=sys.stderr)
            pin(GENERATOR_CORE)
            measure(where, now)
            found[size] = medians([measure(where, now) for _ in range(options.runs)])
        if not options.without_bystanders:
            bystanders = medians([index.through_relay(where) for _ in range(options.runs)])
    show(found)
    for name, value in bystanders.items():
        print(f"{name:36}{number(value):>12}")
    if options.json:
        options.json.write_text(json.dumps({"sizes": found, "bystanders": bystanders}, indent=1))
