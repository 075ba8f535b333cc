"""One channel: what is known of it, who is in it, and its canvas.

Each is one statement with the access check inside. A channel that the key may not read, that does not exist or that was
deleted gives None, and nobody can tell which of the three it was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from relay.nostr import kinds
from relay.nostr.ids import parse_hex64
from relay.store.channels import Database
from relay.store.reach import READABLE_CHANNEL

MEMBERS_MAX: Final = 1000  # the original's
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_TIME_DIGITS: Final = 16  # of hex: 64 bits
_CURSOR: Final = re.compile(rf"[0-9a-f]{{{_TIME_DIGITS + 64}}}")


@dataclass(frozen=True, slots=True)
class ChannelDetails:
    id: str
    name: str
    channel_type: str
    visibility: str
    description: str | None
    topic: str | None
    topic_set_by: str | None
    topic_set_at: datetime | None
    purpose: str | None
    purpose_set_by: str | None
    purpose_set_at: datetime | None
    created_by: str
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None
    member_count: int
    topic_required: bool
    max_members: int | None
    ttl_seconds: int | None
    ttl_deadline: datetime | None


@dataclass(frozen=True, slots=True)
class ListedMember:
    pubkey: str
    role: str
    joined_at: datetime
    display_name: str | None


@dataclass(frozen=True, slots=True)
class Joined:
    """A place in the list of members: by the time of joining, then by key. An active member keeps his."""

    joined_at: datetime
    pubkey: str

    @property
    def cursor(self) -> str:
        return f"{(self.joined_at - _EPOCH) // _MICROSECOND:0{_TIME_DIGITS}x}{self.pubkey}"


@dataclass(frozen=True, slots=True)
class Canvas:
    """`tags` are the event's, for who it says that it is by. `created_at` in seconds."""

    content: str
    created_at: int
    pubkey: str
    tags: list[list[str]]

    @property
    def first_named(self) -> str | None:
        """The first key that it names in a `p` tag."""
        for tag in self.tags:
            if len(tag) > 1 and tag[0] == "p":
                return parse_hex64(tag[1])
        return None


_READABLE: Final = READABLE_CHANNEL.format(channel="$1::text::uuid", key="$2")

_DETAILS: Final = f"""
SELECT c.id::text, c.name, c.channel_type::text, c.visibility::text, c.description,
       c.topic, encode(c.topic_set_by, 'hex') AS topic_set_by, c.topic_set_at,
       c.purpose, encode(c.purpose_set_by, 'hex') AS purpose_set_by, c.purpose_set_at,
       encode(c.created_by, 'hex') AS created_by, c.created_at, c.updated_at, c.archived_at,
       c.member_count, c.topic_required, c.max_members, c.ttl_seconds, c.ttl_deadline
FROM ({_READABLE}) c"""

# The left join keeps a row for a channel that may be read and has nobody in it.
_MEMBERS: Final = f"""
SELECT encode(m.pubkey, 'hex') AS pubkey, m.role, m.joined_at, u.display_name
FROM ({_READABLE}) c
LEFT JOIN LATERAL (
    SELECT m.pubkey, m.role::text, m.joined_at FROM channel_members m
    WHERE m.channel_id = c.id AND m.removed_at IS NULL
      AND ($3::timestamptz IS NULL OR (m.joined_at, m.pubkey) > ($3::timestamptz, $4::bytea))
    ORDER BY m.joined_at, m.pubkey LIMIT $5
) m ON true
LEFT JOIN users u ON u.pubkey = m.pubkey
ORDER BY m.joined_at, m.pubkey"""

# The kind stands in the text: only then does the planner know that the index of canvases holds what is asked for.
_CANVAS: Final = f"""
SELECT e.content, e.created_at, encode(e.pubkey, 'hex') AS pubkey, e.tags::text
FROM ({_READABLE}) c
LEFT JOIN LATERAL (
    SELECT e.content, e.created_at, e.pubkey, e.tags FROM events e
    WHERE e.channel_id = c.id AND e.kind = {kinds.CANVAS} AND e.deleted_at IS NULL
      AND (e.expires_at <= $3::bigint) IS NOT TRUE
    ORDER BY e.created_at DESC, e.id LIMIT 1
) e ON true"""


async def details(db: Database, channel_id: str, pubkey: str) -> ChannelDetails | None:
    """The live channel, if this key may read it."""
    row = await db.fetchrow(_DETAILS, channel_id, bytes.fromhex(pubkey))
    return None if row is None else ChannelDetails(*row)


async def members(
    db: Database, channel_id: str, pubkey: str, *, after: Joined | None, limit: int = MEMBERS_MAX
) -> tuple[Sequence[ListedMember], Joined | None] | None:
    """(a page of the active members in the order in which they joined, where the next one begins or None).

    None where this key may not read the channel.
    """
    rows = await db.fetch(
        _MEMBERS,
        channel_id,
        bytes.fromhex(pubkey),
        None if after is None else after.joined_at,
        None if after is None else bytes.fromhex(after.pubkey),
        limit + 1,
    )
    if not rows:
        return None
    # One row more than asked for tells whether there is another page.
    found = [ListedMember(*row) for row in rows if row["pubkey"] is not None]
    if len(found) <= limit:
        return found, None
    last = found[limit - 1]
    return found[:limit], Joined(last.joined_at, last.pubkey)


async def canvas(db: Database, channel_id: str, pubkey: str, *, now: int) -> tuple[Canvas | None] | None:
    """The newest canvas of the channel in a tuple of its own, since there may be none; None where this key may not
    read the channel. What expired at `now` (seconds) or before is passed over."""
    row = await db.fetchrow(_CANVAS, channel_id, bytes.fromhex(pubkey), now)
    if row is None:
        return None
    if row["content"] is None:
        return (None,)
    return (Canvas(row["content"], row["created_at"], row["pubkey"], orjson.loads(row["tags"])),)


def parse_cursor(text: str) -> Joined | None:
    """What `Joined.cursor` wrote; None for anything else."""
    if _CURSOR.fullmatch(text) is None:
        return None
    try:
        joined_at = _EPOCH + int(text[:_TIME_DIGITS], 16) * _MICROSECOND
    except OverflowError:
        return None
    return Joined(joined_at, text[_TIME_DIGITS:])
