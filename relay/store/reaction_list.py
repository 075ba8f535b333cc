"""Who reacted to one event, and with what: groups by emoji, page by page, in one statement.

The access check is in it, and its answer comes back beside the rows, because what a client hears depends on which of
the conditions failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.store.channels import Database
from relay.store.message_list import OVER
from relay.store.reach import READABLE_CHANNEL

USERS_MAX: Final = 1000
"""Of one emoji, the earliest; the count tells how many there are. So many names are more than a client shows."""


@dataclass(frozen=True, slots=True)
class Reactor:
    """`reaction_id` is the event that expressed it; None for one that was imported without."""

    pubkey: str
    display_name: str | None
    reaction_id: str | None


@dataclass(frozen=True, slots=True)
class Group:
    emoji: str
    count: int
    users: tuple[Reactor, ...]


@dataclass(frozen=True, slots=True)
class Reacted:
    """What stands under the id of an event. `readable`: the key may read its channel; True where it has none."""

    kind: int
    channel_id: str | None
    readable: bool
    groups: list[Group]


# The bytes decide the order of emoji, so that a cursor means the same in every database.
_LIST = f"""
WITH over AS MATERIALIZED ({OVER.format(now="$3")}),
target AS MATERIALIZED (
    SELECT e.id, e.kind, e.channel_id,
           e.channel_id IS NULL OR EXISTS ({READABLE_CHANNEL.format(channel="e.channel_id", key="$2")}) AS readable
    FROM events e WHERE e.id = $1 AND e.deleted_at IS NULL AND (e.expires_at <= $3::bigint) IS NOT TRUE
), active AS MATERIALIZED (
    SELECT r.emoji COLLATE "C" AS emoji, r.pubkey, r.created_at, r.reaction_event_id,
           row_number() OVER (PARTITION BY r.emoji COLLATE "C" ORDER BY r.created_at, r.pubkey) AS place,
           count(*) OVER (PARTITION BY r.emoji COLLATE "C") AS number
    FROM reactions r
    WHERE r.event_id = (SELECT id FROM target WHERE readable) AND r.removed_at IS NULL
      AND ($4::text IS NULL OR r.emoji COLLATE "C" > $4::text)
      AND (r.reaction_event_id IN (SELECT id FROM over)) IS NOT TRUE
), groups AS (
    SELECT a.emoji, a.number FROM active a WHERE a.place = 1 ORDER BY a.emoji LIMIT $5
)
SELECT t.kind, t.channel_id::text, t.readable, g.emoji, g.number, encode(a.pubkey, 'hex') AS pubkey, u.display_name,
       encode(a.reaction_event_id, 'hex') AS reaction_id
FROM target t LEFT JOIN groups g ON true
LEFT JOIN active a ON a.emoji = g.emoji AND a.place <= {USERS_MAX}
LEFT JOIN users u ON u.pubkey = a.pubkey
ORDER BY g.emoji, a.place"""


async def page(
    db: Database, event_id: str, pubkey: str, *, now: int, limit: int, after: str | None = None
) -> Reacted | None:
    """Up to `limit` groups behind the emoji `after`; None where there is no such live event. `now` in seconds.

    Nothing of the groups is read where the key may not read the event's channel.
    """
    rows = await db.fetch(_LIST, bytes.fromhex(event_id), bytes.fromhex(pubkey), now, after, limit)
    if not rows:
        return None
    users: dict[str, list[Reactor]] = {}
    numbers: dict[str, int] = {}
    for row in rows:
        if row["emoji"] is not None:
            numbers[row["emoji"]] = row["number"]
            reactor = Reactor(row["pubkey"], row["display_name"], row["reaction_id"])
            users.setdefault(row["emoji"], []).append(reactor)
    groups = [Group(emoji, numbers[emoji], tuple(found)) for emoji, found in users.items()]
    first = rows[0]
    return Reacted(first["kind"], first["channel_id"], first["readable"], groups)
