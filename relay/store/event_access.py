"""One event by its id, together with whether a key may read the channel that it is filed under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.store.channels import Database
from relay.store.reach import READABLE_CHANNEL


@dataclass(frozen=True, slots=True)
class FoundEvent:
    """`readable` says nothing about a global event (`channel_id` None): those have no members."""

    kind: int
    channel_id: str | None
    readable: bool
    signed_json: bytes


_FIND: Final = f"""
SELECT e.kind, e.channel_id::text, e.signed_json,
       EXISTS ({READABLE_CHANNEL.format(channel="e.channel_id", key="$2")}) AS readable
FROM events e
WHERE e.id = $1 AND e.deleted_at IS NULL AND (e.expires_at <= $3::bigint) IS NOT TRUE"""


async def find(db: Database, event_id: str, pubkey: str, *, now: int) -> FoundEvent | None:
    """None for an event that is not there, was deleted, or has expired at `now` (seconds)."""
    row = await db.fetchrow(_FIND, bytes.fromhex(event_id), bytes.fromhex(pubkey), now)
    if row is None:
        return None
    return FoundEvent(row["kind"], row["channel_id"], row["readable"], row["signed_json"])
