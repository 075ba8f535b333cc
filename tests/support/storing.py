"""Rows into the table of events by the statement of the commit task, without the task."""

from __future__ import annotations

from collections.abc import Sequence

from relay.asyncpg_trio import Connection
from relay.audit.entry import columns
from relay.ingest import batch
from relay.store.events import Row, batch_arguments


async def insert_batch(con: Connection, rows: Sequence[Row]) -> tuple[set[str], int]:
    """The ids that are new, and the transaction's xid8."""
    found = await con.fetchrow(batch._STORE, *batch_arguments(rows), *columns([]), [])
    assert found is not None
    return set(found[0] or ()), int(found[1])
