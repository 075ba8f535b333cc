"""The log table: moving entries from the outbox into the chain, one writer at a time.

In: what the outbox holds. Out: rows of `audit_log`. Used by the worker, and at start by `chain_outbox`: recovery is the
normal path, so it is tested all day long.

Theory
------
A batch is one transaction of four steps, each a statement of its own:

    (a) take the advisory lock       the writers of all nodes stand in one line; it is held until the commit
    (b) read the head                a later statement, hence a later snapshot: it sees what the last writer committed
    (c) DELETE ... RETURNING         what comes back is chained, nothing else: the outbox decides, not anyone's memory
    (d) INSERT                       UNIQUE(prev_hash) refuses a fork even if (a) were broken

Lock and head in one statement would read the head in the snapshot from before the wait. Step (c) before the commit of
(d) is what makes every outcome safe to repeat: if a commit was lost with its connection, the rows are either still in
the outbox, and are taken again, or they are in the log, and there is nothing left to take.

A row of the outbox that some session keeps locked stops step (c) until the lock timeout. `skip_locked`, for the try
after that, takes the others and says which were held; they are chained later, behind entries that are younger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from relay.asyncpg_trio import Connection
from relay.asyncpg_trio.errors import LockNotAvailableError
from relay.audit.chain import GENESIS, HASH_BYTES, ChainedEntry, Head, link
from relay.audit.entry import Entry, columns
from relay.errors import ChainBroken

BATCH_ENTRIES_MAX = 256
# However a batch is configured: what one transaction may hold up all other writers for.
BATCH_ENTRIES_LIMIT = 500
# "relayaud" in ASCII; not the original's number, so that both can share a server during a migration.
ADVISORY_LOCK = 0x72656C6179617564
LOCK_TIMEOUT_MS = 2_000
STATEMENT_TIMEOUT_MS = 5_000

_log = structlog.get_logger(__name__)

# One message, three statements, each with a snapshot of its own.
_LOCK = f"""
SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS};
SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS};
SELECT pg_advisory_xact_lock({ADVISORY_LOCK});
"""

_HEAD = "SELECT seq, hash FROM audit_log ORDER BY seq DESC LIMIT 1"

_BELOW_FIRST = "SELECT min(seq) AS first, count(*) AS rows FROM audit_log WHERE seq < 1"

_FIELDS = "uuid::text AS uuid, time_us, action, actor, event_id, kind, channel_id::text AS channel_id, metadata"

_TAKE = f"""
DELETE FROM audit_outbox AS taken
-- An array and not IN (SELECT ...): the limit is applied once, and the rows are found by primary key.
WHERE id = ANY (ARRAY (SELECT id FROM audit_outbox ORDER BY id LIMIT $1))
RETURNING id, {_FIELDS}, pg_current_xact_id()::text AS xid,
    -- Only after a half-restored backup, or a producer that wrote a uuid again after it was chained. Such a row is
    -- dropped: it is in the chain already, and inserting it would fail this batch and every later one for ever.
    EXISTS (SELECT FROM audit_log WHERE audit_log.uuid = taken.uuid) AS chained
"""

_TAKE_UNLOCKED = _TAKE.replace("LIMIT $1))", "LIMIT $1 FOR UPDATE SKIP LOCKED))")
assert _TAKE_UNLOCKED != _TAKE, "the limit is where it was"

# Those that can be locked came after (c) and are nobody's problem.
_HELD = """
SELECT uuid::text AS uuid FROM audit_outbox
WHERE id <> ALL (ARRAY (SELECT id FROM audit_outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED))
ORDER BY id LIMIT $1
"""

_INSERT = """
INSERT INTO audit_log (seq, uuid, time_us, action, actor, event_id, kind, channel_id, metadata,
                       version, prev_hash, hash)
SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::int[],
                     $8::uuid[], $9::text[], $10::smallint[], $11::bytea[], $12::bytea[])
"""

_SELECT_ROWS = f"""
SELECT seq, {_FIELDS}, version, prev_hash, hash, v1_time
FROM audit_log WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3
"""


_NEXT_SEQ = "SELECT coalesce(min(seq), $2::bigint + 1) FROM audit_log WHERE seq > $1 AND seq <= $2"


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction did: the uuids it took from the outbox, how many of them it chained, the head it found and
    the head it left, whether more may wait, the transaction (None where there was nothing to take), the hashes of the
    rows behind `prev`, and the uuids that stay because another session keeps their rows locked (known only from a batch
    that skipped them)."""

    uuids: tuple[str, ...]
    written: int
    prev: Head
    head: Head
    full: bool
    xid: str | None = None
    hashes: tuple[bytes, ...] = ()
    held: tuple[str, ...] = ()


async def chain_batch(con: Connection, *, entries_max: int = BATCH_ENTRIES_MAX, skip_locked: bool = False) -> Batch:
    """Chain up to `entries_max` entries of the outbox. To be called inside a READ COMMITTED transaction.

    Whether it was committed is the caller's to know: until then, `Batch` is a plan.

    Raises:
        LockNotAvailableError: another writer is at it for too long, or a session keeps a row of the outbox locked.
        PostgresError: among others a statement timeout, or a head that moved under us (UNIQUE).
        ValueError: more than BATCH_ENTRIES_LIMIT were asked for.
    """
    if not 0 < entries_max <= BATCH_ENTRIES_LIMIT:
        raise ValueError(f"a batch has 1 to {BATCH_ENTRIES_LIMIT} entries, not {entries_max}")
    await con.execute(_LOCK)
    prev = await read_head(con)
    taken = sorted(await con.fetch(_TAKE_UNLOCKED if skip_locked else _TAKE, entries_max), key=_place)
    fresh = [entry_of(row) for row in taken if not row["chained"]]
    if len(fresh) < len(taken):
        _log.warning("audit entries were chained before and are dropped", entries=len(taken) - len(fresh))
    rows = link(prev, fresh)
    if rows:
        await insert_rows(con, rows)
    head = rows[-1].head if rows else prev
    assert head.seq == prev.seq + len(fresh), "the log has no gaps"
    xid = taken[0]["xid"] if taken else None
    hashes = tuple(row.hash for row in rows)
    full = len(taken) == entries_max
    held = await _held(con, entries_max) if skip_locked and not full else ()
    return Batch(tuple(row["uuid"] for row in taken), len(fresh), prev, head, full, xid, hashes, held)


async def chain_outbox(con: Connection, *, entries_max: int = BATCH_ENTRIES_MAX) -> int:
    """Chain all that the outbox holds, and say how many that was. For the start, before the worker runs.

    Rows that somebody keeps locked are left to the worker. Raises what `chain_batch` does.
    """
    written = 0
    skip_locked = False
    while True:
        try:
            async with con.transaction(isolation="read_committed"):
                batch = await chain_batch(con, entries_max=entries_max, skip_locked=skip_locked)
        except LockNotAvailableError:
            if skip_locked:
                raise
            skip_locked = True
            continue
        written += batch.written
        if not batch.full:
            warn_of_held(batch)
            return written


def warn_of_held(batch: Batch) -> None:
    if batch.held:
        _log.warning("audit entries wait: another session keeps their outbox rows locked", entries=len(batch.held))


async def read_head(con: Connection) -> Head:
    """The last row's place and hash; `GENESIS` for an empty log.

    Raises:
        ChainBroken: the last row is one that nothing can be chained to.
    """
    seq, digest = await read_end(con)
    if seq < 0 or len(digest) != HASH_BYTES:
        raise ChainBroken(f"nothing can follow the last row of the audit log, seq {seq}")
    return Head(seq, digest)


async def read_end(con: Connection) -> tuple[int, bytes]:
    """As `read_head`, whatever stands there: for verifying."""
    row = await con.fetchrow(_HEAD)
    return (GENESIS.seq, GENESIS.hash) if row is None else (row["seq"], row["hash"] or b"")


async def below_first(con: Connection) -> tuple[int, int] | None:
    """Rows in places that no entry ever had: the first such place and how many there are; None if there are none."""
    row = await con.fetchrow(_BELOW_FIRST)
    assert row is not None, "an aggregate has one row"
    return (row["first"], row["rows"]) if row["rows"] else None


async def read_rows(con: Connection, after_seq: int, to_seq: int, rows_max: int) -> list[ChainedEntry]:
    """Rows with `after_seq` < seq ≤ `to_seq`, by seq, at most `rows_max` of them."""
    return [chained_of(row) for row in await con.fetch(_SELECT_ROWS, after_seq, to_seq, rows_max)]


async def next_seq(con: Connection, after_seq: int, to_seq: int) -> int:
    """The first place behind `after_seq` that has a row; `to_seq` + 1 when none has up to there."""
    return int(await con.fetchval(_NEXT_SEQ, after_seq, to_seq))


async def insert_rows(con: Connection, rows: Sequence[ChainedEntry]) -> None:
    """Write chained rows of version 2 in one statement."""
    await con.execute(
        _INSERT,
        [row.seq for row in rows],
        *columns([row.entry for row in rows]),
        [row.version for row in rows],
        [row.prev_hash for row in rows],
        [row.hash for row in rows],
    )


def entry_of(row: Any) -> Entry:
    """The entry in a database row: what is hashed is what the database gave back, never what we once sent."""
    return Entry(
        row["uuid"],
        row["time_us"],
        row["action"],
        row["actor"],
        row["event_id"],
        row["kind"],
        row["channel_id"],
        row["metadata"],
    )


def chained_of(row: Any) -> ChainedEntry:
    # Only a row that somebody tampered with has no hash; for whoever verifies, that is one of the wrong length.
    prev_hash, digest = row["prev_hash"] or b"", row["hash"] or b""
    return ChainedEntry(row["seq"], entry_of(row), row["version"], prev_hash, digest, row["v1_time"])


async def _held(con: Connection, rows_max: int) -> tuple[str, ...]:
    return tuple(row["uuid"] for row in await con.fetch(_HELD, rows_max))


def _place(row: Any) -> int:
    place: int = row["id"]
    return place
