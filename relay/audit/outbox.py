"""The outbox: where an entry is durable before it is in the chain.

In: entries, inside the transaction of the action they tell of. The worker takes them out again (`log.chain_batch`).
Every function here works on the caller's connection and in the caller's transaction, if it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.asyncpg_trio import Connection
from relay.audit.entry import Entry, columns

COLUMNS = "uuid, time_us, action, actor, event_id, kind, channel_id, metadata"
"""In the order of `entry.columns`, for whoever writes entries in a statement of its own."""

_INSERT = f"""
INSERT INTO audit_outbox ({COLUMNS})
-- WITH ORDINALITY and ORDER BY: ids are given in the order of the caller's list, and ids are the order of the chain.
SELECT {COLUMNS}
FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::int[], $7::uuid[], $8::text[])
    WITH ORDINALITY AS entry ({COLUMNS}, place)
ORDER BY place
"""

# Of an outbox row that a worker is just chaining we may see neither the row nor its place in the log: then it is
# written again, and the worker, which looks for that, drops it.
_INSERT_MISSING = _INSERT.replace(
    "ORDER BY place",
    "WHERE NOT EXISTS (SELECT FROM audit_log WHERE audit_log.uuid = entry.uuid)\n"
    "ORDER BY place ON CONFLICT (uuid) DO NOTHING",
)

_OLDEST = """
SELECT id, greatest(extract(epoch FROM clock_timestamp()) - time_us / 1e6, 0)::float8 AS age_seconds
FROM audit_outbox ORDER BY id LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Oldest:
    """The row that is chained next: its id, and seconds since its admission by the database's clock."""

    id: int
    age_seconds: float


async def insert(con: Connection, entries: Sequence[Entry]) -> None:
    """Write `entries` in one statement, in their order.

    To be called inside the transaction of the action itself, whatever that is: that is the whole point. After the
    commit the entries are handed to the worker (`worker.Producer.send`).

    Raises:
        PostgresError: the database's refusal, a uuid used twice among them.
    """
    if not entries:
        return
    await con.execute(_INSERT, *columns(entries))


async def insert_missing(con: Connection, entries: Sequence[Entry]) -> int:
    """As `insert`, but passes over what is in the outbox or the log by its uuid; returns how many were written."""
    if not entries:
        return 0
    tag = await con.execute(_INSERT_MISSING, *columns(entries))
    return int(tag.rpartition(" ")[2])


async def count(con: Connection) -> int:
    """How many entries wait to be chained."""
    return int(await con.fetchval("SELECT count(*) FROM audit_outbox"))


async def oldest(con: Connection) -> Oldest | None:
    """The entry that is chained next; None when the outbox is empty."""
    row = await con.fetchrow(_OLDEST)
    return None if row is None else Oldest(row["id"], row["age_seconds"])


async def oldest_age_seconds(con: Connection) -> float:
    """Seconds that the next entry to be chained has waited; 0.0 when none waits. For readiness."""
    found = await oldest(con)
    return 0.0 if found is None else found.age_seconds
