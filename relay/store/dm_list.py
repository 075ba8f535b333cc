"""Direct messages as a list: who is in them, which were alive last, and which of them a key has hidden.

Opening one is an event with consequences and belongs to ingest. Hiding is a private mark on the own membership: it
changes neither who is a member nor what may be read, so no cache has to hear of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import NamedTuple

from relay.store.channels import Database


class Participant(NamedTuple):
    pubkey: str
    display_name: str | None
    role: str


@dataclass(frozen=True, slots=True)
class ListedDm:
    """`last_active` is seconds: of the newest message as signed, of the creation where there is none."""

    id: str
    last_active: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DmPage:
    """`cursor_known` is false where the cursor names no DM of this key; there are no rows then."""

    dms: list[ListedDm]
    cursor_known: bool
    more: bool


class Hiding(Enum):
    """How `hide` ended."""

    DONE = auto()
    NO_CHANNEL = auto()
    NOT_A_DM = auto()
    NOT_A_MEMBER = auto()


_PARTICIPANTS = """
SELECT m.channel_id::text, encode(m.pubkey, 'hex') AS pubkey, u.display_name, m.role::text
FROM channel_members m LEFT JOIN users u ON u.pubkey = m.pubkey
WHERE m.channel_id = ANY ($1::text[]::uuid[]) AND m.removed_at IS NULL
ORDER BY m.channel_id, m.joined_at, m.pubkey"""

_PAGE = """
WITH mine AS (
    SELECT c.id, c.created_at, m.hidden_at,
           coalesce(last.created_at, floor(extract(epoch FROM c.created_at))::bigint) AS last_active
    FROM channel_members m
    JOIN channels c ON c.id = m.channel_id AND c.channel_type = 'dm' AND c.deleted_at IS NULL
    LEFT JOIN LATERAL (
        SELECT e.created_at FROM events e
        WHERE e.channel_id = c.id AND e.deleted_at IS NULL AND (e.expires_at <= $5::bigint) IS NOT TRUE
        ORDER BY e.created_at DESC LIMIT 1
    ) last ON true
    WHERE m.pubkey = $1 AND m.removed_at IS NULL AND ($4::text[] IS NULL OR c.id = ANY ($4::text[]::uuid[]))
), start AS (
    -- Taken from `mine`: a cursor that names somebody else's channel tells nothing about it. One that was hidden since
    -- the last page is still a place to go on from.
    SELECT last_active, id FROM mine WHERE id = $2::text::uuid
), page AS (
    SELECT id, last_active, created_at FROM mine
    WHERE hidden_at IS NULL AND ($2::text IS NULL OR (last_active, id) < (SELECT last_active, id FROM start))
    ORDER BY last_active DESC, id DESC LIMIT $3
)
SELECT ($2::text IS NULL OR EXISTS (SELECT 1 FROM start)) AS cursor_known, page.id::text, page.last_active,
       page.created_at
FROM (VALUES (1)) AS always LEFT JOIN page ON true
ORDER BY page.last_active DESC, page.id DESC"""

_HIDE = """
WITH channel AS (
    SELECT channel_type FROM channels WHERE id = $1::text::uuid AND deleted_at IS NULL
), hidden AS (
    UPDATE channel_members SET hidden_at = now()
    WHERE channel_id = $1::text::uuid AND pubkey = $2 AND removed_at IS NULL
      AND EXISTS (SELECT 1 FROM channel WHERE channel_type = 'dm')
    RETURNING true
)
SELECT (SELECT channel_type::text FROM channel) AS channel_type, EXISTS (SELECT 1 FROM hidden) AS done"""


async def participants(db: Database, channel_ids: Sequence[str]) -> dict[str, list[Participant]]:
    """Active members of each channel with their names, in the order in which they joined, then by key."""
    found: dict[str, list[Participant]] = defaultdict(list)
    for channel_id, pubkey, display_name, role in await db.fetch(_PARTICIPANTS, list(channel_ids)):
        found[channel_id].append(Participant(pubkey, display_name, role))
    return found


async def page(
    db: Database, pubkey: str, *, now: int, cursor: str | None, limit: int, allowed: Iterable[str] | None = None
) -> DmPage:
    """The key's DMs that it has not hidden, last active first, after the one that `cursor` names.

    A DM that becomes active between two pages moves in front of what was read already; if it is the cursor itself, what
    follows it now is read again. What expired at `now` (seconds) or before makes no DM active.
    """
    restriction = None if allowed is None else list(allowed)
    # One row more than asked for tells whether there is another page.
    rows = await db.fetch(_PAGE, bytes.fromhex(pubkey), cursor, limit + 1, restriction, now)
    dms = [ListedDm(row["id"], row["last_active"], row["created_at"]) for row in rows if row["id"] is not None]
    return DmPage(dms[:limit], rows[0]["cursor_known"], len(dms) > limit)


async def hide(db: Database, channel_id: str, pubkey: str) -> Hiding:
    """Takes the DM out of the key's lists until it opens it again."""
    row = await db.fetchrow(_HIDE, channel_id, bytes.fromhex(pubkey))
    assert row is not None
    if row["channel_type"] is None:
        return Hiding.NO_CHANNEL
    if row["channel_type"] != "dm":
        return Hiding.NOT_A_DM
    return Hiding.DONE if row["done"] else Hiding.NOT_A_MEMBER
