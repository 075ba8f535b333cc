"""One thread: its root, and the answers of all levels in the order of their writing, page by page.

Two statements. Each has the access check in it, so that somebody who is removed between them reads no further. Answers
are ordered by (created_at, id) and a cursor names both, so no page skips or repeats what shares a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.store.channels import Database
from relay.store.message_list import (
    ANSWERED,
    OVER,
    PART_COLUMNS,
    REACTED,
    TEXT,
    THREAD_COLUMNS,
    Summary,
    reactions_of,
    summary_of,
)
from relay.store.reach import READABLE_CHANNEL
from relay.store.threads import DEPTH_MAX

_EVERY_ID: Final = b"\xff" * 32
_FIRST: Final = (-(2**63), b"")


@dataclass(frozen=True, slots=True)
class Root:
    """What is found under the id of a root.

    `channel_id` is its own, None for a global event. `elsewhere`: the key may read that channel, whichever it is.
    """

    event_id: str
    channel_id: str | None
    kind: int
    elsewhere: bool
    signed_json: bytes
    summary: Summary | None
    reactions: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `parent` and `root` are event ids; `depth` 1 answers the root. `signed_json`: see `ListedMessage`."""

    event_id: str
    created_at: int
    parent: str | None
    root: str | None
    depth: int
    broadcast: bool
    signed_json: bytes
    reactions: tuple[tuple[str, int], ...]


_READABLE = READABLE_CHANNEL.format(channel="$1::text::uuid", key="$2")

_ROOT = f"""
WITH over AS MATERIALIZED ({OVER.format(now="$4")}),
p AS MATERIALIZED (
    SELECT e.id, e.kind, e.channel_id, e.signed_json, {THREAD_COLUMNS}
    FROM events e LEFT JOIN thread_metadata t ON t.event_id = e.id
    WHERE e.id = $3 AND e.deleted_at IS NULL AND (e.expires_at <= $4::bigint) IS NOT TRUE
)
SELECT EXISTS ({_READABLE}) AS readable, encode(p.id, 'hex') AS id, p.kind, p.channel_id::text, p.signed_json,
       EXISTS ({READABLE_CHANNEL.format(channel="p.channel_id", key="$2")}) AS elsewhere, {PART_COLUMNS}
FROM (VALUES (1)) always LEFT JOIN p ON true {REACTED} {ANSWERED.format(now="$4")}"""

# The channel is asked of the event itself; the rows of a thread never cross its border, but they are only counted here.
# OFFSET 0 keeps that a look-up by key: before the first ANALYZE the planner would rather read the whole channel and ask
# of each message whether it belongs to the thread (60 000 messages: 90 ms instead of 1).
_REPLIES = f"""
WITH over AS MATERIALIZED ({OVER.format(now="$4")}),
p AS MATERIALIZED (
    SELECT e.id, t.created_at, t.parent_event_id, t.root_event_id, t.depth, t.broadcast, e.signed_json
    FROM thread_metadata t
    CROSS JOIN LATERAL (
        SELECT x.id, x.channel_id, x.deleted_at, x.expires_at, x.signed_json FROM events x WHERE x.id = t.event_id
        OFFSET 0) e
    WHERE t.root_event_id = $3 AND EXISTS ({_READABLE}) AND e.channel_id = $1::text::uuid
      AND e.deleted_at IS NULL AND (e.expires_at <= $4::bigint) IS NOT TRUE
      AND t.depth <= $5 AND (t.created_at, t.event_id) > ($6::bigint, $7::bytea)
    ORDER BY t.created_at, t.event_id LIMIT $8
)
SELECT encode(p.id, 'hex') AS id, p.created_at, encode(p.parent_event_id, 'hex') AS parent,
       encode(p.root_event_id, 'hex') AS root, p.depth, p.broadcast, {TEXT},
       reacted.emojis, reacted.numbers
FROM p {REACTED}
WINDOW w AS (ORDER BY p.created_at, p.id)
ORDER BY p.created_at, p.id"""


class NotReadable(Exception):
    """The key may not read the channel, or there is none."""


async def root(db: Database, channel_id: str, pubkey: str, event_id: bytes, *, now: int) -> Root | None:
    """The live event with this id, wherever it is filed; None where there is none. `now` in seconds.

    Raises: NotReadable for the channel that was asked.
    """
    row = await db.fetchrow(_ROOT, channel_id, bytes.fromhex(pubkey), event_id, now)
    assert row is not None
    if not row["readable"]:
        raise NotReadable
    if row["id"] is None:
        return None
    return Root(
        row["id"],
        row["channel_id"],
        row["kind"],
        row["elsewhere"],
        row["signed_json"],
        summary_of(row),
        reactions_of(row),
    )


async def replies(
    db: Database,
    channel_id: str,
    pubkey: str,
    event_id: bytes,
    *,
    now: int,
    limit: int,
    depth_limit: int | None = None,
    after: tuple[int, bytes | None] | None = None,
) -> list[Reply]:
    """Up to `limit` live answers behind `after`: a second and an id in it, or None for the whole second."""
    second, passed = after or _FIRST
    rows = await db.fetch(
        _REPLIES,
        channel_id,
        bytes.fromhex(pubkey),
        event_id,
        now,
        DEPTH_MAX if depth_limit is None else min(depth_limit, DEPTH_MAX),
        second,
        _EVERY_ID if passed is None else passed,
        limit,
    )
    return [
        Reply(
            row["id"],
            row["created_at"],
            row["parent"],
            row["root"],
            row["depth"],
            row["broadcast"],
            row["signed_json"] or b"",
            reactions_of(row),
        )
        for row in rows
    ]
