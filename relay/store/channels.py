"""Channels: the record that admission reads, and the rows behind NIP-29 groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relay.asyncpg_trio import Connection, Pool

Database = Connection | Pool

CHANNEL_TYPES = ("stream", "forum", "dm", "workflow")
VISIBILITIES = ("open", "private")


@dataclass(frozen=True, slots=True)
class ChannelRecord:
    """What has to be known of a channel to let an event in. Deleted channels have no record."""

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

    @property
    def is_open(self) -> bool:
        return self.visibility == "open"


_COLUMNS = (
    "id::text, name, channel_type::text, visibility::text, archived_at IS NOT NULL AS archived, ttl_seconds, "
    "encode(created_by, 'hex') AS created_by, description, topic, purpose"
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

_TOUCH_TTL = """
UPDATE channels SET ttl_deadline = now() + make_interval(secs => ttl_seconds)
WHERE id = ANY($1::uuid[]) AND ttl_seconds IS NOT NULL AND archived_at IS NULL AND deleted_at IS NULL"""


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
