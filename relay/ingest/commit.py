"""Group commit: plain events, many in one transaction.

A batch is what arrived while the previous one was being committed; there is no timer. The commit task owns its
connection and runs in the root nursery, so that after COMMIT "hand to the fan-out, answer, hand to the audit" is one
stretch that no client can cancel.

What can go wrong, and what follows:
* the same id twice in a batch: the second one waits for the first one's outcome, and is a duplicate only of what was
  stored;
* deadlock or serialization failure: the batch is tried again whole; locks are taken in one order (channels by id, then
  threads by event id), so it is rare;
* a row that the server refuses (classes 22, 23 and 54): the batch is halved until that row stands alone and is refused;
* the connection is lost before COMMIT: tried again; at COMMIT: the server is asked what became of it;
* the server is short of something or shutting down: tried again for some seconds, then the batch is refused whole.

Audit entries that belong to no event ride along. Those that the store does not take go to the spool: whoever waits for
one learns only that it is durable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from relay import metrics
from relay.access.directory import Directory
from relay.asyncpg_trio.errors import CommitOutcomeUnknown, ConnectionLost, PostgresError, sqlstate_class
from relay.audit import outbox
from relay.audit.entry import Action, Entry, new_entry
from relay.audit.queue import Producer
from relay.audit.spool import Spool, SpoolError
from relay.audit.uuids import new_uuids
from relay.errors import StoreError
from relay.fanout.items import Batch, Live
from relay.ingest import measure
from relay.ingest.admit import NOT_MEMBER
from relay.ingest.types import DUPLICATE, STORED, Admission, Outcome, Ticket, hand_over
from relay.nostr.event import Event
from relay.nostr.kinds import GIFT_WRAP
from relay.store import channels, events, threads
from relay.store.events import Row
from relay.store.failures import refusal
from relay.store.outcome import Patience, committed
from relay.store.own_connection import OwnConnection
from relay.store.threads import ThreadPlace

log = structlog.get_logger()

# Bad data, a broken constraint, a limit of the server (an index entry that is too long).
ROW_AT_FAULT = ("22", "23", "54")
BATCH_BYTES_MAX = 4 << 20
"""Of the events of one batch, less the last: one statement of 500 large ones would hold up everybody's small one."""
LAST_SPOOL_SECONDS = 0.5
"""For the counts that are left at the end, when the deadline of the drain has passed already."""


@dataclass(eq=False, slots=True)
class Submission:
    """What waits for a commit: an event with its ticket, or audit entries alone (then `done` is set)."""

    admission: Admission | None
    ticket: Ticket | None
    entries: list[Entry] = field(default_factory=list)
    done: trio.Event | None = None
    failed: bool = False
    settled: bool = False
    """Entries alone: they are durable, or everything that could be done for it has failed."""
    outcome: Outcome | None = None

    @property
    def bytes(self) -> int:
        return 0 if self.admission is None else len(self.admission.event.json)

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


@dataclass(slots=True)
class _Result:
    xid: int
    new: set[str]
    known: set[str]
    trace: str | None = None
    """The uuid of an audit entry of this transaction, by which it is known again if its COMMIT is not answered."""


class CommitTask:
    """Owner: root nursery. Ends when the queue's send ends are closed."""

    def __init__(
        self,
        own: OwnConnection,
        *,
        directory: Directory,
        submissions: trio.MemoryReceiveChannel[Submission],
        dispatcher: trio.MemorySendChannel[Batch],
        producer: Producer,
        batch_max: int,
        spool: Spool | None = None,
        last_entries: Callable[[], list[Entry]] = list,
    ) -> None:
        """`last_entries` is asked once, when the queue has ended: what nobody waits for and must not be lost."""
        self._spool = spool
        self._last_entries = last_entries
        self._in_hand: list[Submission] = []
        self._own = own
        self._directory = directory
        self._submissions = submissions
        self._dispatcher = dispatcher
        self._producer = producer
        self._batch_max = batch_max

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Takes submissions until there will be none."""
        task_status.started()
        try:
            async with self._dispatcher:
                async for first in self._submissions:
                    batch, size = [first], first.bytes
                    while len(batch) < self._batch_max and size < BATCH_BYTES_MAX:
                        try:
                            batch.append(self._submissions.receive_nowait())
                        except (trio.WouldBlock, trio.EndOfChannel):
                            break
                        size += batch[-1].bytes
                    self._in_hand = batch
                    await self._commit(batch)
                # After the queue: a refusal may be counted as long as there is somebody to refuse.
                if entries := self._last_entries():
                    self._in_hand = [Submission(None, None, entries)]
                    await self._commit(self._in_hand)
        finally:
            self._producer.close()
            self._own.close()
            await self._spool_what_is_left()

    async def _spool_what_is_left(self) -> None:
        """When this task is ended while the database is stuck: entries that nobody waits for are still to be kept."""
        left = self._in_hand
        while True:
            try:
                left.append(self._submissions.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        self._submissions.close()
        alone = [each for each in left if each.admission is None and each.done is None and not each.settled]
        entries = [entry for each in alone for entry in each.entries] + self._last_entries()
        if entries:
            with trio.move_on_after(LAST_SPOOL_SECONDS, shield=True):
                await self._to_spool(entries)

    async def _commit(self, batch: list[Submission]) -> None:
        started = time.perf_counter()
        events = [submission for submission in batch if submission.admission is not None]
        records = [submission for submission in batch if submission.admission is None]
        while events or records:
            firsts: dict[str, Submission] = {}
            twins = [each for each in events if firsts.setdefault(_event_id(each), each) is not each]
            await self._commit_part(list(firsts.values()), records)
            # Who may submit an event is its author or a bridge, so this comes round at most once more.
            events, records = _answer_twins(twins, firsts), []
        metrics.COMMIT_BATCH_EVENTS.observe(len(batch))
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - started)

    async def _commit_part(self, part: list[Submission], records: list[Submission]) -> None:
        """Commits and answers. Halves what the server refuses for one row's sake."""
        entries = [_entry(submission, uuid) for submission, uuid in zip(part, new_uuids(len(part)), strict=True)]
        try:
            result = await self._store(part, entries, records)
        except PostgresError as error:
            if sqlstate_class(error) in ROW_AT_FAULT and len(part) + bool(records) > 1:
                await self._divide(part, records)
            else:
                await self._fail(part, records, error)
        except (ConnectionLost, StoreError) as error:
            await self._fail(part, records, error)
        else:
            await self._after_commit(part, entries, records, result)

    async def _divide(self, part: list[Submission], records: list[Submission]) -> None:
        # Nobody's login depends on somebody else's event.
        if records:
            await self._commit_part([], records)
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            if half:
                await self._commit_part(half, [])

    async def _store(self, part: list[Submission], entries: list[Entry], records: list[Submission]) -> _Result:
        patience = Patience()
        while True:
            result = None
            try:
                con = await self._own.get()
                async with con.transaction():
                    rows = [_row(submission) for submission in part]
                    new, xid = await events.insert_batch(con, rows)
                    result = _Result(xid, new, set())
                    chained = [entry for entry in entries if entry.event_id in new]
                    for record in records:
                        chained += record.entries
                    await outbox.insert(con, chained)
                    result.trace = chained[0].uuid if chained else None
                    if ephemeral := [row.channel_id for row, s in zip(rows, part, strict=True) if _touches_ttl(s, new)]:
                        await channels.touch_ttl(con, sorted({channel for channel in ephemeral if channel}))
                    if replies := _replies(part, new):
                        await threads.insert(con, replies)
                    if len(new) < len(rows):
                        result.known = await events.known(con, [r.event.id for r in rows if r.event.id not in new])
                return result
            except CommitOutcomeUnknown:
                assert result is not None
                metrics.COMMIT_RETRIES.labels("unknown_outcome").inc()
                if await committed(self._own, result.xid, result.trace):
                    return result
            except (ConnectionLost, PostgresError) as error:
                # COMMIT was not sent, or was refused: nothing has happened.
                await patience.try_again(error)

    async def _after_commit(
        self, part: list[Submission], entries: list[Entry], records: list[Submission], result: _Result
    ) -> None:
        live = []
        chained = []
        for submission, entry in zip(part, entries, strict=True):
            admission = submission.admission
            assert admission is not None
            if admission.event.id in result.new:
                live.append(Live(admission.event, admission.channel_id, result.xid))
                chained.append(entry)
        if live:
            await self._dispatcher.send(Batch(live))
        self._answer(part, result)
        for record in records:
            chained += record.entries
            record.settle()
        await hand_over(self._producer, chained)

    def _answer(self, part: list[Submission], result: _Result) -> None:
        for submission in part:
            admission = submission.admission
            assert admission is not None
            if admission.event.id in result.new:
                outcome = STORED
            elif admission.event.id in result.known:
                outcome = DUPLICATE
            else:
                # Membership or channel went after admission; what the caches said is over.
                assert admission.channel_id is not None
                self._directory.invalidate_access(admission.channel_id, admission.caller.pubkey)
                outcome = Outcome.refused(NOT_MEMBER)
            submission.resolve(outcome)
        _flush(part)

    async def _fail(self, part: Sequence[Submission], records: Sequence[Submission], error: Exception) -> None:
        log.error("events could not be stored", events=len(part), error=str(error), kind=type(error).__name__)
        for submission in part:
            submission.resolve(Outcome.refused(refusal(error)))
        _flush(part)
        if records:
            kept = await self._to_spool([entry for record in records for entry in record.entries])
            for record in records:
                record.settle(failed=not kept)

    async def _to_spool(self, entries: list[Entry]) -> bool:
        """Whether the entries are durable now."""
        if self._spool is None:
            log.error("audit entries could not be stored", entries=len(entries))
            return False
        try:
            await self._spool.append(entries)
        except SpoolError as error:
            log.error("audit entries could not be stored", entries=len(entries), error=str(error))
            return False
        return True


def _answer_twins(twins: list[Submission], firsts: dict[str, Submission]) -> list[Submission]:
    """Answers copies by what became of the first, and returns those that must try themselves: the first was refused,
    and this one comes with another right."""
    left, answered = [], []
    for twin in twins:
        first = firsts[_event_id(twin)]
        assert first.outcome is not None
        assert first.admission is not None
        assert twin.admission is not None
        if not first.outcome.accepted and twin.admission.member != first.admission.member:
            left.append(twin)
            continue
        twin.resolve(DUPLICATE if first.outcome.accepted else first.outcome)
        answered.append(twin)
    _flush(answered)
    return left


def _flush(submissions: Sequence[Submission]) -> None:
    owners = {id(each.ticket.owner): each.ticket.owner for each in submissions if each.ticket is not None}
    for owner in owners.values():
        owner.flush_replies()


def _event_id(submission: Submission) -> str:
    assert submission.admission is not None
    return submission.admission.event.id


def _row(submission: Submission) -> Row:
    admission = submission.admission
    assert admission is not None
    return Row(admission.event, admission.channel_id, admission.member)


def _touches_ttl(submission: Submission, new: set[str]) -> bool:
    admission = submission.admission
    return admission is not None and admission.touches_ttl and admission.event.id in new


def _replies(part: Sequence[Submission], new: set[str]) -> list[tuple[Event, str, ThreadPlace]]:
    found = []
    for submission in part:
        admission = submission.admission
        if admission is not None and admission.thread is not None and admission.event.id in new:
            assert admission.channel_id is not None
            found.append((admission.event, admission.channel_id, admission.thread))
    return found


def _entry(submission: Submission, uuid: str) -> Entry:
    admission = submission.admission
    assert admission is not None
    # The key inside a gift wrap is hidden from everybody; that of the connection it came by would tell.
    sealed = admission.event.kind == GIFT_WRAP
    return new_entry(
        Action.EVENT_CREATED,
        time_us=admission.time_us,
        uuid=uuid,
        actor=None if sealed else admission.caller.pubkey,
        event_id=admission.event.id,
        kind=admission.event.kind,
        channel_id=admission.channel_id,
    )
