"""Channels: the record that admission reads, and the rows behind NIP-29 groups."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from relay.asyncpg_trio import Connection, Pool

Database = Connection | Pool

VISIBILITIES = ("open", "private")


@dataclass(frozen=True, slots=True)
class ChannelRecord:
    """What has to be known of a channel to let an event in, and what kind 39000 says of it. Deleted channels have no
    record. A `ttl_deadline` out of a cache is old: every event moves it."""

    id: str
    name: str
    channel_type: str
    visibility: str
    archived: bool
    ttl_seconds: int | None
    created_by: str
    description: str | None = None
    topic: str | None = None
    purpose: str | None = None
    ttl_deadline: datetime | None = None

    @property
    def is_open(self) -> bool:
        return self.visibility == "open"


_COLUMNS = (
    "id::text, name, channel_type::text, visibility::text, archived_at IS NOT NULL AS archived, ttl_seconds, "
    "encode(created_by, 'hex') AS created_by, description, topic, purpose, ttl_deadline"
)
_GET = f"SELECT {_COLUMNS} FROM channels WHERE id = $1 AND deleted_at IS NULL"
# Weaker than FOR UPDATE: an insert that refers to the channel does not have to wait for it.
_LOCK = f"{_GET} FOR NO KEY UPDATE"

_CREATE = """
INSERT INTO channels (id, name, channel_type, visibility, description, created_by, ttl_seconds, ttl_deadline,
                      participant_hash)
VALUES (coalesce($1, gen_random_uuid()), $2, $3::text::channel_type, $4::text::channel_visibility, $5, $6, $7::int,
        now() + make_interval(secs => $7::int), $8)
ON CONFLICT DO NOTHING
RETURNING id::text"""

# An update by itself locks rows in the order in which it happens to find them; two relays with two channels could wait
# for each other.
_TOUCH_TTL = """
WITH locked AS MATERIALIZED (
    SELECT id FROM channels
    WHERE id = ANY($1::uuid[]) AND ttl_seconds IS NOT NULL AND archived_at IS NULL AND deleted_at IS NULL
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE channels c SET ttl_deadline = now() + make_interval(secs => c.ttl_seconds) FROM locked WHERE c.id = locked.id"""

# An edit is an event like any other: the channel lives on from it. Who has set topic and purpose, and when, stays as it
# was where the edit does not name them.
_SAVE = """
UPDATE channels SET
    name = $2, description = $3, visibility = $4::text::channel_visibility,
    topic = $5, purpose = $6,
    topic_set_by = CASE WHEN $7 THEN $9 ELSE topic_set_by END,
    topic_set_at = CASE WHEN $7 THEN now() ELSE topic_set_at END,
    purpose_set_by = CASE WHEN $8 THEN $9 ELSE purpose_set_by END,
    purpose_set_at = CASE WHEN $8 THEN now() ELSE purpose_set_at END,
    archived_at = CASE WHEN $10::bool THEN coalesce(archived_at, now()) END,
    ttl_seconds = $11::int, ttl_deadline = now() + make_interval(secs => $11::int),
    updated_at = now()
WHERE id = $1"""

_EXPIRED = """
SELECT id::text FROM channels
WHERE ttl_deadline <= now() AND archived_at IS NULL AND deleted_at IS NULL
ORDER BY ttl_deadline LIMIT $1"""

_LOCK_EXPIRED = """
SELECT true FROM channels
WHERE id = $1 AND ttl_deadline <= now() AND archived_at IS NULL AND deleted_at IS NULL FOR NO KEY UPDATE"""

# The range says again what the array holds: only then may the planner use the index of these kinds.
_LIVE_KINDS = """
(SELECT count(DISTINCT e.kind) FROM events e
 WHERE e.kind = ANY($2::int[]) AND e.kind BETWEEN 39000 AND 39002 AND e.pubkey = $1 AND e.channel_id = c.id
   AND e.deleted_at IS NULL)"""
_WITHOUT_STATE = f"""
SELECT c.id::text FROM channels c
WHERE c.deleted_at IS NULL AND c.id > $3 AND {_LIVE_KINDS} < cardinality($2::int[]) ORDER BY c.id LIMIT $4"""
_HAS_STATE = f"SELECT {_LIVE_KINDS} = cardinality($2::int[]) FROM channels c WHERE c.id = $3"


def _record(row: Any) -> ChannelRecord:
    return ChannelRecord(
        row["id"],
        row["name"],
        row["channel_type"],
        row["visibility"],
        row["archived"],
        row["ttl_seconds"],
        row["created_by"],
        row["description"],
        row["topic"],
        row["purpose"],
        row["ttl_deadline"],
    )


async def get(db: Database, channel_id: str) -> ChannelRecord | None:
    """The live channel, or None where there is none or it was deleted."""
    row = await db.fetchrow(_GET, channel_id)
    return None if row is None else _record(row)


async def lock(con: Connection, channel_id: str) -> ChannelRecord | None:
    """The same, with the row locked until the transaction ends. Lock order: channels by id, then anything else."""
    row = await con.fetchrow(_LOCK, channel_id)
    return None if row is None else _record(row)


async def create(
    con: Connection,
    *,
    channel_id: str | None,
    name: str,
    channel_type: str,
    visibility: str,
    description: str | None,
    created_by: str,
    ttl_seconds: int | None = None,
    participant_hash: bytes | None = None,
) -> str | None:
    """Inserts a channel and returns its id; None where the id (or the DM's participants) already has one."""
    found: str | None = await con.fetchval(
        _CREATE,
        channel_id,
        name,
        channel_type,
        visibility,
        description,
        bytes.fromhex(created_by),
        ttl_seconds,
        participant_hash,
    )
    return found


async def touch_ttl(con: Connection, channel_ids: list[str]) -> None:
    """Gives ephemeral channels their full time again."""
    await con.execute(_TOUCH_TTL, channel_ids)


async def save(con: Connection, channel: ChannelRecord, *, by: str, changed: Collection[str]) -> None:
    """Writes what the record says (all but type and creator). `changed` may hold "topic" and "purpose", which remember
    who has set them. The caller holds the channel's lock."""
    await con.execute(
        _SAVE,
        channel.id,
        channel.name,
        channel.description,
        channel.visibility,
        channel.topic,
        channel.purpose,
        "topic" in changed,
        "purpose" in changed,
        bytes.fromhex(by),
        channel.archived,
        channel.ttl_seconds,
    )


async def delete(con: Connection, channel_id: str) -> None:
    """Marks the channel as deleted, for ever. The caller holds its lock."""
    await con.execute("UPDATE channels SET deleted_at = now(), updated_at = now() WHERE id = $1", channel_id)


async def archive(con: Connection, channel_id: str) -> None:
    """Marks the channel as archived. The caller holds its lock."""
    await con.execute("UPDATE channels SET archived_at = now(), updated_at = now() WHERE id = $1", channel_id)


async def expired(db: Database, limit: int) -> list[str]:
    """Ephemeral channels whose time is over and that are not archived yet, the oldest first."""
    return [row[0] for row in await db.fetch(_EXPIRED, limit)]


async def lock_expired(con: Connection, channel_id: str) -> bool:
    """Locks the channel if its time is still over: an event may have come in since somebody looked."""
    return bool(await con.fetchval(_LOCK_EXPIRED, channel_id))


async def without_state(db: Database, pubkey: str, kinds: Collection[int], *, after: str, limit: int) -> list[str]:
    """Live channels, in the order of their ids from `after` on, that lack a live event by `pubkey` of one of these
    kinds (of 39000 to 39002)."""
    return [row[0] for row in await db.fetch(_WITHOUT_STATE, bytes.fromhex(pubkey), list(kinds), after, limit)]


async def has_state(db: Database, pubkey: str, kinds: Collection[int], channel_id: str) -> bool:
    """The same of one channel: whether it lacks none."""
    return bool(await db.fetchval(_HAS_STATE, bytes.fromhex(pubkey), list(kinds), channel_id))
