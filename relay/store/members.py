"""Members of channels: who is in, with which role, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from relay.asyncpg_trio import Connection
from relay.store.channels import Database

ROLES = ("owner", "admin", "member", "guest", "bot")
ELEVATED = frozenset({"owner", "admin"})


@dataclass(frozen=True, slots=True)
class Audience:
    """Who may receive a channel's events: everyone where it is open, else its members (hex keys)."""

    visibility: str
    members: frozenset[str]


@dataclass(frozen=True, slots=True)
class Member:
    pubkey: str
    role: str


_IS_MEMBER = """
SELECT EXISTS (SELECT 1 FROM channel_members m JOIN channels c ON c.id = m.channel_id AND c.deleted_at IS NULL
               WHERE m.channel_id = $1 AND m.pubkey = $2 AND m.removed_at IS NULL)"""

_MAY_WRITE = """
SELECT EXISTS (SELECT 1 FROM channels c WHERE c.id = $1 AND c.deleted_at IS NULL AND c.archived_at IS NULL
               AND (c.visibility = 'open' OR $2::bytea IS NULL OR EXISTS (
                   SELECT 1 FROM channel_members m
                   WHERE m.channel_id = c.id AND m.pubkey = $2 AND m.removed_at IS NULL)))"""

_ACCESSIBLE = """
SELECT c.id::text FROM channels c WHERE c.visibility = 'open' AND c.deleted_at IS NULL
UNION
SELECT m.channel_id::text FROM channel_members m JOIN channels c ON c.id = m.channel_id AND c.deleted_at IS NULL
WHERE m.pubkey = $1 AND m.removed_at IS NULL"""

_AUDIENCES = """
SELECT c.id::text, c.visibility::text, CASE WHEN c.visibility = 'open' THEN '{}' ELSE
    ARRAY(SELECT encode(m.pubkey, 'hex') FROM channel_members m WHERE m.channel_id = c.id AND m.removed_at IS NULL)
    END AS members
FROM channels c WHERE c.id = ANY($1::uuid[]) AND c.deleted_at IS NULL"""

# An active member keeps joined_at; somebody who comes back starts anew at the end of the list.
_PUT = """
INSERT INTO channel_members (channel_id, pubkey, role, invited_by) VALUES ($1, $2, $3::text::member_role, $4)
ON CONFLICT (channel_id, pubkey) DO UPDATE
SET role = excluded.role, removed_at = NULL, removed_by = NULL, hidden_at = NULL,
    joined_at = CASE WHEN channel_members.removed_at IS NULL THEN channel_members.joined_at ELSE excluded.joined_at END,
    invited_by = CASE WHEN channel_members.removed_at IS NULL THEN channel_members.invited_by
                      ELSE excluded.invited_by END"""

_REMOVE = """
UPDATE channel_members SET removed_at = now(), removed_by = $3
WHERE channel_id = $1 AND pubkey = $2 AND removed_at IS NULL"""


async def is_member(db: Database, channel_id: str, pubkey: str) -> bool:
    """Whether the key is an active member of the live channel."""
    return bool(await db.fetchval(_IS_MEMBER, channel_id, bytes.fromhex(pubkey)))


async def may_write(con: Connection, channel_id: str, member: str | None) -> bool:
    """Whether the channel takes events, from this key; None = membership does not matter."""
    return bool(await con.fetchval(_MAY_WRITE, channel_id, None if member is None else bytes.fromhex(member)))


async def accessible_channel_ids(db: Database, pubkey: str) -> frozenset[str]:
    """Every live channel that is open or that the key is a member of; archived and hidden ones included."""
    return frozenset(row[0] for row in await db.fetch(_ACCESSIBLE, bytes.fromhex(pubkey)))


async def active(db: Database, channel_id: str) -> list[Member]:
    """Active members in the order in which they joined."""
    rows = await db.fetch(
        "SELECT encode(pubkey, 'hex'), role::text FROM channel_members WHERE channel_id = $1 AND removed_at IS NULL "
        "ORDER BY joined_at, pubkey",
        channel_id,
    )
    return [Member(row[0], row[1]) for row in rows]


async def role(db: Database, channel_id: str, pubkey: str) -> str | None:
    """The active role of the key, or None."""
    found: str | None = await db.fetchval(
        "SELECT role::text FROM channel_members WHERE channel_id = $1 AND pubkey = $2 AND removed_at IS NULL",
        channel_id,
        bytes.fromhex(pubkey),
    )
    return found


async def owners(db: Database, channel_id: str) -> int:
    """How many active owners there are."""
    found: int = await db.fetchval(
        "SELECT count(*) FROM channel_members WHERE channel_id = $1 AND role = 'owner' AND removed_at IS NULL",
        channel_id,
    )
    return found


async def put(con: Connection, channel_id: str, pubkey: str, role_name: str, invited_by: str | None) -> None:
    """Adds the key, brings it back, or changes its role. The caller holds the channel's lock and has checked rights."""
    inviter = None if invited_by is None else bytes.fromhex(invited_by)
    await con.execute(_PUT, channel_id, bytes.fromhex(pubkey), role_name, inviter)


async def remove(con: Connection, channel_id: str, pubkey: str, removed_by: str) -> None:
    """Marks the active membership as ended. The caller holds the channel's lock and has checked rights."""
    await con.execute(_REMOVE, channel_id, bytes.fromhex(pubkey), bytes.fromhex(removed_by))


async def add_policy(db: Database, pubkey: str) -> tuple[str, str | None]:
    """(channel_add_policy, agent owner's key or None) of a user; unknown users can be added by anyone."""
    row = await db.fetchrow(
        "SELECT channel_add_policy::text, encode(agent_owner_pubkey, 'hex') FROM users WHERE pubkey = $1",
        bytes.fromhex(pubkey),
    )
    return ("anyone", None) if row is None else (row[0], row[1])


async def audiences(db: Database, channel_ids: list[str]) -> dict[str, Audience]:
    """Who may receive from each of the channels; those that do not exist or were deleted are left out."""
    rows = await db.fetch(_AUDIENCES, channel_ids)
    return {row["id"]: Audience(row["visibility"], frozenset(row["members"])) for row in rows}
