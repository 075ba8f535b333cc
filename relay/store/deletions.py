"""Taking stored events back: by id, by address, by time. Rows are marked and stay; every reader leaves marked ones out.

All functions belong to a caller's transaction. Locks are taken in this order: the event's row, then what hangs on it
(thread rows by event id, reactions, the author's user row).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relay.asyncpg_trio import Connection
from relay.nostr.kinds import is_addressable
from relay.store.events import STORED_COLUMNS, StoredEvent, lock_replaceable, stored_event, tag_key

# One that has expired is gone, although nobody has marked it yet.
_LOCK = f"""
SELECT {STORED_COLUMNS}, deleted_at IS NOT NULL OR coalesce(expires_at <= $2, false) AS deleted
FROM events WHERE id = $1 FOR """

_MARK = f"""
UPDATE events SET deleted_at = now() WHERE id = ANY($1::bytea[]) RETURNING {STORED_COLUMNS}, true AS deleted"""

# Whatever two sweeps, or a sweep and a deletion, both want, one of them leaves to the other.
_EXPIRED = """
SELECT id FROM events WHERE expires_at <= $1 AND deleted_at IS NULL
ORDER BY expires_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED"""

_OF_AUTHOR = "FROM events WHERE pubkey = $1 AND kind = $2 AND channel_id IS NULL AND "

# Replaced and deleted versions stand in no index by author. A `d` that is not empty is among the tag values.
_BY_D = "d_tag = $3 AND "
_BY_INDEXED_D = "d_tag = $3 AND tag_values @> ARRAY[$4::text] AND "

_REPLIES = """
SELECT encode(event_id, 'hex'), encode(parent_event_id, 'hex'), encode(root_event_id, 'hex') FROM thread_metadata
WHERE event_id = ANY($1::bytea[]) AND parent_event_id IS NOT NULL ORDER BY event_id"""

_LOCK_THREADS = "SELECT FROM thread_metadata WHERE event_id = ANY($1::bytea[]) ORDER BY event_id FOR NO KEY UPDATE"


async def lock(con: Connection, event_id: str, now: int, *, shared: bool = False) -> StoredEvent | None:
    """The event, and nobody deletes it before this transaction ends; None where there is none.

    `deleted` also tells of one that has expired at `now` (seconds). With `shared` others may lock it like this too:
    for those who only refer to it.
    """
    row = await con.fetchrow(f"{_LOCK}{'SHARE' if shared else 'NO KEY UPDATE'}", bytes.fromhex(event_id), now)
    return None if row is None else stored_event(row)


async def mark_expired(con: Connection, now: int, events_max: int) -> list[StoredEvent]:
    """Deletes those whose time is over at `now` (seconds), the oldest first, and returns them."""
    rows = await con.fetch(_EXPIRED, now, events_max)
    return await _mark(con, rows)


async def lock_address(con: Connection, kind: int, pubkey: str, d: str) -> bool:
    """Keeps new versions of a global replaceable or addressable event out until the transaction ends; returns whether
    there is one, or has ever been one. `d` is empty for a replaceable kind."""
    addressable = is_addressable(kind)
    await lock_replaceable(con, kind, pubkey, None, d if addressable else None)
    by_d, arguments = _by_d(addressable, d)
    author = bytes.fromhex(pubkey)
    if await con.fetchval(f"SELECT EXISTS (SELECT 1 {_OF_AUTHOR}{by_d}deleted_at IS NULL)", author, kind, *arguments):
        return True
    if addressable and d:
        by_d, arguments = _BY_INDEXED_D, (d, tag_key("d", d))
    gone = f"SELECT EXISTS (SELECT 1 {_OF_AUTHOR}{by_d}deleted_at IS NOT NULL)"
    return bool(await con.fetchval(gone, author, kind, *arguments))


async def mark_address(con: Connection, kind: int, pubkey: str, d: str, until: int) -> list[StoredEvent]:
    """Deletes the live versions of `until` (seconds) and before, and returns them. The caller has `lock_address`."""
    by_d, arguments = _by_d(is_addressable(kind), d)
    live = f"SELECT id {_OF_AUTHOR}{by_d}deleted_at IS NULL AND created_at <= ${len(arguments) + 3} FOR NO KEY UPDATE"
    rows = await con.fetch(live, bytes.fromhex(pubkey), kind, *arguments, until)
    return await _mark(con, rows)


async def _mark(con: Connection, rows: Sequence[Any]) -> list[StoredEvent]:
    """Marks the locked rows whose id stands first in these."""
    return [stored_event(row) for row in await con.fetch(_MARK, [row[0] for row in rows])] if rows else []


def _by_d(addressable: bool, d: str) -> tuple[str, tuple[str, ...]]:
    return (_BY_D, (d,)) if addressable else ("", ())


async def lock_threads_of(con: Connection, event_ids: Sequence[str]) -> list[str]:
    """Those of the events that are replies. The rows that count them are locked in the order that everybody keeps;
    one by one, two who delete many would wait for each other."""
    rows = await con.fetch(_REPLIES, [bytes.fromhex(event_id) for event_id in event_ids])
    counted = {bytes.fromhex(ancestor) for row in rows for ancestor in (row[1], row[2]) if ancestor is not None}
    if len(rows) > 1:
        await con.execute(_LOCK_THREADS, list(counted))
    return [row[0] for row in rows]
