"""Applies the numbered SQL files of `relay/store/migrations`, each once, in order.

An advisory lock lets several nodes start at the same time. The checksum of every applied file is kept: a file that was
edited after it ran would make two databases of the same version differ, so the start is refused instead.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

import structlog

from relay.asyncpg_trio import Connection
from relay.errors import MigrationError

LOCK_KEY = 0x72656C61794D6967  # "relayMig"

log = structlog.get_logger()

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number     int PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file of this version."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """What is known of one number: `state` is applied, pending, changed or unknown (newer than this version)."""

    number: int
    name: str
    state: str
    applied_at: str | None


def migrations() -> list[Migration]:
    """The files of this version by number.

    Raises:
        MigrationError: Two files have one number, or a number is missing.
    """
    found = [
        Migration(int(match[1]), match[2], entry.read_text("utf-8"))
        for entry in files("relay.store").joinpath("migrations").iterdir()
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name))
    ]
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise MigrationError("the migration files are not numbered 1 to n")
    return found


async def status(con: Connection) -> list[MigrationStatus]:
    """Every migration that this version or the database knows. Writes nothing."""
    known = {migration.number: migration for migration in migrations()}
    applied = {}
    if await con.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL"):
        rows = await con.fetch("SELECT number, name, checksum, applied_at::text FROM schema_migrations ORDER BY number")
        applied = {row["number"]: row for row in rows}
    result = []
    for number in sorted(known.keys() | applied.keys()):
        migration, row = known.get(number), applied.get(number)
        if row is None:
            state = "pending"
        elif migration is None:
            state = "unknown"
        else:
            state = "applied" if row["checksum"] == migration.checksum else "changed"
        name = migration.name if migration is not None else row["name"] if row is not None else ""
        result.append(MigrationStatus(number, name, state, row["applied_at"] if row is not None else None))
    return result


async def up(con: Connection) -> list[str]:
    """Applies what is pending, each file in a transaction of its own, and returns the names applied.

    Raises:
        MigrationError: An applied file was changed, or the database is newer than this version, or not in UTF8; nothing
            is applied.
    """
    if (encoding := await con.fetchval("SHOW server_encoding")) != "UTF8":
        # Events hold any character; in another encoding some of them would be refused long after the start.
        raise MigrationError(
            f"the database is encoded in {encoding}: create it with ENCODING 'UTF8' TEMPLATE template0"
        )
    await con.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
    try:
        await con.execute(_TABLE)
        found = await status(con)
        for entry in found:
            if entry.state == "changed":
                raise MigrationError(f"migration {entry.number:04} {entry.name} was changed after it was applied")
            if entry.state == "unknown":
                raise MigrationError(
                    f"the database has migration {entry.number:04} {entry.name}, which this version does not know: "
                    "start the newer version of the relay"
                )
        pending = {entry.number for entry in found if entry.state == "pending"}
        applied = []
        for migration in migrations():
            if migration.number in pending:
                await _apply(con, migration)
                applied.append(f"{migration.number:04}_{migration.name}")
        return applied
    finally:
        if not con.is_closed():
            await con.execute("SELECT pg_advisory_unlock($1)", LOCK_KEY)


async def _apply(con: Connection, migration: Migration) -> None:
    async with con.transaction():
        await con.execute(migration.sql)
        await con.execute(
            "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
            migration.number,
            migration.name,
            migration.checksum,
        )
    log.info("migration applied", number=migration.number, name=migration.name)
