"""Checkpoints in the database: what the relay has signed about its log, and who else has signed for it.

In: checkpoints that were signed (relay/audit/checkpointer.py) and the lines of witnesses. Out: the same, by origin and
size. A row is never changed, but for the event that published it and for cosignatures that are added.

What comes back was in somebody else's hands: a row whose note does not parse, or says something else than its columns,
is a `NoteError`. Signatures are not verified here. Whoever must go on with rows like that reads `rows`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from relay.asyncpg_trio import Connection, Pool
from relay.audit import note
from relay.audit.note import Checkpoint, NoteError
from relay.errors import HeadMismatch

_COLUMNS = """
SELECT origin, size, root, time_us, note, event_id,
    ARRAY(SELECT s.line FROM audit_cosignatures s WHERE s.origin = c.origin AND s.size = c.size ORDER BY s.witness)
        AS lines
FROM audit_checkpoints c
"""
_NEWEST = f"{_COLUMNS} WHERE origin = $1 ORDER BY size DESC LIMIT 1"
_AT = f"{_COLUMNS} WHERE origin = $1 AND size = $2"
_LISTED = f"{_COLUMNS} WHERE origin = $1 AND size > $2 ORDER BY size LIMIT $3"
_ORIGINS = "SELECT origin FROM audit_checkpoints GROUP BY origin ORDER BY min(time_us), origin"
# Not their count: where a backup was restored that does not know of a loss, its name must not be given out again.
_LAST_LOSS = "SELECT coalesce(max(number), 0) FROM audit_losses"

_INSERT = """
INSERT INTO audit_checkpoints (origin, size, root, time_us, note) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (origin, size) DO NOTHING RETURNING true
"""
_ROOT_AT = "SELECT root FROM audit_checkpoints WHERE origin = $1 AND size = $2"
_NOTE_EVENT = "UPDATE audit_checkpoints SET event_id = $3 WHERE origin = $1 AND size = $2"

# A witness that signs the same again, later, has said nothing new: the first line stays.
_ADD_COSIGNATURES = """
INSERT INTO audit_cosignatures (origin, size, witness, line)
SELECT $1, $2, witness, line FROM unnest($3::text[], $4::text[]) AS given (witness, line)
ON CONFLICT DO NOTHING
"""

Database = Connection | Pool


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it stands there: nothing parsed, nothing believed. `lines` are those of witnesses."""

    origin: str
    size: int
    root: bytes
    time_us: int
    note: str
    event_id: str | None
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint that was kept, with its cosignatures; when it was signed, and the event that published it."""

    checkpoint: Checkpoint
    time_us: int
    event_id: str | None


async def generation(con: Database) -> int:
    """1, and one more for every loss that was accepted."""
    return 1 + int(await con.fetchval(_LAST_LOSS))


async def origin(con: Database, pubkey: str) -> str:
    """The name that the log of the relay with this key (hex) has now."""
    return note.origin_of(pubkey, await generation(con))


async def all_origins(con: Database) -> list[str]:
    """Every name that there is a checkpoint of, oldest first."""
    return [row["origin"] for row in await con.fetch(_ORIGINS)]


async def newest(con: Database, origin: str) -> Stored | None:
    """The one that covers most.

    Raises:
        NoteError: its row is not what was written there.
    """
    return _maybe(await con.fetchrow(_NEWEST, origin))


async def at(con: Database, origin: str, size: int) -> Stored | None:
    """The one that covers exactly `size` entries. Raises as `newest`."""
    return _maybe(await con.fetchrow(_AT, origin, size))


async def listed(con: Database, origin: str, after_size: int, rows_max: int) -> list[Stored]:
    """Those of more than `after_size` entries (-1 for all), smallest first, at most `rows_max`. Raises as `newest`."""
    return [stored(row) for row in await rows(con, origin, after_size, rows_max)]


async def rows(con: Database, origin: str, after_size: int, rows_max: int) -> list[Row]:
    """As `listed`, whatever stands there: for verifying."""
    return [_row(row) for row in await con.fetch(_LISTED, origin, after_size, rows_max)]


def stored(row: Row) -> Stored:
    """What `row` holds.

    Raises:
        NoteError: the note or a line of a witness is not one, or the note says something else than the row.
    """
    checkpoint = note.parse(row.note)
    if (checkpoint.origin, checkpoint.size, checkpoint.root) != (row.origin, row.size, row.root):
        raise NoteError(
            f"the row of checkpoint {row.size} of {row.origin} in audit_checkpoints does not say what its note says"
        )
    return Stored(checkpoint.with_lines(row.lines), row.time_us, row.event_id)


async def insert(con: Database, checkpoint: Checkpoint, time_us: int) -> bool:
    """Keep a checkpoint as it was signed; False if the same was there already (from another node, or an earlier try).

    Raises:
        HeadMismatch: there is another one for that size.
        PostgresError: the server's refusal.
    """
    assert len(checkpoint.signatures) == 1, "as the relay signed it; cosignatures have a table of their own"
    where = checkpoint.origin, checkpoint.size
    if await con.fetchval(_INSERT, *where, checkpoint.root, time_us, checkpoint.note):
        return True
    root = await con.fetchval(_ROOT_AT, *where)
    if root != checkpoint.root:
        raise HeadMismatch(
            f"audit_checkpoints has another checkpoint of {checkpoint.origin} at {checkpoint.size} entries: its root "
            f"is {root.hex() if root else 'gone'}, that of the log {checkpoint.root.hex()}"
        )
    return False


async def note_event(con: Database, origin: str, size: int, event_id: str) -> None:
    """Remember by which event (hex id) a checkpoint was published."""
    await con.execute(_NOTE_EVENT, origin, size, event_id)


async def add_cosignatures(con: Database, origin: str, size: int, lines: Iterable[tuple[str, str]]) -> None:
    """Keep what witnesses signed for a checkpoint that is there: (name of the witness, its line), verified by whoever
    calls. The first line of a witness stays."""
    found = list(lines)
    if found:
        await con.execute(_ADD_COSIGNATURES, origin, size, [each[0] for each in found], [each[1] for each in found])


def _maybe(row: Any) -> Stored | None:
    return None if row is None else stored(_row(row))


def _row(row: Any) -> Row:
    return Row(
        row["origin"], row["size"], row["root"], row["time_us"], row["note"], row["event_id"], tuple(row["lines"])
    )
