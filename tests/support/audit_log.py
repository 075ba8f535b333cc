"""A log with entries and checkpoints, made without a worker: for tests of what is read from it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from relay.asyncpg_trio import Connection
from relay.audit import checkpoints, log, note, tree_store
from relay.audit.chain import ChainedEntry, link
from relay.audit.entry import Action, Entry, new_entry
from relay.audit.note import Checkpoint
from relay.audit.tree import Frontier
from relay.nostr.keys import SecretKey

TIME_US = 1_700_000_000_000_000


def entry(number: int) -> Entry:
    return new_entry(
        Action.EVENT_CREATED,
        time_us=TIME_US + number,
        uuid=str(uuid.UUID(int=number)),
        actor="ab" * 32,
        event_id=f"{number:064x}",
        kind=9,
        channel_id=str(uuid.UUID(int=number % 3)),
        metadata={"n": number} if number % 2 else None,
    )


async def grow(con: Connection, number: int) -> list[ChainedEntry]:
    """So many more entries behind the head."""
    head = await log.read_head(con)
    rows = link(head, [entry(head.seq + each) for each in range(1, number + 1)])
    await log.insert_rows(con, rows)
    return rows


def root_of_rows(rows: Sequence[ChainedEntry]) -> bytes:
    frontier = Frontier()
    for row in rows:
        frontier.append(row.hash)
    return frontier.root()


async def sign_log(con: Connection, key: SecretKey, size: int) -> Checkpoint:
    """A checkpoint of the first `size` entries, signed and kept."""
    origin = await checkpoints.origin(con, key.public_hex)
    checkpoint = note.sign(origin, size, await tree_store.root_at(con, size), key)
    await checkpoints.insert(con, checkpoint, TIME_US)
    return checkpoint


async def unprotect(con: Connection) -> None:
    """From now on the log is a table like any other, as it is to whoever owns the database."""
    await con.execute("DROP TRIGGER audit_log_append_only ON audit_log")
    await con.execute("ALTER TABLE audit_log DROP CONSTRAINT audit_log_hash_check")
