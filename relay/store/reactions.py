"""Reactions: at most one active row for a target, a key and an emoji."""

from __future__ import annotations

from relay.asyncpg_trio import Connection

# Fires only where the row is new or was taken back: anything else is a reaction that exists already.
_ADD = """
INSERT INTO reactions (event_id, pubkey, emoji, reaction_event_id) VALUES ($1, $2, $3, $4)
ON CONFLICT (event_id, pubkey, emoji) DO UPDATE
SET removed_at = NULL, created_at = now(), reaction_event_id = excluded.reaction_event_id
WHERE reactions.removed_at IS NOT NULL
RETURNING true"""

_REMOVE = """
UPDATE reactions SET removed_at = now() WHERE reaction_event_id = $1 AND removed_at IS NULL RETURNING true"""

# Only a row that names no event: one that names another event is that event's, given after this one was taken back.
_REMOVE_UNNAMED = """
UPDATE reactions SET removed_at = now()
WHERE event_id = $1 AND pubkey = $2 AND emoji = $3 AND reaction_event_id IS NULL AND removed_at IS NULL"""


async def add(con: Connection, target_id: str, pubkey: str, emoji: str, reaction_id: str) -> bool:
    """Adds the reaction that event `reaction_id` expresses; False where an active one exists."""
    done = await con.fetchval(_ADD, bytes.fromhex(target_id), bytes.fromhex(pubkey), emoji, bytes.fromhex(reaction_id))
    return bool(done)


async def remove(con: Connection, reaction_id: str) -> bool:
    """Takes back the reaction that event `reaction_id` had expressed; False where no row names it."""
    return bool(await con.fetchval(_REMOVE, bytes.fromhex(reaction_id)))


async def remove_unnamed(con: Connection, target_id: str, pubkey: str, emoji: str) -> None:
    """The same for a row that does not say by which event it came, as imported ones."""
    await con.execute(_REMOVE_UNNAMED, bytes.fromhex(target_id), bytes.fromhex(pubkey), emoji)
