"""Taking over the original's audit log: from its database or from a file, into an empty log of ours.

In: batches of rows (`rows_of_database`, `rows_of_file`). Out: a `Report`, and with `take_over` the rows in `audit_log`,
all of them or none: one transaction, in which every row was verified as `relay audit verify` will verify it again. The
next entries, ours, stand on the last of them.

The first of those says that the import was made, how many rows it had, and where they end.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, BinaryIO
from uuid import uuid4

import trio

from relay.asyncpg_trio import Connection, PostgresError
from relay.asyncpg_trio.errors import sqlstate_class
from relay.audit import log, outbox
from relay.audit.chain import GENESIS, ChainedEntry, Head
from relay.audit.entry import Action, columns, new_entry
from relay.audit.original import Converted, OriginalRow, convert, from_json, from_record
from relay.audit.walk import Fault, Walk
from relay.errors import AuditError

# Searching the lost digits of a batch takes a tenth of a second.
BATCH_ROWS = 500
LINE_BYTES_MAX = 16 * 1024 * 1024

_SELECT = """
SELECT seq, timestamp, event_id, event_kind, actor_pubkey, action, channel_id, metadata::text AS metadata,
       prev_hash, hash
FROM audit_log WHERE $1::bigint IS NULL OR seq > $1 ORDER BY seq LIMIT $2
"""

_IN_USE = """
SELECT EXISTS (SELECT FROM audit_log) AS rows, EXISTS (SELECT FROM audit_checkpoints WHERE size > 0) AS checkpoints
"""

_INSERT = """
INSERT INTO audit_log (seq, uuid, time_us, action, actor, event_id, kind, channel_id, metadata,
                       version, prev_hash, hash, v1_time)
SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::int[],
                     $8::uuid[], $9::text[], $10::smallint[], $11::bytea[], $12::bytea[], $13::text[])
"""

Batches = AsyncGenerator[Sequence[OriginalRow], None]


class NotImported(AuditError):
    """The rows do not verify, so nothing was written. `report` says where."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"the log of the original does not verify, nothing was imported: {report.faults[0]}")
        self.report = report


@dataclass(frozen=True, slots=True)
class Report:
    """`nanoseconds` of the `rows` verify only with digits that the original hashed and did not keep."""

    rows: int
    nanoseconds: int
    head: Head
    faults: tuple[Fault, ...]
    faults_total: int

    @property
    def ok(self) -> bool:
        return self.faults_total == 0

    def summary(self) -> str:
        """For people."""
        verdict = "every one verifies" if self.ok else f"{self.faults_total} faults"
        lines = [
            f"{self.rows} entries of the original: {verdict}",
            f"{self.nanoseconds} of them by the nanoseconds that the original had hashed and not kept",
            f"head: seq {self.head.seq}, {self.head.hash.hex()}",
        ]
        lines += [str(fault) for fault in self.faults]
        if self.faults_total > len(self.faults):
            lines.append(f"... and {self.faults_total - len(self.faults)} more")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "ok": self.ok,
            "rows": self.rows,
            "nanoseconds": self.nanoseconds,
            "head_seq": self.head.seq,
            "head_hash": self.head.hash.hex(),
            "faults_total": self.faults_total,
            "faults": [{"kind": fault.kind, "seq": fault.seq, "detail": fault.detail} for fault in self.faults],
        }


class _Course:
    """What was seen so far: the same walk as that of `relay audit verify`, and a count."""

    def __init__(self) -> None:
        self._walk = Walk(GENESIS)
        self._nanoseconds = 0

    async def convert(self, batch: Iterable[OriginalRow]) -> list[ChainedEntry]:
        found: list[Converted] = []
        for source in batch:
            found.append(convert(source))
            if len(found) % 16 == 0:  # 8 ms at most
                await trio.lowlevel.checkpoint()
        rows = [each.row for each in found]
        self._walk.feed(rows)
        self._nanoseconds += sum(each.nanoseconds for each in found)
        return rows

    def report(self) -> Report:
        walk = self._walk
        return Report(walk.rows, self._nanoseconds, walk.head, tuple(walk.faults), walk.faults_total)


async def check(batches: Batches) -> Report:
    """Verify the original's rows and write nothing. Raises as the batches do, which are closed in any case;
    cancellation at any time."""
    course = _Course()
    async with aclosing(batches):
        async for batch in batches:
            await course.convert(batch)
    return course.report()


async def take_over(con: Connection, batches: Batches) -> Report:
    """Write the original's rows into the empty log of `con`'s database: one transaction, under the writers' lock. The
    batches are closed in any case.

    Raises:
        AuditError: the log is not empty, or there is nothing to import.
        NotImported: a row does not verify.
    Cancellation: at any time; then nothing was written.
    """
    async with aclosing(batches), con.transaction(isolation="read_committed"):
        await con.execute(f"SELECT pg_advisory_xact_lock({log.ADVISORY_LOCK})")
        await _demand_empty(con)
        course = _Course()
        async for batch in batches:
            rows = await course.convert(batch)
            if not course.report().ok:
                raise NotImported(course.report())
            await _insert(con, rows)
        report = course.report()
        if report.rows == 0:
            raise AuditError("the original's log is empty: there is nothing to import")
        await outbox.insert(con, [_told(report)])
    return report


async def _demand_empty(con: Connection) -> None:
    found = await con.fetchrow(_IN_USE)
    assert found is not None
    if found["rows"]:
        raise AuditError(
            "this relay's audit log has entries already, and a chain has one beginning. Import into a new database, "
            "before the relay starts on it for the first time."
        )
    if found["checkpoints"]:
        raise AuditError("this relay's audit log is empty but has signed checkpoints: it was cut off. See the manual.")


async def _insert(con: Connection, rows: Sequence[ChainedEntry]) -> None:
    await con.execute(
        _INSERT,
        [row.seq for row in rows],
        *columns([row.entry for row in rows]),
        [row.version for row in rows],
        [row.prev_hash for row in rows],
        [row.hash for row in rows],
        [row.v1_time for row in rows],
    )


def _told(report: Report) -> Any:
    metadata = {
        "what": "imported the audit log of the original",
        "rows": report.rows,
        "nanoseconds": report.nanoseconds,
        "head": report.head.hash.hex(),
        "by": "command line",
    }
    time_us = time.time_ns() // 1000
    return new_entry(Action.SETTINGS_CHANGED, time_us=time_us, uuid=str(uuid4()), metadata=metadata)


# -- where the rows come from ------------------------------------------------------------------------------------------


async def rows_of_database(con: Connection) -> Batches:
    """The rows of the original's database, as they are at one moment.

    Raises:
        AuditError: this is no database of the original, or a row of it cannot be read.
    """
    after: int | None = None
    try:
        async with con.transaction(isolation="repeatable_read", readonly=True):
            while records := await con.fetch(_SELECT, after, BATCH_ROWS):
                yield [from_record(record) for record in records]
                after = records[-1]["seq"]
    except PostgresError as error:
        # No such table or column, or no right to read it.
        if sqlstate_class(error) != "42":
            raise
        raise AuditError(f"this is not a database of the original, or not open to this user: {error}") from None


async def rows_of_file(file: BinaryIO) -> Batches:
    """The rows of a file with one JSON object a line. Raises AuditError, with the number of the line."""
    number, batch = 0, list[OriginalRow]()
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise AuditError(f"line {number} is longer than any that the original could have made")
        if line.isspace():
            continue
        try:
            batch.append(from_json(line))
        except AuditError as error:
            raise AuditError(f"line {number}: {error}") from None
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
