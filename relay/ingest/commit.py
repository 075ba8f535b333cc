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
* the connection is lost: tried again, and the database tells what the first try has stored (`batch`);
* the server is short of something or shutting down: tried again for some seconds, then the batch is refused, but for
  what the server may have stored: that is answered when the server has told, and takes part in every batch until then.

Audit entries that belong to no event ride along. Those that the store does not take go to the spool: whoever waits for
one learns only that it is durable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import structlog
import trio

from relay import metrics
from relay.access.directory import Directory
from relay.asyncpg_trio.errors import ConnectionLost, PostgresError, sqlstate_class
from relay.audit.entry import Entry
from relay.audit.queue import Producer
from relay.audit.spool import Spool, SpoolError
from relay.audit.uuids import new_uuids
from relay.errors import StoreError
from relay.fanout.items import Batch, Live
from relay.ingest.admit import NOT_MEMBER
from relay.ingest.batch import Stored, Submission, entries_of, store
from relay.ingest.types import DUPLICATE, STORED, Outcome, hand_over
from relay.store.failures import refusal
from relay.store.own_connection import OwnConnection

log = structlog.get_logger()

# Bad data, a broken constraint, a limit of the server (an index entry that is too long).
ROW_AT_FAULT = ("22", "23", "54")
BATCH_BYTES_MAX = 4 << 20
"""Of the events of one batch, less the last: one statement of 500 large ones would hold up everybody's small one."""
OPEN_SECONDS = 0.2
"""Before the next try of what was sent, not answered, and tried again for some time already."""
LAST_SPOOL_SECONDS = 0.5
"""For the counts that are left at the end, when the deadline of the drain has passed already."""


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
        self._open: list[Submission] = []  # sent, and nobody knows what became of them

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Takes submissions until there will be none."""
        task_status.started()
        try:
            async with self._dispatcher:
                while await self._take():
                    await self._commit(self._in_hand)
                # After the queue: a refusal may be counted as long as there is somebody to refuse.
                if entries := self._last_entries():
                    self._in_hand = [Submission(None, None, entries)]
                    await self._commit(self._in_hand)
        finally:
            self._producer.close()
            self._own.close()
            await self._spool_what_is_left()

    async def _take(self) -> bool:
        """Puts the next batch into `_in_hand`: what is still open, and what has arrived. False at the end."""
        taken = self._in_hand = self._open
        self._open = []
        if taken:
            await trio.sleep(OPEN_SECONDS)
        else:
            try:
                taken.append(await self._submissions.receive())
            except trio.EndOfChannel:
                return False
        size = sum(submission.bytes for submission in taken)
        while len(taken) < self._batch_max and size < BATCH_BYTES_MAX:
            try:
                taken.append(self._submissions.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            size += taken[-1].bytes
        return True

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
        entries = entries_of(alone) + self._last_entries()
        if entries:
            with trio.move_on_after(LAST_SPOOL_SECONDS, shield=True):
                await self._to_spool(entries)

    async def _commit(self, batch: list[Submission]) -> None:
        started = time.perf_counter()
        events = [submission for submission in batch if submission.admission is not None]
        records = [submission for submission in batch if submission.admission is None]
        while events or records:
            firsts: dict[str, Submission] = {}
            twins = [each for each in events if firsts.setdefault(each.event.id, each) is not each]
            await self._commit_part(list(firsts.values()), records)
            # Who may submit an event is its author or a bridge, so this comes round at most once more.
            self._open += [twin for twin in twins if firsts[twin.event.id].outcome is None]
            events, records = _answer_twins(twins, firsts), []
        metrics.COMMIT_BATCH_EVENTS.observe(len(batch))
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - started)

    async def _commit_part(self, part: list[Submission], records: list[Submission]) -> None:
        """Commits and answers. Halves what the server refuses for one row's sake."""
        fresh = [submission for submission in part if not submission.entries]
        for submission, uuid in zip(fresh, new_uuids(len(fresh)), strict=True):
            submission.make_entry(uuid)
        try:
            stored = await store(self._own, part, records)
        except PostgresError as error:
            if sqlstate_class(error) in ROW_AT_FAULT and len(part) + bool(records) > 1:
                await self._divide(part, records)
            else:
                await self._fail(part, records, error)
        except (ConnectionLost, StoreError) as error:
            await self._fail(part, records, error)
        else:
            await self._after_commit(part, records, stored)

    async def _divide(self, part: list[Submission], records: list[Submission]) -> None:
        # Nobody's login depends on somebody else's event.
        if records:
            await self._commit_part([], records)
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            if half:
                await self._commit_part(half, [])

    async def _after_commit(self, part: list[Submission], records: list[Submission], stored: Stored) -> None:
        await self._deliver(part, stored.new)
        self._answer(part, stored)
        for record in records:
            record.settle()
        new = [submission for submission in part if submission.event.id in stored.new]
        await hand_over(self._producer, entries_of((*new, *records)))

    async def _deliver(self, part: Sequence[Submission], new: Mapping[str, int]) -> None:
        live = []
        for submission in part:
            admission = submission.admission
            assert admission is not None
            if xid := new.get(admission.event.id):
                live.append(Live(admission.event, admission.channel_id, xid))
        if live:
            await self._dispatcher.send(Batch(live))

    def _answer(self, part: list[Submission], stored: Stored) -> None:
        for submission in part:
            admission = submission.admission
            assert admission is not None
            if admission.event.id in stored.new:
                outcome = STORED
            elif admission.event.id in stored.known:
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
        hopeless = isinstance(error, PostgresError) and sqlstate_class(error) in ROW_AT_FAULT
        refused = [submission for submission in part if hopeless or not submission.in_doubt]
        for submission in refused:
            submission.resolve(Outcome.refused(refusal(error)))
        _flush(refused)
        self._open += [submission for submission in part if submission.outcome is None]
        if records:
            kept = await self._to_spool(entries_of(records))
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
        first = firsts[twin.event.id]
        if first.outcome is None:
            continue
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
