"""What people publish for everybody, outside of channels: their notes (kind 1) and their contact list (kind 3).

Pages go back in time, within a second by id, so that no page skips or repeats what shares one. What was deleted or has
expired is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay.store.channels import Database

_INT64_MAX: Final = 2**63 - 1

# $3, $4: from which second on, and behind which of its ids; the empty id stands before all of them. The first of the
# two conditions on them is where the index can begin.
_PAGE = """
SELECT encode(e.id, 'hex') AS id, e.created_at, e.content FROM events e
WHERE e.pubkey = $1 AND e.kind = 1 AND e.channel_id IS NULL AND e.deleted_at IS NULL
  AND (e.expires_at <= $2) IS NOT TRUE
  AND e.created_at <= $3 AND (e.created_at < $3 OR e.id > $4)
ORDER BY e.created_at DESC, e.id LIMIT $5"""

_CONTACTS = """
SELECT e.signed_json FROM events e
WHERE e.pubkey = $1 AND e.kind = 3 AND e.channel_id IS NULL AND e.deleted_at IS NULL
  AND (e.expires_at <= $2) IS NOT TRUE
ORDER BY e.created_at DESC, e.id LIMIT 1"""


@dataclass(frozen=True, slots=True)
class Before:
    """Where a page begins: in the seconds before `created_at`, and with an id also behind that one in this second."""

    created_at: int
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    event_id: str
    created_at: int
    content: str


async def page(
    db: Database, author: str, *, before: Before | None, limit: int, now: int
) -> tuple[Sequence[Note], bool]:
    """The author's global notes, newest first, of one second by id; and whether there are more. `now` in seconds."""
    assert limit > 0
    if before is None:
        second, event_id = _INT64_MAX, b""
    elif before.event_id is None:
        second, event_id = before.created_at - 1, b""
    else:
        second, event_id = before.created_at, bytes.fromhex(before.event_id)
    rows = await db.fetch(_PAGE, bytes.fromhex(author), now, second, event_id, limit + 1)
    return [Note(row["id"], row["created_at"], row["content"]) for row in rows[:limit]], len(rows) > limit


async def contact_list(db: Database, author: str, *, now: int) -> bytes | None:
    """The author's newest global kind 3 as signed JSON."""
    found: bytes | None = await db.fetchval(_CONTACTS, bytes.fromhex(author), now)
    return found
