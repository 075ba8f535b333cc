"""Threads (NIP-10): who answers whom, and how many answers a message has.

`insert` runs in the transaction that stores the replies, `forget` in the one that deletes them; the rows' locks, always
taken in the order of the ids, make the counters exact. `reply_count` of a message counts the live events that answer
it directly, `descendant_count` of a root the live ones of all levels.

Which root and depth a reply has is not decided here but at its admission.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.asyncpg_trio import Connection
from relay.nostr.event import Event
from relay.store.channels import Database

DEPTH_MAX = 100
"""The original's limit; a chain of quotes that nobody could indent any more."""


@dataclass(frozen=True, slots=True)
class ThreadPlace:
    """Where a reply stands: what it answers, the start of the thread, how deep (1 = answers the root), and whether it
    is also to be shown in the channel itself."""

    parent: str
    root: str
    depth: int
    broadcast: bool


@dataclass(frozen=True, slots=True)
class ParentRow:
    """An event that is answered. `root` and `depth` are those of its own place in a thread; without one `root` is None,
    `depth` 0 and `signed_json` there, so that the event itself can be asked. `live`: neither deleted nor expired."""

    id: str
    channel_id: str | None
    live: bool
    root: str | None
    depth: int
    signed_json: bytes | None


_PARENT = """
SELECT encode(e.id, 'hex') AS id, e.channel_id::text,
       e.deleted_at IS NULL AND (e.expires_at IS NULL OR e.expires_at > extract(epoch FROM now())) AS live,
       encode(t.root_event_id, 'hex') AS root, coalesce(t.depth, 0) AS depth,
       CASE WHEN t.root_event_id IS NULL THEN e.signed_json END AS signed_json
FROM events e LEFT JOIN thread_metadata t ON t.event_id = e.id
WHERE e.id = $1"""

# One row for each event whose row is made or changed: a reply, or what it answers (a stub if it has no row yet). Its
# time and channel are the event's own, so nothing is counted for an event of another channel. ORDER BY is the order of
# the locks; the update touches no key, so it locks FOR NO KEY UPDATE.
_INSERT = """
INSERT INTO thread_metadata AS t (event_id, channel_id, created_at, parent_event_id, root_event_id, depth, broadcast,
                                  reply_count, descendant_count, last_reply_at)
SELECT e.id, e.channel_id, e.created_at, i.parent, i.root, i.depth, i.broadcast, i.replies, i.descendants,
       CASE WHEN i.replies > 0 THEN now() END
FROM unnest($1::bytea[], $2::uuid[], $3::bytea[], $4::bytea[], $5::int[], $6::bool[], $7::int[], $8::int[])
     AS i(id, channel_id, parent, root, depth, broadcast, replies, descendants)
JOIN events e ON e.id = i.id AND e.channel_id = i.channel_id
ORDER BY e.id
ON CONFLICT (event_id) DO UPDATE
SET reply_count = t.reply_count + excluded.reply_count,
    descendant_count = t.descendant_count + excluded.descendant_count,
    last_reply_at = coalesce(excluded.last_reply_at, t.last_reply_at)"""

# A row without a parent is no reply and was never counted.
_FORGET = """
WITH own AS MATERIALIZED (
    SELECT parent_event_id AS parent, root_event_id AS root FROM thread_metadata
    WHERE event_id = $1 AND parent_event_id IS NOT NULL
), locked AS MATERIALIZED (
    SELECT t.event_id FROM thread_metadata t WHERE t.event_id IN (SELECT parent FROM own UNION SELECT root FROM own)
    ORDER BY t.event_id FOR NO KEY UPDATE OF t
)
UPDATE thread_metadata t
SET reply_count = greatest(0, t.reply_count - (t.event_id = own.parent)::int),
    descendant_count = greatest(0, t.descendant_count - (t.event_id = own.root)::int)
FROM own, locked
WHERE t.event_id = locked.event_id"""


async def parent(db: Database, event_id: str) -> ParentRow | None:
    """The event that a reply names, deleted or not; None where there is none."""
    row = await db.fetchrow(_PARENT, bytes.fromhex(event_id))
    if row is None:
        return None
    return ParentRow(row["id"], row["channel_id"], row["live"], row["root"], row["depth"], row["signed_json"])


@dataclass(slots=True)
class _Change:
    channel_id: str
    place: ThreadPlace | None = None
    replies: int = 0
    descendants: int = 0


def _changes(rows: Sequence[tuple[Event, str, ThreadPlace]]) -> dict[str, _Change]:
    """By event id: one statement may touch a row only once, and two replies to one message are one change of it."""
    changes: dict[str, _Change] = {}
    for event, channel_id, place in rows:
        changes.setdefault(event.id, _Change(channel_id)).place = place
        changes.setdefault(place.parent, _Change(channel_id)).replies += 1
        changes.setdefault(place.root, _Change(channel_id)).descendants += 1
    return changes


async def insert(con: Connection, rows: Sequence[tuple[Event, str, ThreadPlace]]) -> None:
    """Writes the rows of replies that this transaction has stored (event, its channel, its place), and counts them.

    Lock order of the transaction: channels by id, then this.
    """
    if not rows:
        return
    changes = sorted(_changes(rows).items())
    places = [change.place for _, change in changes]
    await con.execute(
        _INSERT,
        [bytes.fromhex(event_id) for event_id, _ in changes],
        [change.channel_id for _, change in changes],
        [None if place is None else bytes.fromhex(place.parent) for place in places],
        [None if place is None else bytes.fromhex(place.root) for place in places],
        [0 if place is None else place.depth for place in places],
        [place is not None and place.broadcast for place in places],
        [change.replies for _, change in changes],
        [change.descendants for _, change in changes],
    )


async def forget(con: Connection, event_id: str) -> None:
    """Takes a reply that this transaction has deleted out of the counts. To be called once for each deletion.

    Its own answers stay counted, and its row stays: they still say where they belong.
    """
    await con.execute(_FORGET, bytes.fromhex(event_id))
