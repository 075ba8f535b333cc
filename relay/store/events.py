"""Events: storing them once, replacing what they replace, finding them again.

Two ways in. `BATCH` begins a statement that stores many plain events and checks channel and membership again, because
admission decided from a cache. `insert_one` stores an event whose effects belong to the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import sha256
from typing import Any, Final

import orjson

from relay.asyncpg_trio import Connection
from relay.nostr.event import Event
from relay.nostr.kinds import (
    DELETION,
    NIP29_GROUP_ADMINS,
    NIP29_GROUP_MEMBERS,
    NIP29_GROUP_METADATA,
    is_addressable,
)
from relay.nostr.nip40 import expires_at
from relay.store.channels import Database

TAG_VALUE_BYTES_MAX = 1024
"""PostgreSQL refuses the row where an entry of the GIN index is longer than 2.7 KB."""

# They name every member, and tell none of them anything: 10 000 rows for each who joins.
MENTION_NOBODY: Final = frozenset({NIP29_GROUP_METADATA, NIP29_GROUP_ADMINS, NIP29_GROUP_MEMBERS})

_COLUMNS = "id, pubkey, created_at, kind, tags, content, sig, channel_id, d_tag, tag_values, signed_json, expires_at"

# One row an event; `member` is the key whose membership counts, NULL where none is asked for (a proxy, a global event).
# Who stores a batch goes on from `inserted`, the ids that are new; its own arguments come behind BATCH_ARGUMENTS.
BATCH = f"""
WITH input AS MATERIALIZED (
    SELECT i.id, i.pubkey, i.created_at, i.kind, i.tags, i.content, i.sig, i.channel_id, i.d_tag,
           i.tag_values::text[] AS tag_values, i.signed_json, i.expires_at, i.member
    FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::int[], $5::jsonb[], $6::text[], $7::bytea[], $8::uuid[],
                $9::text[], $10::text[], $11::bytea[], $12::bigint[], $13::bytea[])
         AS i(id, pubkey, created_at, kind, tags, content, sig, channel_id, d_tag, tag_values, signed_json, expires_at,
              member)
), inserted AS (
    INSERT INTO events ({_COLUMNS})
    SELECT {_COLUMNS} FROM input i
    WHERE i.channel_id IS NULL OR EXISTS (
        SELECT 1 FROM channels c WHERE c.id = i.channel_id AND c.deleted_at IS NULL AND c.archived_at IS NULL
        AND (c.visibility = 'open' OR i.member IS NULL OR EXISTS (
            SELECT 1 FROM channel_members m
            WHERE m.channel_id = i.channel_id AND m.pubkey = i.member AND m.removed_at IS NULL)))
    ORDER BY i.created_at, i.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), mentioned AS (
    INSERT INTO event_mentions (pubkey, event_id, created_at, kind, channel_id)
    SELECT m.pubkey, m.event_id, i.created_at, i.kind, i.channel_id
    FROM unnest($14::bytea[], $15::bytea[]) AS m(pubkey, event_id)
    JOIN inserted n ON n.id = m.event_id JOIN input i ON i.id = m.event_id
    ON CONFLICT DO NOTHING
)"""
BATCH_ARGUMENTS = 15

_INSERT_ONE = f"""
WITH inserted AS (
    INSERT INTO events ({_COLUMNS})
    VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10::text::text[], $11, $12::bigint)
    ON CONFLICT (id) DO NOTHING RETURNING id
), mentioned AS (
    INSERT INTO event_mentions (pubkey, event_id, created_at, kind, channel_id)
    SELECT DISTINCT m.pubkey, n.id, $3::bigint, $4::int, $8::uuid FROM unnest($13::bytea[]) AS m(pubkey), inserted n
)
SELECT count(*) FROM inserted"""

_LOCK_REPLACEABLE = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"

# The newest version (NULL where there is none), and whether its author has taken back what is to replace it (NIP-09: an
# `a` tag covers every version up to the deletion's own time). A deletion of a deletion has no effect, so one counts
# even where it is marked as deleted. Its kind stands in digits: only then may a plan for any address use their index.
_NEWEST = f"""
SELECT n.id, n.created_at, EXISTS (
    SELECT 1 FROM events a
    WHERE a.tag_values @> ARRAY[$5::text] AND a.kind = {DELETION} AND a.pubkey = $2 AND a.created_at >= $6
) AS taken_back
FROM (VALUES (1)) one LEFT JOIN LATERAL (
    SELECT encode(id, 'hex') AS id, created_at FROM events
    WHERE kind = $1 AND pubkey = $2 AND deleted_at IS NULL AND channel_id IS NOT DISTINCT FROM $3
      AND ($4::text IS NULL OR d_tag = $4)
    ORDER BY created_at DESC, id LIMIT 1
) n ON true"""

_SUPERSEDE = """
UPDATE events SET deleted_at = now()
WHERE kind = $1 AND pubkey = $2 AND deleted_at IS NULL AND channel_id IS NOT DISTINCT FROM $3
  AND ($4::text IS NULL OR d_tag = $4)"""

# The range says again what the array holds: only then may a plan for any array use the index of these kinds, and not
# read all that was ever said in the channel.
_LIVE_STATE = """
kind = ANY($1::int[]) AND kind BETWEEN 39000 AND 39002 AND pubkey = $2 AND channel_id = $3 AND deleted_at IS NULL"""
_NEWEST_STATE = f"SELECT kind, max(created_at) FROM events WHERE {_LIVE_STATE} GROUP BY kind"
_SUPERSEDE_STATE = f"UPDATE events SET deleted_at = now() WHERE {_LIVE_STATE}"

# What `stored_event` reads, but for `deleted`: some count one that has expired among the deleted ones.
STORED_COLUMNS = (
    "encode(id, 'hex') AS id, encode(pubkey, 'hex') AS pubkey, kind, channel_id::text, created_at, signed_json, "
    "expires_at"
)
_GET = f"SELECT {STORED_COLUMNS}, deleted_at IS NOT NULL AS deleted FROM events WHERE id = $1"


@dataclass(frozen=True, slots=True)
class Row:
    """An event on its way into the table. `member`: whose membership of a private channel is checked again."""

    event: Event
    channel_id: str | None
    member: str | None


class Replaced(Enum):
    """What became of a new version of a replaceable event."""

    STORED = auto()
    LOST = auto()
    """A newer version is there, or this one is stored already."""
    DELETED_BY_AUTHOR = auto()
    """A deletion of the author's, as new as this version or newer, names its address."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """What effects need to know of a stored event. `deleted`: taken back or replaced; whether it has expired since
    (`expires_at`, seconds) is for the caller to ask."""

    id: str
    pubkey: str
    kind: int
    channel_id: str | None
    created_at: int
    signed_json: bytes
    deleted: bool
    expires_at: int | None = None


def d_tag(event: Event) -> str | None:
    """The `d` value of an addressable event (empty where it has none), None for every other kind."""
    return (event.first_tag("d") or "") if is_addressable(event.kind) else None


def tag_key(letter: str, value: str) -> str:
    """How a tag stands in `tag_values`, and how a filter asks for it: `x:value`, or `x#` and the SHA-256 of a value
    that may be too long for an index entry. The second character tells them apart: no value passes for another."""
    if len(value) * 4 > TAG_VALUE_BYTES_MAX and len(encoded := value.encode()) > TAG_VALUE_BYTES_MAX:
        return f"{letter}#{sha256(encoded).hexdigest()}"
    return f"{letter}:{value}"


def tag_values(event: Event, channel_id: str | None) -> str:
    """The single-letter tags as a text[] literal of `tag_key`; the `h` that names the channel itself is left out."""
    values = {
        tag_key(tag[0], tag[1])
        for tag in event.tags
        if len(tag) > 1 and len(tag[0]) == 1 and tag[0].isascii() and tag[0].isalpha()
    }
    if channel_id is not None:
        values.discard(f"h:{channel_id}")
    if not values:
        return "{}"
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return '{"' + '","'.join(quoted) + '"}'


def batch_arguments(rows: Sequence[Row]) -> tuple[list[Any], ...]:
    """What `BATCH` takes. No id may stand twice in `rows`. They go in by (created_at, id), whatever their order here:
    two relays cannot deadlock."""
    events = [row.event for row in rows]
    mentions = [(key, event.id) for event in events for key in set(event.p_tags())]
    return (
        [bytes.fromhex(event.id) for event in events],
        [bytes.fromhex(event.pubkey) for event in events],
        [event.created_at for event in events],
        [event.kind for event in events],
        [orjson.dumps(event.tags).decode() for event in events],
        [event.content for event in events],
        [bytes.fromhex(event.sig) for event in events],
        [row.channel_id for row in rows],
        [d_tag(event) for event in events],
        [tag_values(row.event, row.channel_id) for row in rows],
        [event.json for event in events],
        [expires_at(event) for event in events],
        [None if row.member is None else bytes.fromhex(row.member) for row in rows],
        [bytes.fromhex(key) for key, _ in mentions],
        [bytes.fromhex(event_id) for _, event_id in mentions],
    )


async def insert_one(con: Connection, event: Event, channel_id: str | None) -> bool:
    """Stores one event with its mentions; False where the id is already there."""
    stored = await con.fetchval(
        _INSERT_ONE,
        bytes.fromhex(event.id),
        bytes.fromhex(event.pubkey),
        event.created_at,
        event.kind,
        orjson.dumps(event.tags).decode(),
        event.content,
        bytes.fromhex(event.sig),
        channel_id,
        d_tag(event),
        tag_values(event, channel_id),
        event.json,
        expires_at(event),
        [] if event.kind in MENTION_NOBODY else [bytes.fromhex(key) for key in set(event.p_tags())],
    )
    return bool(stored)


async def known(db: Database, ids: Iterable[str]) -> set[str]:
    """Those of the ids that are stored, deleted ones included."""
    rows = await db.fetch(
        "SELECT encode(id, 'hex') FROM events WHERE id = ANY($1::bytea[])",
        [bytes.fromhex(event_id) for event_id in ids],
    )
    return {row[0] for row in rows}


async def get(db: Database, event_id: str) -> StoredEvent | None:
    """One event by id, deleted or not."""
    row = await db.fetchrow(_GET, bytes.fromhex(event_id))
    return None if row is None else stored_event(row)


def stored_event(row: Any) -> StoredEvent:
    """From a row of `STORED_COLUMNS` and `deleted`."""
    return StoredEvent(
        row["id"],
        row["pubkey"],
        row["kind"],
        row["channel_id"],
        row["created_at"],
        row["signed_json"],
        row["deleted"],
        row["expires_at"],
    )


async def lock_replaceable(con: Connection, kind: int, pubkey: str, channel_id: str | None, d: str | None) -> None:
    """Makes everybody who would change what this key stands for wait until the caller's transaction ends. `d` is None
    for a kind that is replaceable without one."""
    await con.execute(_LOCK_REPLACEABLE, f"{kind}:{pubkey}:{channel_id}:{d}")


async def replace(con: Connection, event: Event, channel_id: str | None) -> Replaced:
    """Stores a replaceable or addressable event in place of the older one (NIP-01).

    The newest `created_at` wins, of equals the lowest id. Several statements; the caller's transaction holds the
    key's lock until it ends, and must be rolled back unless the answer is STORED.
    """
    d = d_tag(event)
    key = (event.kind, bytes.fromhex(event.pubkey), channel_id, d)
    await lock_replaceable(con, event.kind, event.pubkey, channel_id, d)
    address = tag_key("a", f"{event.kind}:{event.pubkey}:{d or ''}")
    newest = await con.fetchrow(_NEWEST, *key, address, event.created_at)
    assert newest is not None
    if newest["taken_back"]:
        return Replaced.DELETED_BY_AUTHOR
    if newest["id"] is not None and (-newest["created_at"], newest["id"]) <= (-event.created_at, event.id):
        return Replaced.LOST
    await con.execute(_SUPERSEDE, *key)
    return Replaced.STORED if await insert_one(con, event, channel_id) else Replaced.LOST


async def newest_of_kinds(con: Connection, pubkey: str, channel_id: str, kinds: Sequence[int]) -> dict[int, int]:
    """The newest `created_at` by kind (of 39000 to 39002) of one author in one channel."""
    rows = await con.fetch(_NEWEST_STATE, list(kinds), bytes.fromhex(pubkey), channel_id)
    return {row[0]: row[1] for row in rows}


async def newest_tagged(
    con: Connection, kinds: Sequence[int], pubkey: str, tags: Mapping[str, str], *, since: int
) -> int | None:
    """The newest `created_at`, from `since` on, of an author's live events with all these tags."""
    found: int | None = await con.fetchval(
        "SELECT max(created_at) FROM events WHERE kind = ANY($1::int[]) AND pubkey = $2 AND created_at >= $3 "
        "AND tag_values @> $4::text[] AND deleted_at IS NULL",
        list(kinds),
        bytes.fromhex(pubkey),
        since,
        [tag_key(letter, value) for letter, value in tags.items()],
    )
    return found


async def supersede(con: Connection, kinds: Sequence[int], pubkey: str, channel_id: str) -> None:
    """Marks the live events of these kinds (of 39000 to 39002), of one author in one channel, as replaced."""
    await con.execute(_SUPERSEDE_STATE, list(kinds), bytes.fromhex(pubkey), channel_id)


async def mark_deleted(con: Connection, event_id: str) -> bool:
    """Soft-deletes an event; False where it already was."""
    done = await con.fetchval(
        "UPDATE events SET deleted_at = now() WHERE id = $1 AND deleted_at IS NULL RETURNING true",
        bytes.fromhex(event_id),
    )
    return bool(done)
