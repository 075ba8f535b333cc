"""What must hold after every kill, asked of the database itself.

What is found is breaches, as sentences, and how many events or entries were lost or doubled; the answer that was hoped
for is an empty list and two zeros.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import trio

from relay.asyncpg_trio import Connection, connect
from relay.audit import checkpoint_file
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
WHERE (e.id IS NULL OR entries IS DISTINCT FROM 1) {but}
"""
_LOG = "SELECT action, event_id FROM audit_log"
_BOTH = f"SELECT action, event_id FROM audit_outbox UNION ALL {_LOG}"
# The relay's own events come by themselves, also after the outbox was seen to be empty.
_BY_THEMSELVES = "AND e.kind IS DISTINCT FROM 48010"

# In one statement, hence one snapshot: an entry that is being moved is in one of the two.
_TWICE = "SELECT count(*) FROM audit_outbox JOIN audit_log USING (uuid)"
_LOGINS = f"SELECT count(*) FROM ({_BOTH}) entry WHERE action = 'auth_success'"

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
    "a message whose answers are not counted once each": """
        SELECT encode(t.event_id, 'hex') FROM thread_metadata t WHERE t.reply_count <> (
            SELECT count(*) FROM thread_metadata r JOIN events e ON e.id = r.event_id
            WHERE r.parent_event_id = t.event_id AND e.deleted_at IS NULL)""",
    "a channel without an owner among its members": """
        SELECT id::text FROM channels c WHERE NOT EXISTS (
            SELECT FROM channel_members m WHERE m.channel_id = c.id AND m.role = 'owner' AND m.removed_at IS NULL)""",
}


@dataclass
class Findings:
    """`lost`: events that were acknowledged or delivered and are not stored, and entries that are missing; `doubled`:
    entries that are there more than once."""

    breaches: list[str] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    stored: int = 0
    entries: int = 0
    checkpoints: int = 0


def check(relay: Relay, record: Record) -> Findings:
    """Everything, of a relay that runs."""
    found = trio.run(examine, relay, record)
    code, said = relay.verify()
    if code != 0:
        found.breaches.append(f"`relay audit verify` exits with {code}: {said}")
    found.breaches += [f"in the log: {line}" for line in relay.crashes()]
    return found


async def examine(relay: Relay, record: Record) -> Findings:
    found = Findings()
    con = await connect(relay.dsn)
    try:
        await _unpaired(con, found, _BOTH, "in outbox and log")
        await _drained(con, found)
        await _unpaired(con, found, _LOG, "in the log", _BY_THEMSELVES)
        await _kept(con, record, found)
        for what, query in _HALF_DONE.items():
            half = [row[0] for row in await con.fetch(query)]
            if half:
                found.breaches.append(f"{what}: {len(half)}, such as {half[:SHOWN]}")
        await _checkpoints(con, relay, found)
        found.stored = await con.fetchval("SELECT count(*) FROM events")
        found.entries = await con.fetchval("SELECT count(*) FROM audit_log")
    finally:
        con.terminate()
    return found


async def _unpaired(con: Connection, found: Findings, source: str, where: str, but: str = "") -> None:
    rows = await con.fetch(_UNPAIRED.format(source=source, but=but))
    found.lost += sum(row["n"] == 0 for row in rows)
    found.doubled += sum(row["n"] > 1 for row in rows)
    found.breaches += [
        f"{where}: kind {row['kind']} {row['id']} has {row['n']} entries"
        if row["stored"]
        else f"{where}: {row['n']} entries for {row['id']}, which is not stored"
        for row in rows[:SHOWN]
    ]


async def _drained(con: Connection, found: Findings) -> None:
    deadline = time.monotonic() + DRAIN_SECONDS
    while left := await con.fetchval("SELECT count(*) FROM audit_outbox"):
        if time.monotonic() > deadline:
            found.breaches.append(f"{left} entries are still in the outbox after {DRAIN_SECONDS:g} s without load")
            return
        await trio.sleep(0.02)


async def _kept(con: Connection, record: Record, found: Findings) -> None:
    for what, ids in (("accepted", record.accepted), ("delivered", record.delivered)):
        missing = [row[0] for row in await con.fetch(_MISSING, [bytes.fromhex(id_) for id_ in ids])]
        if missing:
            kinds = sorted({record.sent.get(id_, -1) for id_ in missing})
            ids.difference_update(missing)  # told once, not in every later round again
            found.lost += len(missing)
            found.breaches.append(
                f"{len(missing)} {what} events are not stored (kinds {kinds}), such as {missing[:SHOWN]}"
            )
    refused = [bytes.fromhex(id_) for id_ in record.refused]
    absent = len(await con.fetch(_MISSING, refused))
    if absent < len(refused):
        found.breaches.append(f"{len(refused) - absent} refused events are stored")
    logins = await con.fetchval(_LOGINS)
    if logins < record.logins:
        found.lost += record.logins - logins
        found.breaches.append(f"{record.logins} logins were accepted, {logins} have an entry")
        record.logins = logins
    if twice := await con.fetchval(_TWICE):
        found.doubled += twice
        found.breaches.append(f"{twice} entries are both in the outbox and in the log")


async def _checkpoints(con: Connection, relay: Relay, found: Findings) -> None:
    """Of database and files: one root for one size, and none beyond the head."""
    rows = await con.fetch("SELECT origin, size, root FROM audit_checkpoints")
    head = await con.fetchval("SELECT coalesce(max(seq), 0) FROM audit_log")
    roots = {(row["origin"], row["size"]): row["root"] for row in rows}
    for path in relay.checkpoint_files():
        for each in checkpoint_file.read(path):
            if roots.setdefault((each.origin, each.size), each.root) != each.root:
                found.breaches.append(f"two roots of size {each.size}: the second one is in {path}")
    found.checkpoints = len(roots)
    if beyond := [size for _, size in roots if size > head]:
        found.breaches.append(f"checkpoints of {beyond[:SHOWN]} entries, and the log has {head}")
