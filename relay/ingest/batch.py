"""A batch in the database: plain events, their mentions and their audit entries, stored together or not at all.

Where nothing else has to happen with them, that is one statement, and the statement is the transaction: one round trip
and one wake-up of the server instead of four. Replies change the counters of their threads and events of an ephemeral
channel its deadline; a batch with such events has a BEGIN and a COMMIT around it.

A connection may be lost when the statement is on its way, and then nobody knows what became of it. It is sent again,
and the answer comes from the database: the second one waits at the ids of the first until that has ended, stores what
is not there, and the entries, which are looked up by their uuids, tell which events were stored by the first. Nothing
depends on what a server that crashed remembers of its transactions, nor on whether the first one has even begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from relay.asyncpg_trio import Connection
from relay.asyncpg_trio.errors import CommitOutcomeUnknown, ConnectionLost, PostgresError
from relay.audit import outbox
from relay.audit.entry import Action, Entry, columns, new_entry
from relay.ingest import measure
from relay.ingest.types import Admission, Outcome, Ticket
from relay.nostr.event import Event
from relay.nostr.kinds import GIFT_WRAP
from relay.store import channels, events, threads
from relay.store.events import Row
from relay.store.outcome import Patience
from relay.store.own_connection import OwnConnection
from relay.store.snapshot import full_xid
from relay.store.threads import ThreadPlace

log = structlog.get_logger()

SESSION = {"plan_cache_mode": "force_generic_plan"}
"""Server settings of the connection: a plan for few events looks cheaper than one for any number, and making it costs
more than what it does."""

# $16 to $23 are the entries, $24 the event whose storing an entry tells of, NULL where it tells of something else.
# Entries go in by their order here, which is their order in the chain.
_STORE = f"""{events.BATCH}, told AS (
    INSERT INTO audit_outbox ({outbox.COLUMNS})
    SELECT {outbox.COLUMNS}
    FROM unnest($16::uuid[], $17::bigint[], $18::text[], $19::text[], $20::text[], $21::int[], $22::uuid[], $23::text[],
                $24::bytea[])
         WITH ORDINALITY AS entry ({outbox.COLUMNS}, stores, place)
    LEFT JOIN inserted ON inserted.id = entry.stores
    WHERE entry.stores IS NULL OR inserted.id IS NOT NULL
    ORDER BY place
)
SELECT array_agg(encode(id, 'hex')), pg_current_xact_id()::text FROM inserted"""
assert events.BATCH_ARGUMENTS == 15

# One statement, one snapshot: an entry that is being moved is in exactly one of the two.
_TRACES = """
SELECT encode(e.id, 'hex'), e.xmin::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint
FROM (SELECT event_id FROM audit_outbox WHERE uuid = ANY($1::uuid[])
      UNION ALL SELECT event_id FROM audit_log WHERE uuid = ANY($1::uuid[])) AS trace
JOIN events e ON e.id = decode(trace.event_id, 'hex')"""


@dataclass(eq=False, slots=True)
class Submission:
    """What waits for a commit: an event with its ticket, or audit entries alone (then `done` is set)."""

    admission: Admission | None
    ticket: Ticket | None
    entries: list[Entry] = field(default_factory=list)
    """Of an event its one entry, made with the first try: by its uuid the database is asked what became of it."""
    done: trio.Event | None = None
    failed: bool = False
    settled: bool = False
    """Entries alone: they are durable, or everything that could be done for it has failed."""
    outcome: Outcome | None = None
    in_doubt: bool = False
    """It was sent and not answered."""

    @property
    def bytes(self) -> int:
        return 0 if self.admission is None else len(self.admission.event.json)

    @property
    def event(self) -> Event:
        assert self.admission is not None
        return self.admission.event

    def settle(self, *, failed: bool = False) -> None:
        """Entries alone: wakes whoever waits for them."""
        self.failed, self.settled = failed, True
        if self.done is not None:
            self.done.set()

    def resolve(self, outcome: Outcome) -> None:
        """Tells the ticket, once."""
        assert self.admission is not None
        assert self.ticket is not None
        assert self.outcome is None
        self.outcome = outcome
        measure.ended(self.admission, outcome)
        self.ticket.resolve(outcome)

    def make_entry(self, uuid: str) -> None:
        """The audit entry of an event."""
        admission = self.admission
        assert admission is not None
        # The key inside a gift wrap is hidden from everybody; that of the connection it came by would tell.
        sealed = admission.event.kind == GIFT_WRAP
        entry = new_entry(
            Action.EVENT_CREATED,
            time_us=admission.time_us,
            uuid=uuid,
            actor=None if sealed else admission.caller.pubkey,
            event_id=admission.event.id,
            kind=admission.event.kind,
            channel_id=admission.channel_id,
        )
        self.entries = [entry]


def entries_of(submissions: Iterable[Submission]) -> list[Entry]:
    return [entry for submission in submissions for entry in submission.entries]


@dataclass(slots=True)
class Stored:
    """What became of a batch. `new`: ids stored by it, with the transaction (64 bits). `known`: those of the others
    that were stored before; what is in neither had lost its access."""

    new: dict[str, int]
    known: set[str] = field(default_factory=set)


async def store(own: OwnConnection, part: Sequence[Submission], records: Sequence[Submission]) -> Stored:
    """Stores events (no id twice) and the entries of `records`.

    Raises:
        PostgresError: The server refuses, and would again.
        ConnectionLost, StoreError: The server is away for too long.

        Nothing was stored of what is not `in_doubt`. What is belongs into another batch, and nobody may be told
        anything of it until then.

    Cancellation: what became of the batch is open.
    """
    patience = Patience()
    while True:
        try:
            return await _attempt(await own.get(), part, records)
        except PostgresError as error:
            await patience.try_again(error)
        except (ConnectionLost, CommitOutcomeUnknown) as error:
            _doubt(part, records)
            await patience.try_again(error if isinstance(error, ConnectionLost) else ConnectionLost(str(error)))


def _doubt(part: Sequence[Submission], records: Sequence[Submission]) -> None:
    for submission in (*part, *records):
        submission.in_doubt = True


async def _attempt(con: Connection, part: Sequence[Submission], records: Sequence[Submission]) -> Stored:
    in_doubt = any(submission.in_doubt for submission in (*part, *records))
    if in_doubt or any(_has_more_to_do(submission) for submission in part):
        async with con.transaction():
            stored = await _insert(con, part, [] if in_doubt else records)
            if in_doubt:
                await outbox.insert_missing(con, entries_of(records))
            await _do_the_rest(con, [submission for submission in part if submission.event.id in stored.new])
    else:
        stored = await _insert(con, part, records)
    if others := [submission for submission in part if submission.event.id not in stored.new]:
        try:
            await _explain(con, others, stored)
        except PostgresError:
            # What is new is stored already, and to the next try it would look like somebody else's.
            _doubt(part, records)
            raise
    return stored


async def _insert(con: Connection, part: Sequence[Submission], records: Sequence[Submission]) -> Stored:
    rows = [_row(submission) for submission in part]
    batch = events.batch_arguments(rows)
    entries = entries_of((*part, *records))
    stores = batch[0] + [None] * (len(entries) - len(part))
    found = await con.fetchrow(_STORE, *batch, *columns(entries), stores)
    assert found is not None
    return Stored(dict.fromkeys(found[0] or (), int(found[1])))


async def _do_the_rest(con: Connection, new: Sequence[Submission]) -> None:
    """Channels by id, then threads by event id: the order of locks everywhere."""
    ephemeral, replies = set[str](), list[tuple[Event, str, ThreadPlace]]()
    for submission in new:
        admission = submission.admission
        assert admission is not None
        if admission.channel_id is not None:
            if admission.touches_ttl:
                ephemeral.add(admission.channel_id)
            if admission.thread is not None:
                replies.append((admission.event, admission.channel_id, admission.thread))
    if ephemeral:
        await channels.touch_ttl(con, sorted(ephemeral))
    if replies:
        await threads.insert(con, replies)


async def _explain(con: Connection, others: Sequence[Submission], stored: Stored) -> None:
    """Why these were not stored just now: by an earlier try of ours, by somebody else before, or not at all."""
    stored.known = await events.known(con, [submission.event.id for submission in others])
    if doubtful := [submission for submission in others if submission.in_doubt]:
        stored.new |= await _traces(con, doubtful)


async def _traces(con: Connection, doubtful: Sequence[Submission]) -> dict[str, int]:
    rows = await con.fetch(_TRACES, [submission.entries[0].uuid for submission in doubtful])
    log.info("what became of a batch is known", events=len(doubtful), stored=len(rows))
    return {row[0]: full_xid(row[1], row[2]) for row in rows}


def _row(submission: Submission) -> Row:
    admission = submission.admission
    assert admission is not None
    return Row(admission.event, admission.channel_id, admission.member)


def _has_more_to_do(submission: Submission) -> bool:
    admission = submission.admission
    return admission is not None and (admission.touches_ttl or admission.thread is not None)
