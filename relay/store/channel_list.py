"""The list of channels that one key sees, in one statement whatever its length.

The participants of the DMs in it are a second one (`dm_list.participants`). Together with signing in that makes three.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

from relay.store.channels import Database

ROWS_MAX: Final = 1000  # the original's


class ListedChannel(NamedTuple):
    """One row; a tuple, because there may be a thousand. `last_message`: seconds, as signed, so it may be in a year
    that no calendar has."""

    id: str
    name: str
    channel_type: str
    visibility: str
    description: str | None
    topic: str | None
    purpose: str | None
    created_by: str
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None
    ttl_seconds: int | None
    ttl_deadline: datetime | None
    is_member: bool
    member_count: int
    last_message: int | None


_LIST = """
WITH visible AS (
    SELECT id, bool_or(member) AS is_member, max(hidden_at) AS hidden_at
    FROM (
        -- Two index scans; "open or mine" in one condition would read every channel there is.
        SELECT id, false AS member, NULL::timestamptz AS hidden_at
        FROM channels WHERE visibility = 'open' AND deleted_at IS NULL AND NOT $3
        UNION ALL
        SELECT channel_id, true, hidden_at FROM channel_members WHERE pubkey = $1 AND removed_at IS NULL
    ) AS either
    WHERE $4::text[] IS NULL OR id = ANY ($4::text[]::uuid[])
    GROUP BY id
), listed AS (
    SELECT c.*, v.is_member
    FROM visible v
    -- OFFSET 0 keeps this a look-up by key for each row. The optional conditions make the planner expect a single row,
    -- and for a single row it compares every channel with every other.
    CROSS JOIN LATERAL (SELECT * FROM channels WHERE id = v.id AND deleted_at IS NULL OFFSET 0) c
    WHERE ($2::text IS NULL OR c.visibility::text = $2)
      AND NOT (c.channel_type = 'dm' AND v.hidden_at IS NOT NULL)
    -- The order of the enum: stream, forum, dm, workflow.
    ORDER BY c.channel_type, c.name, c.id LIMIT $5
)
SELECT l.id::text, l.name, l.channel_type::text, l.visibility::text, l.description, l.topic, l.purpose,
       encode(l.created_by, 'hex') AS created_by, l.created_at, l.updated_at, l.archived_at, l.ttl_seconds,
       l.ttl_deadline, l.is_member, l.member_count, last.created_at AS last_message
FROM listed l
-- One step down an index for each channel; max(created_at) with GROUP BY reads every message.
LEFT JOIN LATERAL (
    SELECT e.created_at FROM events e
    WHERE e.channel_id = l.id AND e.deleted_at IS NULL AND (e.expires_at <= $6::bigint) IS NOT TRUE
    ORDER BY e.created_at DESC LIMIT 1
) last ON true
ORDER BY l.channel_type, l.name, l.id"""


async def visible(
    db: Database,
    pubkey: str,
    *,
    now: int,
    visibility: str | None = None,
    member_only: bool = False,
    allowed: Iterable[str] | None = None,
) -> list[ListedChannel]:
    """Live channels that are open or that the key is in, archived ones too, DMs that it has hidden not.

    `visibility` is compared as text, so one that does not exist matches nothing. `allowed` are the channels that a
    token is restricted to, None = all. What expired at `now` (seconds) or before is no last message any more.
    """
    if visibility is not None and "\0" in visibility:
        return []  # PostgreSQL has no text with this character, and would refuse the statement
    rows = await db.fetch(
        _LIST,
        bytes.fromhex(pubkey),
        visibility,
        member_only,
        None if allowed is None else list(allowed),
        ROWS_MAX,
        now,
    )
    return [ListedChannel._make(row) for row in rows]
