"""Direct-message channels: found by the hash of their participants, hidden by one of them for himself."""

from __future__ import annotations

from relay.asyncpg_trio import Connection
from relay.store.channels import Database


async def lock_participants(con: Connection, digest: bytes) -> None:
    """Serialises openings of the same DM until the transaction ends."""
    await con.execute("SELECT pg_advisory_xact_lock(hashtextextended(encode($1, 'hex'), 2))", digest)


async def find(db: Database, digest: bytes) -> str | None:
    """The live DM of exactly these participants."""
    found: str | None = await db.fetchval(
        "SELECT id::text FROM channels WHERE participant_hash = $1 AND deleted_at IS NULL", digest
    )
    return found


async def unhide(con: Connection, channel_id: str, pubkey: str) -> None:
    """Lists the DM for this participant again."""
    await con.execute(
        "UPDATE channel_members SET hidden_at = NULL WHERE channel_id = $1 AND pubkey = $2 AND hidden_at IS NOT NULL",
        channel_id,
        bytes.fromhex(pubkey),
    )
