# ruff: noqa: ARG001  # one signature for all statements
"""A PostgreSQL in memory for the statements that the way of an audit entry is made of, with a temper.

In: the relay's own statements, by identity of their text, through `Session`. Out: rows, errors, silence. It keeps what
matters here: transactions whose work is seen after their commit only, an advisory lock and row locks that are waited
for, ids of transactions and what became of them, unique columns, and a server that goes on with a COMMIT although the
client has gone. Time is Trio's, chance is the caller's dice, so a run can be repeated.

What it does not do: plans, other isolation levels than READ COMMITTED, statements that nobody sends here.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import trio

from relay.asyncpg_trio.errors import (
    ConnectFailed,
    ConnectionLost,
    DataError,
    LockNotAvailableError,
    QueryCanceledError,
    SerializationError,
    TooManyConnectionsError,
    UniqueViolationError,
)
from relay.audit import log, outbox, sink
from relay.audit.chain import ChainedEntry
from relay.audit.entry import Entry
from relay.ingest import batch
from relay.store import events, outcome
from scripts.simulations.mood import CALM, Mood

LOCK_SECONDS = log.LOCK_TIMEOUT_MS / 1000
STATEMENT_SECONDS = log.STATEMENT_TIMEOUT_MS / 1000
XID = "SELECT pg_current_xact_id()::text"
KNOWN = "SELECT encode(id, 'hex') FROM events WHERE id = ANY($1::bytea[])"
STATUS = "SELECT pg_xact_status($1::text::xid8)"


class Row(tuple[Any, ...]):  # noqa: SLOT001
    """As asyncpg's record: by place and by name."""

    names: tuple[str, ...]  # a tuple can have no slots beside its items

    def __new__(cls, **columns: Any) -> Self:
        row = super().__new__(cls, columns.values())
        row.names = tuple(columns)
        return row

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self.names.index(key) if isinstance(key, str) else key)


@dataclass(eq=False)
class Transaction:
    """`failed` after an error inside it: all that is left to it is ROLLBACK."""

    owner: str
    xid: int = 0
    entries: dict[int, Entry] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    rows: list[ChainedEntry] = field(default_factory=list)
    events: set[str] = field(default_factory=set)
    failed: bool = False
    locks: bool = False
    ended: trio.Event = field(default_factory=trio.Event)


class Server:
    """What all nodes share. `nursery` is for what the server does when the client has gone."""

    def __init__(self, dice: random.Random, nursery: trio.Nursery, mood: Mood = CALM) -> None:
        self.dice = dice
        self.mood = mood
        self.nursery = nursery
        self.outbox: dict[int, Entry] = {}
        self.log: list[ChainedEntry] = []
        self.writers: list[str] = []  # whose row of the log it is
        self.events: set[str] = set()
        self.entered: dict[str, str] = {}  # uuid -> owner, of every entry ever committed to the outbox
        self.held: dict[int, trio.Event] = {}  # rows that a stranger has locked
        self.commits: list[tuple[str, bool, bool]] = []  # owner, applied, answered: of batches
        self.frozen_until = 0.0
        self.down_until = 0.0
        self.crashes = 0
        self._sessions: set[Session] = set()
        self._open: set[Transaction] = set()
        self._lock: Transaction | None = None
        self._statuses: dict[int, str] = {}
        self._next_id = 1
        self._next_xid = 700

    # -- the operator, fate ------------------------------------------------------------------------------------------

    def freeze(self, seconds: float) -> None:
        """Nothing is answered for a while (SIGSTOP, a full disk, a switch that was unplugged)."""
        self.frozen_until = max(self.frozen_until, trio.current_time() + seconds)

    def crash(self, seconds: float) -> None:
        """kill -9, and a new start: sessions are gone, open transactions too, and ids not on the disk come again."""
        self.crashes += 1
        self.down_until = trio.current_time() + seconds
        self.frozen_until = 0.0
        for session in list(self._sessions):
            session.lose()
        for transaction in list(self._open):
            self.end(transaction, commit=False)
        kept = [xid for xid, status in self._statuses.items() if status == "committed"]
        if self.dice.random() < 0.5:
            self._next_xid = max(kept, default=699) + 1
            self._statuses = {xid: status for xid, status in self._statuses.items() if xid < self._next_xid}

    async def hold_row(self, seconds: float) -> None:
        """Some session locks the oldest outbox row and thinks."""
        if not self.outbox:
            return
        place = min(self.outbox)
        if place not in self.held:
            self.held[place] = trio.Event()
            await trio.sleep(seconds)
            self.held.pop(place).set()

    def commit_entries(self, entries: Sequence[Entry], owner: str) -> None:
        """Another node's transaction, whole."""
        transaction = self.begin(owner)
        self.insert_entries(transaction, entries)
        self.end(transaction, commit=True)

    # -- transactions ------------------------------------------------------------------------------------------------

    def begin(self, owner: str) -> Transaction:
        transaction = Transaction(owner)
        self._open.add(transaction)
        return transaction

    def end(self, transaction: Transaction, *, commit: bool) -> None:
        """Make its work seen, or forget it; whoever waits for its locks goes on. Once."""
        if transaction not in self._open:
            return
        self._open.discard(transaction)
        assert not (commit and transaction.failed)
        if commit:
            self.outbox |= transaction.entries
            self.entered |= {entry.uuid: transaction.owner for entry in transaction.entries.values()}
            for place in transaction.taken:
                del self.outbox[place]
            self.log += transaction.rows
            self.writers += [transaction.owner] * len(transaction.rows)
            self.events |= transaction.events
        if transaction.xid:
            self._statuses[transaction.xid] = "committed" if commit else "aborted"
        if self._lock is transaction:
            self._lock = None
        transaction.ended.set()

    def xid(self, transaction: Transaction) -> int:
        if not transaction.xid:
            transaction.xid = self._next_xid
            self._statuses[transaction.xid] = "in progress"
            self._next_xid += 1
        return transaction.xid

    def status(self, xid: int) -> str:
        if xid >= self._next_xid:
            error = DataError("transaction ID is in the future")
            error.sqlstate = "22023"
            raise error
        return self._statuses[xid]

    def is_past(self, xid: int) -> bool:
        """Below the snapshot's xmax: one more than the last that has ended."""
        ended = [each for each, status in self._statuses.items() if status != "in progress"]
        return xid <= max(ended, default=0)

    def insert_entries(self, transaction: Transaction, entries: Sequence[Entry]) -> None:
        self.xid(transaction)
        here = {entry.uuid for seen in (self.outbox, *(one.entries for one in self._open)) for entry in seen.values()}
        for entry in entries:
            if entry.uuid in here:
                raise UniqueViolationError(f"audit_outbox: {entry.uuid}")
            here.add(entry.uuid)
            transaction.entries[self._next_id] = entry
            self._next_id += 1

    async def wait_for_writers(
        self, transaction: Transaction, written: Callable[[Transaction], set[str]], keys: Sequence[str]
    ) -> None:
        """As a unique index does: until nobody else is about to commit one of these keys."""
        while others := [one for one in self._open if one is not transaction and written(one) & set(keys)]:
            await others[0].ended.wait()

    async def lock(self, transaction: Transaction) -> None:
        """The advisory lock of the log, with the lock timeout that the statement sets."""
        transaction.locks = True
        if self._lock is transaction:
            return
        with trio.move_on_after(LOCK_SECONDS):
            while self._lock is not None:
                await self._lock.ended.wait()
            if transaction.ended.is_set():  # its client has gone while it stood in line
                raise ConnectionLost("the connection was lost")
            self._lock = transaction
            return
        raise LockNotAvailableError("canceling statement due to lock timeout")

    async def take(self, transaction: Transaction, rows_max: int, *, skip: bool) -> list[Row]:
        """DELETE ... RETURNING of the oldest rows; those that somebody holds are waited for, or passed over."""
        places = sorted(place for place in self.outbox if place not in transaction.taken)
        if skip:
            places = [place for place in places if not self.holders(transaction, place)]
        places = places[:rows_max]
        with trio.move_on_after(LOCK_SECONDS) as waiting:
            for place in places:
                while holders := self.holders(transaction, place):
                    await holders[0].wait()
        if waiting.cancelled_caught:
            raise LockNotAvailableError("canceling statement due to lock timeout")
        places = [place for place in places if place in self.outbox]
        transaction.taken |= set(places)
        xid = str(self.xid(transaction)) if places else ""
        known = {row.entry.uuid for row in (*self.log, *transaction.rows)}
        return [_taken(place, self.outbox[place], xid, known) for place in places]

    def holders(self, transaction: Transaction, place: int) -> list[trio.Event]:
        stranger = [self.held[place]] if place in self.held else []
        return stranger + [one.ended for one in self._open if one is not transaction and place in one.taken]

    async def insert_rows(self, transaction: Transaction, rows: Sequence[ChainedEntry]) -> None:
        """UNIQUE: seq, uuid and prev_hash, against what is committed and, after its end, what others are writing."""
        for other in [one for one in self._open if one is not transaction and one.rows]:
            await other.ended.wait()
        seqs, uuids, hashes = set(), set(), set()
        for row in (*self.log, *transaction.rows, *rows):
            if row.seq in seqs or row.entry.uuid in uuids or row.prev_hash in hashes:
                raise UniqueViolationError(f"audit_log: seq {row.seq}")
            seqs.add(row.seq)
            uuids.add(row.entry.uuid)
            hashes.add(row.prev_hash)
        transaction.rows += rows

    def connect(self, owner: str) -> Session:
        if trio.current_time() < self.down_until:
            raise ConnectFailed("connection refused")
        session = Session(self, owner)
        self._sessions.add(session)
        return session

    def written(self, owner: str) -> int:
        """How many rows of the log are this node's."""
        return self.writers.count(owner)

    def forget(self, session: Session) -> None:
        self._sessions.discard(session)


@dataclass(eq=False)
class Session:
    """One connection, as the server sees it. `gone` is set when the client has lost it."""

    server: Server
    owner: str
    gone: trio.Event = field(default_factory=trio.Event)
    transaction: Transaction | None = None
    committing: bool = False

    def lose(self) -> None:
        """The client has gone, or believes so. What it left open ends when the server notices."""
        if self.gone.is_set():
            return
        self.gone.set()
        self.server.forget(self)
        if self.transaction is not None:
            commit = self.committing and not self.transaction.failed and self.server.dice.random() < 0.5
            if self.committing and not self.transaction.failed:
                self._committed(self.transaction, commit, False)
            seconds = self.server.dice.choice([0.0, 0.01, 0.3, 1.5])
            self.server.nursery.start_soon(_end_later, self.server, self.transaction, commit, seconds)
            self.transaction = None

    async def command(self, text: str) -> str:
        """BEGIN, COMMIT, ROLLBACK and the lock."""
        verb = text.split()[0]
        if text == log._LOCK:
            await self._guarded(lambda transaction: self.server.lock(transaction))
            return "SELECT"
        if verb == "BEGIN":
            await self._weather()
            assert self.transaction is None
            self.transaction = self.server.begin(self.owner)
        elif verb == "COMMIT":
            return await self._commit()
        else:
            assert verb == "ROLLBACK", text
            if self.transaction is not None:  # before any weather: whatever is said, the server has begun to undo it
                self.server.end(self.transaction, commit=False)
                self.transaction = None
            await self._weather()
        return verb

    async def statement(self, text: str, args: Sequence[Any]) -> list[Row]:
        found: list[Row] = []

        async def run(transaction: Transaction) -> None:
            found.extend(await STATEMENTS[text](self.server, transaction, args))

        if self.transaction is None and text == batch._STORE:
            await self._alone(run)
        elif self.transaction is None:
            await self._weather()
            alone = self.server.begin(self.owner)  # reads only, outside of every transaction
            try:
                await run(alone)
            finally:
                self.server.end(alone, commit=False)
        else:
            await self._guarded(run)
        return found

    async def _alone(self, run: Callable[[Transaction], Awaitable[None]]) -> None:
        """A statement that is its own transaction: committed before it is answered."""
        self.transaction = self.server.begin(self.owner)
        try:
            await self._guarded(run)
            await self._commit()
        finally:
            if self.transaction is not None:  # an error, or a cancellation that came before the commit or after it
                commit = self.committing and not self.transaction.failed and self.server.dice.random() < 0.5
                self.server.end(self.transaction, commit=commit)
                self.transaction = None
            self.committing = False

    async def _guarded(self, act: Callable[[Transaction], Awaitable[None]]) -> None:
        """An error, or a cancelled statement, fails the transaction."""
        transaction = self.transaction
        assert transaction is not None, "outside of a transaction"
        assert not transaction.failed, "current transaction is aborted"
        transaction.failed = True
        await self._weather()
        seconds = STATEMENT_SECONDS if transaction.locks else 60.0
        with trio.move_on_after(seconds):
            await act(transaction)
            if self.gone.is_set():
                raise ConnectionLost("the connection was lost")
            transaction.failed = False
            return
        raise QueryCanceledError("canceling statement due to statement timeout")

    async def _commit(self) -> str:
        server, transaction = self.server, self.transaction
        assert transaction is not None
        if transaction.failed:
            self.transaction = None
            server.end(transaction, commit=False)
            return "ROLLBACK"
        if server.dice.random() < server.mood.refusal:
            self.transaction = None
            server.end(transaction, commit=False)
            raise SerializationError("could not serialize access")
        self.committing = True
        await self._weather(errors=False)
        if server.dice.random() < server.mood.doubt:
            self.lose()
            raise ConnectionLost("the connection was lost")
        self._committed(transaction, True, True)
        self.transaction, self.committing = None, False
        server.end(transaction, commit=True)
        return "COMMIT"

    def _committed(self, transaction: Transaction, applied: bool, answered: bool) -> None:
        if transaction.locks:
            self.server.commits.append((self.owner, applied, answered))

    async def _weather(self, *, errors: bool = True) -> None:
        """What comes between a client and its answer."""
        server, mood = self.server, self.server.mood
        dice = server.dice.random()
        seconds = max(mood.latency_seconds * server.dice.random(), server.frozen_until - trio.current_time())
        if dice < mood.hang:
            seconds = max(seconds, mood.hang_seconds * server.dice.random())
        if seconds <= 0:
            await trio.lowlevel.checkpoint()
        else:
            with trio.move_on_after(seconds):
                await self.gone.wait()
        dice = server.dice.random()
        if dice < mood.lost:
            self.lose()
        if self.gone.is_set():
            raise ConnectionLost("the connection was lost")
        if errors and dice > 1 - mood.error:
            raise server.dice.choice([QueryCanceledError, TooManyConnectionsError, SerializationError])("temper")


async def _end_later(server: Server, transaction: Transaction, commit: bool, seconds: float) -> None:
    await trio.sleep(seconds)
    server.end(transaction, commit=commit)


def _taken(place: int, entry: Entry, xid: str, known: set[str]) -> Row:
    return Row(
        id=place, uuid=entry.uuid, time_us=entry.time_us, action=entry.action, actor=entry.actor,
        event_id=entry.event_id, kind=entry.kind, channel_id=entry.channel_id, metadata=entry.metadata,
        xid=xid, chained=entry.uuid in known,
    )  # fmt: skip


# -- the statements ----------------------------------------------------------------------------------------------------


async def _head(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    rows = [*server.log, *transaction.rows]
    return [Row(seq=rows[-1].seq, hash=rows[-1].hash)] if rows else []


async def _take(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    return await server.take(transaction, args[0], skip=False)


async def _take_unlocked(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    return await server.take(transaction, args[0], skip=True)


async def _held(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    places = [place for place in sorted(server.outbox) if place not in transaction.taken]
    return [Row(uuid=server.outbox[place].uuid) for place in places if server.holders(transaction, place)][: args[0]]


async def _chain(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    seqs, *columns, versions, prevs, hashes = args
    entries = [Entry(*fields) for fields in zip(*columns, strict=True)]
    rows = zip(seqs, entries, versions, prevs, hashes, strict=True)
    await server.insert_rows(transaction, [ChainedEntry(*row) for row in rows])
    return []


async def _write(server: Server, transaction: Transaction, entries: Sequence[Entry]) -> None:
    uuids = [entry.uuid for entry in entries]
    await server.wait_for_writers(transaction, lambda one: {entry.uuid for entry in one.entries.values()}, uuids)
    server.insert_entries(transaction, entries)


async def _enter(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    await _write(server, transaction, [Entry(*fields) for fields in zip(*args, strict=True)])
    return []


async def _enter_missing(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    await server.wait_for_writers(transaction, lambda one: {entry.uuid for entry in one.entries.values()}, args[0])
    there = {entry.uuid for entry in server.outbox.values()} | {row.entry.uuid for row in server.log}
    entries = [entry for fields in zip(*args, strict=True) if (entry := Entry(*fields)).uuid not in there]
    server.insert_entries(transaction, entries)
    return [Row(uuid=entry.uuid) for entry in entries]


async def _oldest(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    return [Row(id=min(server.outbox), age_seconds=0.0)] if server.outbox else []


async def _store(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    ids = [raw.hex() for raw in args[0]]
    await server.wait_for_writers(transaction, lambda one: one.events, ids)
    new = [event_id for event_id in ids if event_id not in server.events]
    transaction.events |= set(new)
    entries = [(Entry(*fields), stores) for *fields, stores in zip(*args[events.BATCH_ARGUMENTS :], strict=True)]
    told = [entry for entry, stores in entries if stores is None or stores.hex() in new]
    await _write(server, transaction, told)
    return [Row(ids=new or None, xid=str(server.xid(transaction)))]


async def _traces(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    there = [*server.outbox.values(), *(row.entry for row in server.log)]
    return [Row(id=entry.event_id, xmin=700, xmax=server._next_xid) for entry in there if entry.uuid in args[0]]


async def _known(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    return [Row(id=raw.hex()) for raw in args[0] if raw.hex() in server.events]


async def _xid(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    return [Row(xid=str(server.xid(transaction)))]


async def _status(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    return [Row(status=server.status(int(args[0])))]


async def _committed(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    xid = int(args[0])
    return [Row(kept=server.is_past(xid) and server.status(xid) == "committed")]


async def _trace(server: Server, transaction: Transaction, args: Sequence[Any]) -> list[Row]:
    return [Row(there=args[0] in server.entered)]


Run = Callable[[Server, Transaction, Sequence[Any]], Awaitable[list[Row]]]
STATEMENTS: dict[str, Run] = {
    log._HEAD: _head,
    log._TAKE: _take,
    log._TAKE_UNLOCKED: _take_unlocked,
    log._HELD: _held,
    log._INSERT: _chain,
    outbox._INSERT: _enter,
    outbox._INSERT_MISSING: _enter_missing,
    outbox._OLDEST: _oldest,
    batch._STORE: _store,
    batch._TRACES: _traces,
    KNOWN: _known,
    outcome._TRACE: _trace,
    sink._COMMITTED: _committed,
    XID: _xid,
    STATUS: _status,
}
