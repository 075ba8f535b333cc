"""What must hold after every kill, asked of the database itself.

Every function returns breaches as sentences; an empty list is the answer that was hoped for.
"""

from __future__ import annotations

import time

import trio

from relay.asyncpg_trio import Connection, connect
from relay.embedded import cluster
from scripts.tortures.load import Record
from scripts.tortures.process import Relay

DRAIN_SECONDS = 10.0
SHOWN = 5

# Every stored event with the number of its entries where that is not one, and every entry without its event.
_UNPAIRED = """
WITH created AS (
    SELECT event_id, count(*) AS entries FROM ({source}) entry WHERE action = 'event_created' GROUP BY event_id)
SELECT coalesce(encode(e.id, 'hex'), c.event_id) AS id, e.kind, e.id IS NOT NULL AS stored, coalesce(entries, 0) AS n
FROM events e FULL JOIN created c ON c.event_id = encode(e.id, 'hex')
WHERE e.id IS NULL OR entries IS DISTINCT FROM 1
"""
_LOG = "SELECT action, event_id FROM audit_log"
_BOTH = f"SELECT action, event_id FROM audit_outbox UNION ALL {_LOG}"

_MISSING = """
SELECT encode(id, 'hex') FROM unnest($1::bytea[]) AS wanted (id)
WHERE NOT EXISTS (SELECT FROM events e WHERE e.id = wanted.id)
"""

# An event with an effect is stored with it or not at all.
_HALF_DONE = {
    "a reaction without its row": """
        SELECT encode(id, 'hex') FROM events
        WHERE kind = 7 AND NOT EXISTS (SELECT FROM reactions r WHERE r.reaction_event_id = events.id)""",
    "a deletion whose target is still there": """
        SELECT encode(d.id, 'hex') FROM events d JOIN events t ON t.id = decode(d.tags -> 0 ->> 1, 'hex')
        WHERE d.kind = 5 AND t.deleted_at IS NULL""",
    "a change of members without its entry": """
        SELECT encode(id, 'hex') FROM events e WHERE kind IN (9000, 9001, 9022) AND NOT EXISTS (
            SELECT FROM audit_log a WHERE a.event_id = encode(e.id, 'hex')
            AND a.action = CASE WHEN e.kind = 9000 THEN 'member_added' ELSE 'member_removed' END)""",
    "a channel without an owner among its members": """
        SELECT id::text FROM channels c WHERE NOT EXISTS (
            SELECT FROM channel_members m WHERE m.channel_id = c.id AND m.role = 'owner' AND m.removed_at IS NULL)""",
}


def check(relay: Relay, record: Record) -> tuple[list[str], dict[str, int]]:
    """Everything, of a relay that runs. Also: how many events are stored and how many entries are chained."""
    breaches, counts = trio.run(_ask, relay, record)
    code, said = relay.verify()
    if code != 0:
        breaches.append(f"`relay audit verify` exits with {code}: {said}")
    breaches += [f"in the log: {line}" for line in relay.crashes()]
    return breaches, counts


async def _ask(relay: Relay, record: Record) -> tuple[list[str], dict[str, int]]:
    con = await connect(cluster.dsn(cluster.socket_dir_of(relay.data_dir)))
    try:
        breaches = await _unpaired(con, _BOTH, "in outbox and log")
        breaches += await _drained(con)
        breaches += await _unpaired(con, _LOG, "in the log")
        breaches += await _kept(con, record)
        for what, query in _HALF_DONE.items():
            found = [row[0] for row in await con.fetch(query)]
            if found:
                breaches.append(f"{what}: {len(found)}, such as {found[:SHOWN]}")
        counts = {
            "stored": await con.fetchval("SELECT count(*) FROM events"),
            "entries": await con.fetchval("SELECT count(*) FROM audit_log"),
        }
    finally:
        con.terminate()
    return breaches, counts


async def _unpaired(con: Connection, source: str, where: str) -> list[str]:
    rows = await con.fetch(_UNPAIRED.format(source=source))
    return [
        f"{where}: kind {row['kind']} {row['id']} has {row['n']} entries"
        if row["stored"]
        else f"{where}: {row['n']} entries for {row['id']}, which is not stored"
        for row in rows[:SHOWN]
    ]


async def _drained(con: Connection) -> list[str]:
    deadline = time.monotonic() + DRAIN_SECONDS
    while left := await con.fetchval("SELECT count(*) FROM audit_outbox"):
        if time.monotonic() > deadline:
            return [f"{left} entries are still in the outbox after {DRAIN_SECONDS:g} s without load"]
        await trio.sleep(0.02)
    return []


async def _kept(con: Connection, record: Record) -> list[str]:
    breaches = []
    for what, ids in (("accepted", record.accepted), ("delivered", record.delivered)):
        missing = [row[0] for row in await con.fetch(_MISSING, [bytes.fromhex(id_) for id_ in ids])]
        if missing:
            kinds = sorted({record.sent.get(id_, -1) for id_ in missing})
            ids.difference_update(missing)  # told once, not in every later round again
            breaches.append(f"{len(missing)} {what} events are not stored (kinds {kinds}), such as {missing[:SHOWN]}")
    refused = [bytes.fromhex(id_) for id_ in record.refused]
    absent = len(await con.fetch(_MISSING, refused))
    if absent < len(refused):
        breaches.append(f"{len(refused) - absent} refused events are stored")
    return breaches
