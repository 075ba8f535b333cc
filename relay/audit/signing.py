"""Signing the next checkpoint: what is read, what is compared, and what is kept, before and after the signature.

In: a connection and the relay's key. Out: the newest checkpoint of the log, made now if there was something new. The
task that decides when is in relay/audit/checkpointer.py; the command `relay audit checkpoint --make` uses the same.

Theory
------
The relay must never sign two logs. So it does not sign what the table of stored nodes says, nor what the log looks
like now: it takes up the tree at its last checkpoint, whose root it has signed, appends the rows that came since, and
signs what that gives. The new log then continues the old one by construction. Where the rows do not lead to the root
that was signed, or not to what this process remembers to have written (`Memory`), nothing is signed.

One node at a time: a session lock that is only tried. Whoever does not get it comes again later.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from relay.asyncpg_trio import Connection
from relay.asyncpg_trio.errors import ConnectionLost, PostgresError
from relay.audit import checkpoints, log, note, tree_store
from relay.audit.checkpoints import Stored
from relay.audit.log import Batch
from relay.audit.note import Checkpoint
from relay.audit.tree import Frontier, leaf_hash, verify_inclusion
from relay.errors import ChainTruncated, HeadMismatch, StoreBusy
from relay.nostr.keys import SecretKey
from relay.nostr.kinds import AUDIT_CHECKPOINT
from relay.store.own_connection import OwnConnection

# "relaysig" in ASCII: nobody who chains waits for whoever signs.
ADVISORY_LOCK = 0x72656C6179736967
_UNLOCK_SECONDS = 0.5

_TRY_LOCK = f"SELECT pg_try_advisory_lock({ADVISORY_LOCK})"
_UNLOCK = f"SELECT pg_advisory_unlock({ADVISORY_LOCK})"

# Publishing a checkpoint makes an entry of its own, and that entry shall not call for the next checkpoint: an idle
# relay would sign for ever.
_NEWS = """
SELECT EXISTS (
    SELECT FROM audit_log
    WHERE seq > $1 AND seq <= $2
    AND NOT (action = 'event_created' AND kind IS NOT DISTINCT FROM $3 AND actor IS NOT DISTINCT FROM $4)
)
"""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest checkpoint, the tree that it stands for, and whether it was signed just now."""

    stored: Stored
    frontier: Frontier
    made: bool

    @property
    def checkpoint(self) -> Checkpoint:
        return self.stored.checkpoint


class Memory:
    """What this process knows to be in the log, as a tree: the last checkpoint and the batches that it chained since.

    It is what makes a row that was changed between its writing and its signing show, and what is signed at the end when
    the database does not answer any more. Other nodes' batches are not seen here: then it knows nothing until the next
    checkpoint.
    """

    def __init__(self) -> None:
        self._tree: Frontier | None = None

    @property
    def size(self) -> int:
        """How many entries it covers; -1 where it knows nothing."""
        return -1 if self._tree is None else self._tree.size

    def chained(self, batch: Batch) -> None:
        """A batch was committed."""
        if self._tree is None:
            return
        if self._tree.size != batch.prev.seq or len(batch.hashes) != batch.head.seq - batch.prev.seq:
            self._tree = None
            return
        for digest in batch.hashes:
            self._tree.append(digest)

    def signed(self, frontier: Frontier) -> None:
        """The log was read, up to here."""
        if self._tree is None or self._tree.size < frontier.size:
            self._tree = copy_of(frontier)

    def snapshot(self) -> Frontier | None:
        return None if self._tree is None else copy_of(self._tree)


class Ledger(Protocol):
    """Where checkpoints are made and kept; the real one is a database."""

    async def sign_next(self, memory: Memory) -> Latest | None:
        """The newest checkpoint, after signing what is new; None for a log without entries.

        Raises:
            AuditError: the log is not what was signed, or not what `memory` knows: nothing was signed.
            STORE_FAILURES, OSError: it could not be asked, or another node is at it; calling again is always right.
        """

    async def note_event(self, checkpoint: Checkpoint, event_id: str) -> None:
        """Remember by which event it was published. Raises as `sign_next`, but for AuditError."""

    def abort(self) -> None:
        """Drop the connection, without a farewell to the server."""


class DatabaseLedger:
    """The ledger that is a database, over a connection of its own. Its calls do not overlap."""

    def __init__(self, own: OwnConnection, key: SecretKey, now_us: Callable[[], int]) -> None:
        self._own = own
        self._key = key
        self._now_us = now_us
        self._frontier: Frontier | None = None  # of the last checkpoint: spares reading it again

    async def sign_next(self, memory: Memory) -> Latest | None:
        known = memory.snapshot()
        con = await self._own.get()
        found = await sign_next(con, self._key, self._now_us, last_frontier=self._frontier, known=known)
        self._frontier = None if found is None else found.frontier
        return found

    async def note_event(self, checkpoint: Checkpoint, event_id: str) -> None:
        await checkpoints.note_event(await self._own.get(), checkpoint.origin, checkpoint.size, event_id)

    def abort(self) -> None:
        self._own.close()


async def sign_next(
    con: Connection,
    key: SecretKey,
    now_us: Callable[[], int],
    *,
    last_frontier: Frontier | None = None,
    known: Frontier | None = None,
) -> Latest | None:
    """Sign what is new in the log, store its nodes and the checkpoint, and return the newest checkpoint there is; None
    for an empty log.

    Args:
        last_frontier: The tree at the last checkpoint, if the caller has it from the last call; compared all the same.
        known: What must be in the log, if the caller knows of anything. Not more than what is committed.

    Raises:
        ChainTruncated, HeadMismatch: the log is not what was signed, or not what is known. Nothing was signed.
        StoreBusy: another node signs at this moment.
        PostgresError, ConnectionLost: nobody knows how far it came; calling again is always right.
    Cancellation: at any time, as if it had failed there.
    """
    async with _turn(con):
        origin = await checkpoints.origin(con, key.public_hex)
        last = await checkpoints.newest(con, origin)
        frontier = await _take_up(con, origin, last, key.public_hex, last_frontier)
        head = (await log.read_head(con)).seq
        demand_head(head, frontier.size, f"the checkpoint of {frontier.size} entries")
        demand_head(head, 0 if known is None else known.size, "what this relay has written")
        if last is not None and not await con.fetchval(_NEWS, frontier.size, head, AUDIT_CHECKPOINT, key.public_hex):
            return Latest(last, frontier, made=False)
        if head == 0:
            return None
        grown = copy_of(frontier)
        await _compare(con, grown, known)
        await tree_store.extend(con, grown, head, store=True)
        await tree_store.fill(con, head)
        checkpoint, time_us = note.sign(origin, head, grown.root(), key), now_us()
        await checkpoints.insert(con, checkpoint, time_us)
        return Latest(Stored(checkpoint, time_us, None), grown, made=True)


async def tree_of(con: Connection, checkpoint: Checkpoint) -> Frontier:
    """The tree of the log at the size of `checkpoint`, which is that of the checkpoint.

    Stored nodes that do not lead there are made anew from the rows: whoever changed those alone has changed nothing.

    Raises:
        ChainTruncated: rows that it covers are missing.
        HeadMismatch: the rows lead to another root.
    """
    frontier = await tree_store.frontier_at(con, checkpoint.size)
    if frontier.root() == checkpoint.root and await _covers_last_row(con, checkpoint):
        return frontier
    await tree_store.clear(con)
    frontier = await tree_store.frontier_at(con, checkpoint.size)
    if frontier.root() != checkpoint.root:
        raise HeadMismatch(
            f"the first {checkpoint.size} entries of the audit log are not those that were signed: their root is "
            f"{frontier.root().hex()}, the checkpoint says {checkpoint.root.hex()}"
        )
    _log.error("the stored nodes of the audit tree did not fit the log and are made anew", size=checkpoint.size)
    return frontier


async def _covers_last_row(con: Connection, checkpoint: Checkpoint) -> bool:
    """At some sizes the tree comes from stored nodes alone, and rows that were all hashed anew would not be read."""
    size = checkpoint.size
    if size == 0:
        return True
    rows = await log.read_rows(con, size - 1, size, 1)
    path = await tree_store.inclusion_path(con, size, size)
    return bool(rows) and verify_inclusion(leaf_hash(rows[0].hash), size - 1, size, path, checkpoint.root)


def demand_head(head: int, size: int, who: str) -> None:
    """Raises ChainTruncated where the log ends before the entry `size`, which `who` knows of."""
    if head < size:
        raise ChainTruncated(f"the audit log ends at seq {head}, but {who} shows that it went on to seq {size}")


def copy_of(frontier: Frontier) -> Frontier:
    return Frontier(frontier.size, frontier.subtrees)


async def _take_up(con: Connection, origin: str, last: Stored | None, pubkey: str, known: Frontier | None) -> Frontier:
    if last is None:
        if await checkpoints.generation(con) > 1:
            raise HeadMismatch(f"a loss was accepted, but there is no checkpoint of {origin}: it was removed")
        return Frontier()
    if not note.is_signed_by(last.checkpoint, pubkey):
        raise HeadMismatch(
            f"the checkpoint of {last.checkpoint.size} entries in audit_checkpoints is not signed by the relay's key"
        )
    if known is not None and (known.size, known.root()) == (last.checkpoint.size, last.checkpoint.root):
        return known
    demand_head(
        (await log.read_head(con)).seq, last.checkpoint.size, f"the checkpoint of {last.checkpoint.size} entries"
    )
    return await tree_of(con, last.checkpoint)


async def _compare(con: Connection, grown: Frontier, known: Frontier | None) -> None:
    if known is None or known.size < grown.size:
        return
    await tree_store.extend(con, grown, known.size, store=True)
    if grown.root() != known.root():
        raise HeadMismatch(f"the first {known.size} entries of the audit log are not those that this relay has written")


@asynccontextmanager
async def _turn(con: Connection) -> AsyncIterator[None]:
    """This session signs. The lock ends with the session, if it cannot be given back."""
    if not await con.fetchval(_TRY_LOCK):
        raise StoreBusy("another node is signing a checkpoint")
    try:
        yield
    finally:
        if not con.is_closed():
            with trio.move_on_after(_UNLOCK_SECONDS, shield=True), suppress(PostgresError, ConnectionLost):
                await con.fetchval(_UNLOCK)
