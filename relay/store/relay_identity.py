"""The public key that signs for this relay: one row, written by the first node that starts on a database.

Clients know a relay by this key (NIP-11 `self`, the author of group metadata), so all nodes of one database must have
the same; `relay/access/relay_key.py` compares.
"""

from __future__ import annotations

from relay.asyncpg_trio import Connection, Pool

# An upsert that changes nothing returns no row, hence the second half; two first nodes at once agree on one row.
_CLAIM = """
WITH claimed AS (
    INSERT INTO relay_identity (singleton, pubkey) VALUES (true, decode($1, 'hex'))
    ON CONFLICT (singleton) DO NOTHING
    RETURNING pubkey
)
SELECT encode(pubkey, 'hex') FROM claimed
UNION ALL
SELECT encode(pubkey, 'hex') FROM relay_identity
LIMIT 1"""

_GET = "SELECT encode(pubkey, 'hex') FROM relay_identity"


async def claim(db: Connection | Pool, pubkey: str) -> str:
    """Records `pubkey` (hex) if none is recorded yet; returns the recorded one.

    Two nodes that start on an empty database at the same moment may need the second look: the loser's statement began
    before the winner's commit and sees no row at all.
    """
    recorded = await db.fetchval(_CLAIM, pubkey) or await db.fetchval(_GET)
    assert isinstance(recorded, str)
    return recorded


async def get(db: Connection | Pool) -> str | None:
    """The recorded public key (hex), or None on a database that no relay has started on."""
    recorded = await db.fetchval(_GET)
    assert recorded is None or isinstance(recorded, str)
    return recorded
