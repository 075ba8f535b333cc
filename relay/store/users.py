"""Users as rows: that a key has one, who owns an agent, and who may log in where an allow-list rules.

A row appears when a key first signs in, gets a token or writes a profile; nothing here removes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from relay.asyncpg_trio import Connection
from relay.store.channels import Database

# The sub-select keeps the usual case, a row that is there, from taking a lock and leaving a dead one behind.
_ENSURE = """
INSERT INTO users (pubkey)
SELECT key FROM unnest($1::bytea[]) AS key WHERE NOT EXISTS (SELECT 1 FROM users WHERE pubkey = key)
ON CONFLICT DO NOTHING"""

# First come, first served: an owner that is set is never replaced.
_SET_OWNER = """
UPDATE users SET agent_owner_pubkey = $2, updated_at = now()
WHERE pubkey = $1 AND (agent_owner_pubkey IS NULL OR agent_owner_pubkey = $2)
RETURNING true"""

# Makes the row too: it is missing where the sign-in could not write it.
_SET_POLICY = """
INSERT INTO users (pubkey, channel_add_policy) VALUES ($1, $2::text::channel_add_policy)
ON CONFLICT (pubkey) DO UPDATE SET channel_add_policy = EXCLUDED.channel_add_policy, updated_at = now()
RETURNING encode(agent_owner_pubkey, 'hex')"""

ADD_POLICIES: Final = ("anyone", "owner_only", "nobody")
"""Who may add somebody to a channel."""


async def ensure(db: Database, pubkeys: Sequence[str]) -> None:
    """Makes the rows that are missing."""
    await db.execute(_ENSURE, [bytes.fromhex(pubkey) for pubkey in pubkeys])


async def owner(db: Database, pubkey: str) -> str | None:
    """The key that owns this agent; None for a person, and for a key that nobody has seen."""
    found: str | None = await db.fetchval(
        "SELECT encode(agent_owner_pubkey, 'hex') FROM users WHERE pubkey = $1", bytes.fromhex(pubkey)
    )
    return found


async def set_owner(con: Connection, pubkey: str, owner_pubkey: str) -> bool:
    """Makes `owner_pubkey` the owner. False, and nothing done, where the agent belongs to somebody else."""
    return bool(await con.fetchval(_SET_OWNER, bytes.fromhex(pubkey), bytes.fromhex(owner_pubkey)))


async def set_policy(con: Connection, pubkey: str, policy: str) -> str | None:
    """Sets who may add this key to channels (one of ADD_POLICIES). Returns the key of its owner, if it is an agent."""
    assert policy in ADD_POLICIES
    found: str | None = await con.fetchval(_SET_POLICY, bytes.fromhex(pubkey), policy)
    return found


async def is_allowed(db: Database, pubkey: str) -> bool:
    """Whether the key stands in the allow-list."""
    return bool(
        await db.fetchval("SELECT EXISTS (SELECT 1 FROM pubkey_allowlist WHERE pubkey = $1)", bytes.fromhex(pubkey))
    )
