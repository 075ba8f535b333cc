"""The spool: where an entry that has no transaction of its own is durable while the database is away.

In: entries of `Ingest.record` that the store has failed, and the last counts of refusals of a relay that stops with a
stuck database. Out: rows of the outbox, as soon as the database is back: at the next start, before anything is chained,
or in the same run. The file itself is `relay.audit.spool_file`; each call to it runs in a thread, with a deadline.

A replay is idempotent: an entry that is in the outbox or the log already is passed over, and the file goes only when
the commit is known. So a crash at any point, or a commit of which nobody heard, costs nothing but another replay.

No task of its own: whoever appends or replays waits, and says when to try again.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple, Unpack

import structlog
import trio

from relay import metrics
from relay.asyncpg_trio import Connection
from relay.audit import outbox, spool_file
from relay.audit.entry import Action, Entry, new_entry
from relay.audit.spool_file import BYTES_MAX, Aside, Contents, SpoolError, count
from relay.config import Settings

__all__ = ["Replayed", "Spool", "SpoolError", "count", "place"]

FILE_NAME = "audit-spool.jsonl"
# What a caller waits for the disk. One that takes longer is as good as none, and a login should say so.
DISK_SECONDS = 2.0
CHUNK_ENTRIES = 500

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What replays have done: entries put into the outbox, entries that were there or in the log already, records that
    could not be read."""

    added: int = 0
    known: int = 0
    damaged: int = 0

    def __add__(self, other: Replayed) -> Replayed:
        return Replayed(self.added + other.added, self.known + other.known, self.damaged + other.damaged)


def place(settings: Settings, data_dir: Path) -> Path:
    """Where this relay spools."""
    return settings.audit_spool_file or data_dir / FILE_NAME


class Spool:
    """See the module. `now_us`: microseconds since 1970. One object a process; calls may overlap."""

    def __init__(
        self,
        path: Path,
        now_us: Callable[[], int],
        *,
        bytes_max: int = BYTES_MAX,
        disk_seconds: float = DISK_SECONDS,
    ) -> None:
        self.path = path
        self._now_us = now_us
        self._bytes_max = bytes_max
        self._disk_seconds = disk_seconds
        # One thread at a time: behind one that hangs in the kernel, and was abandoned, nobody starts another.
        self._thread = trio.CapacityLimiter(1)
        self._pending = False
        self._replaying = trio.Lock()
        # At most one, and one that a thread brought too late for whoever had asked. Touched in that one thread only.
        self._asides: list[Aside] = []

    @property
    def pending(self) -> bool:
        """Whether this process has put something there that it has not replayed."""
        return self._pending

    async def append(self, entries: Sequence[Entry]) -> None:
        """Makes entries durable, in their order.

        Raises:
            SpoolError: they are not, or nobody knows: the disk did not answer in time, is full, or failed.

        Cancellation: as SpoolError; a write that had begun goes on in its thread.
        """
        if not entries:
            return
        # Before the outcome is known: what is written after its deadline must be replayed as well.
        self._pending = True
        records = spool_file.encode(entries)
        await self._in_thread(self._append, records)
        metrics.AUDIT_SPOOLED.inc(len(entries))
        _log.warning("audit entries are in the spool, the database did not take them", entries=len(entries))

    async def replay(self, con: Connection) -> Replayed:
        """Moves all that the spool holds into the outbox, in transactions of its own on `con`.

        Raises:
            SpoolError: the file could not be read, or not be removed.
            What the database raises: the file stays, and the next replay does what is left to do.

        Cancellation: as an error of the database.
        """
        total = Replayed()
        # The first may be one that an earlier replay had set aside, the second is what came since.
        for _ in range(2):
            self._pending = False
            try:
                async with self._set_aside() as aside:
                    if aside is None:
                        break
                    total += await self._replay(con, aside)
            except BaseException:
                self._pending = True
                raise
        return total

    async def _replay(self, con: Connection, aside: Aside) -> Replayed:
        contents = await self._in_thread(aside.read)
        time_us = self._now_us()
        notes = [self._damage(contents, time_us)] if contents.damaged else []
        added = await _store(con, [*contents.entries, *notes])
        if contents.damaged:
            kept = await self._in_thread(aside.keep_damaged, time_us)
            _log.error("the audit spool was damaged and is kept", records=contents.damaged, file=str(kept))
        else:
            await self._in_thread(aside.remove)
        metrics.AUDIT_REPLAYED.inc(added)
        known = len(contents.entries) + len(notes) - added
        _log.info("replayed the audit spool", added=added, known=known, torn=contents.torn)
        return Replayed(added, known, contents.damaged)

    def _damage(self, contents: Contents, time_us: int) -> Entry:
        """What the log says of it. Named by the file's digest: the same damage is told of once."""
        return new_entry(
            Action.SETTINGS_CHANGED,
            time_us=time_us,
            uuid=str(uuid.UUID(bytes=contents.digest[:16], version=4)),
            metadata={
                "what": "audit spool damaged",
                "records_damaged": contents.damaged,
                "records_replayed": len(contents.entries),
                "sha256": contents.digest.hex(),
            },
        )

    @asynccontextmanager
    async def _set_aside(self) -> AsyncIterator[Aside | None]:
        async with self._replaying:
            try:
                yield await self._in_thread(self._lock_aside)
            finally:
                # In the thread, behind whatever still uses the descriptor; if that hangs, the next call comes to it.
                with trio.CancelScope(shield=True), suppress(SpoolError):
                    await self._in_thread(self._close_asides)

    def _append(self, records: bytes) -> None:
        spool_file.append(self.path, records, bytes_max=self._bytes_max, wait_seconds=self._disk_seconds / 2)

    def _lock_aside(self) -> Aside | None:
        self._close_asides()
        aside = spool_file.set_aside(self.path, wait_seconds=self._disk_seconds / 2)
        if aside is not None:
            self._asides.append(aside)
        return aside

    def _close_asides(self) -> None:
        while self._asides:
            self._asides.pop().close()

    async def _in_thread(self, function: Callable[[Unpack[_Args]], _Result], *args: *_Args) -> _Result:
        try:
            with trio.fail_after(self._disk_seconds):
                return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=self._thread)
        except trio.TooSlowError:
            raise SpoolError(f"the audit spool {self.path}: the disk did not answer in time") from None
        except OSError as error:
            raise SpoolError(f"the audit spool {self.path} cannot be used: {error}") from error


async def _store(con: Connection, entries: Sequence[Entry]) -> int:
    """One transaction for all: the file goes as a whole."""
    added = 0
    async with con.transaction(isolation="read_committed"):
        for start in range(0, len(entries), CHUNK_ENTRIES):
            added += await outbox.insert_missing(con, entries[start : start + CHUNK_ENTRIES])
    return added
