"""The door that WebSocket and HTTP share: admit an event, get it committed, learn what became of it.

`Ingest` owns two queues. Plain events go to the commit task, which stores many at once; events with effects go to the
effect workers. The tasks themselves are started and owned by the root nursery (`tasks`). Ephemeral events are handed
to the fan-out directly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import structlog
import trio

from relay.access.directory import Directory
from relay.access.identity import Caller
from relay.asyncpg_trio import Pool
from relay.asyncpg_trio.errors import CommitOutcomeUnknown
from relay.audit.entry import Action, Entry
from relay.audit.spool import Spool, SpoolError
from relay.audit.worker import AuditWorker
from relay.config import Settings
from relay.errors import INTERNAL_ERROR, SHUTTING_DOWN, TOO_BUSY, Refusal, StoreGone
from relay.fanout.hub import Hub
from relay.fanout.items import Batch, Live
from relay.ingest import content, deletions, group_edits, groups, measure
from relay.ingest.admit import NOT_MEMBER, Admitter
from relay.ingest.batch import Submission
from relay.ingest.commit import CommitTask
from relay.ingest.dms import DmOpened, OpenDm
from relay.ingest.effects import Apply, Effect, EffectWorker, Work
from relay.ingest.notes import Notes
from relay.ingest.reaper import Reaper
from relay.ingest.turns import Turns
from relay.ingest.types import STORED, Admission, Door, Outcome, Route, Ticket
from relay.nostr import kinds
from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from relay.store import channels
from relay.store.failures import STORE_FAILURES, is_busy, refusal
from relay.store.outcome import PATIENCE_SECONDS
from relay.store.own_connection import Connect, OwnConnection

__all__ = ["Ingest"]

log = structlog.get_logger()

NOTES_SECONDS = 15
# While entries wait in the spool; sooner when another one was made durable, since then the store may be back.
REPLAY_SECONDS = 2
REPLAY_SECONDS_MAX = 30

# `finish` was called, or the task at the other end of the queue has died.
_ENDED = (trio.ClosedResourceError, trio.BrokenResourceError)

# They lock their channel, and give it its time again under that lock.
_GROUPS = {**groups.HANDLERS, **group_edits.HANDLERS}

EffectHandler = Callable[[Effect, Admission], Awaitable[Outcome]]
Task = Callable[..., Awaitable[None]]


class Waiter:
    """A ticket for one task that waits: the HTTP door, and sessions that must not go on."""

    def __init__(self) -> None:
        self.owner: Any = self
        self.outcome: Outcome | None = None
        self._done = trio.Event()

    def resolve(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._done.set()

    def flush_replies(self) -> None:
        """Nothing to write: whoever waits is woken by `resolve`."""

    async def wait(self) -> Outcome:
        await self._done.wait()
        assert self.outcome is not None
        return self.outcome


class Ingest:
    """See the module. Constructed before its tasks run; `connect_commit` opens the commit task's connection (with
    `batch.SESSION`), `connect` those of the effect workers; `now_us` is microseconds since the epoch."""

    def __init__(
        self,
        settings: Settings,
        *,
        pool: Pool,
        connect: Connect,
        connect_commit: Connect,
        directory: Directory,
        hub: Hub,
        audit: AuditWorker,
        key: SecretKey,
        now_us: Callable[[], int],
        spool: Spool | None = None,
    ) -> None:
        self._spool = spool
        self._replay_now = trio.Event()
        self._settings = settings
        self._connect = connect
        self._connect_commit = connect_commit
        self._directory = directory
        self._hub = hub
        self._audit = audit
        self._key = key
        self._now_us = now_us
        self._pool = pool
        self._admitter = Admitter(settings, directory, pool, now_us, relay_pubkey=key.public_hex)
        self._notes = Notes()
        self._counts: list[Entry] = []  # taken from the notes, and not queued yet
        self._closed = False
        self._dispatcher = hub.dispatcher()
        self._plain_in, self._plain_out = trio.open_memory_channel[Submission](settings.commit_queue)
        self._work_in, self._work_out = trio.open_memory_channel[Work](settings.effect_workers)
        self._handlers: dict[int, EffectHandler] = {
            **_GROUPS,
            **deletions.HANDLERS,
            **content.HANDLERS,
            kinds.NIP29_CREATE_GROUP: partial(groups.create_group, ttl_override=settings.ephemeral_ttl_override),
            kinds.NIP29_EDIT_METADATA: partial(group_edits.edit_metadata, ttl_override=settings.ephemeral_ttl_override),
            kinds.PROFILE: partial(content.save_profile, domain=settings.relay_host),
        }

    # -- the way of one event ------------------------------------------------------------------------------------

    async def admit(self, event: Event, caller: Caller, door: Door) -> Refusal | Admission:
        """Whether the event may go on. Usually does not suspend: the caches know.

        Never raises for what a client or the store does: a store that cannot be asked is a refusal too.
        """
        measure.received(event.kind)
        if self._closed:
            return self._refused(SHUTTING_DOWN)
        try:
            found = await self._admitter.admit(event, caller, door)
        except STORE_FAILURES as error:
            log.warning("admission could not ask the store", error=str(error), kind=type(error).__name__)
            return self._refused(TOO_BUSY if is_busy(error) else refusal(error))
        return self._refused(found) if isinstance(found, Refusal) else found

    @staticmethod
    def _refused(refusal: Refusal) -> Refusal:
        measure.rejected(refusal)
        return refusal

    async def enqueue(self, admission: Admission, ticket: Ticket) -> None:
        """Queues a plain event; suspends only where there is no room. The ticket is resolved by the commit task, in the
        order of this call.

        Raises trio.ClosedResourceError when nothing is taken any more. Cancellation: either the event is queued or it
        is not.
        """
        assert admission.route is Route.PLAIN
        submission = Submission(admission, ticket)
        try:
            try:
                # Without a switch of tasks while there is room; a connection itself sees to it that others have a turn.
                self._plain_in.send_nowait(submission)
            except trio.WouldBlock:
                await self._plain_in.send(submission)
        except trio.BrokenResourceError as error:
            # To a session this would mean that its own peer has gone, and it would end without a word.
            raise trio.ClosedResourceError("the commit task has died") from error

    async def perform(self, admission: Admission) -> Outcome:
        """Takes an admitted event to its end. Cancellation: the caller stops waiting, the event goes its way."""
        if admission.route is Route.PLAIN:
            return await self._perform_plain(admission)
        if admission.route is Route.EPHEMERAL:
            outcome = await self._deliver(admission)
        else:
            apply = partial(self._apply, admission=admission)
            outcome = await self._run(apply, admission.caller.pubkey, admission.time_us)
        if outcome.refusal is NOT_MEMBER and admission.channel_id is not None:
            # The transaction knew better than the caches that let it in.
            self._directory.invalidate_access(admission.channel_id, admission.caller.pubkey)
        measure.ended(admission, outcome)
        return outcome

    async def _perform_plain(self, admission: Admission) -> Outcome:
        waiter = Waiter()
        try:
            await self.enqueue(admission, waiter)
        except trio.ClosedResourceError:
            return Outcome.refused(self._refused(SHUTTING_DOWN))
        return await waiter.wait()

    async def _deliver(self, admission: Admission) -> Outcome:
        try:
            await self._dispatcher.send(Batch([Live(admission.event, admission.channel_id, None)]))
        except _ENDED:
            return Outcome.refused(SHUTTING_DOWN)
        if admission.event.kind == kinds.PRESENCE_UPDATE:
            self._hub.presence.update(admission.caller.pubkey, admission.event.content)
        return STORED

    async def submit(self, event: Event, caller: Caller, door: Door) -> Outcome:
        """Admits and performs."""
        admission = await self.admit(event, caller, door)
        if isinstance(admission, Refusal):
            return Outcome.refused(admission)
        return await self.perform(admission)

    async def _apply(self, effect: Effect, *, admission: Admission) -> Outcome:
        kind = admission.event.kind
        if admission.touches_ttl and admission.channel_id is not None and kind not in _GROUPS:
            # First, for its lock: channels come before the rows of threads here as in the commit task.
            await channels.touch_ttl(effect.con, [admission.channel_id])
        return await self._handlers[kind](effect, admission)

    async def _run(self, apply: Apply, actor: str, time_us: int) -> Outcome:
        work = Work(apply, actor, time_us)
        try:
            await self._work_in.send(work)
        except _ENDED:
            return Outcome.refused(SHUTTING_DOWN)
        await work.done.wait()
        return work.outcome

    # -- what is not an event ------------------------------------------------------------------------------------

    async def open_dm(self, caller: Caller, pubkeys: Iterable[str], *, announce: bool = True) -> DmOpened | Refusal:
        """Opens or creates the DM of the caller with these keys (all valid hex, caller not needed among them)."""
        opening = OpenDm(caller.pubkey, pubkeys, announce=announce)
        outcome = await self.transact(opening, actor=caller.pubkey)
        if opening.result is None or not outcome.accepted:
            return outcome.refusal or INTERNAL_ERROR
        return opening.result

    async def transact(self, apply: Apply, *, actor: str) -> Outcome:
        """Runs `apply` in a transaction of its own, in an effect worker: what it writes and what it notes for the audit
        log are committed together or not at all, and a client that goes away cancels neither.

        `apply` may run more than once and gets a fresh `Effect` each time. It says no by `raise Ended(outcome)`, which
        leaves nothing behind; of other exceptions only those of the store are expected, any other one ends the relay.
        Cancellation: the caller stops waiting, the transaction goes its way.
        """
        if self._closed:
            return Outcome.refused(SHUTTING_DOWN)
        return await self._run(apply, actor, self._now_us())

    async def record(self, entries: Sequence[Entry]) -> None:
        """Makes audit entries durable: with the next group commit, or in the spool where the store does not take them.

        Raises:
            StoreGone: Neither took them.
        """
        submission = Submission(None, None, list(entries), trio.Event())
        try:
            await self._plain_in.send(submission)
        except _ENDED as error:
            await self._to_spool(entries, error)
            return
        assert submission.done is not None
        await submission.done.wait()
        if submission.failed:
            raise StoreGone("the audit entry could not be stored")
        if self._spool is not None and self._spool.pending:
            self._replay_now.set()

    async def _to_spool(self, entries: Sequence[Entry], cause: BaseException) -> None:
        if self._spool is None:
            raise StoreGone("nothing is stored any more") from cause
        try:
            await self._spool.append(entries)
        except SpoolError as error:
            raise StoreGone(f"nothing is stored any more, and {error}") from cause

    def note(self, action: Action, who: str, reason: str) -> None:
        """Counts a refusal for the audit log. Never waits."""
        self._notes.add(action, who, reason, self._now_us())

    # -- tasks and the end ---------------------------------------------------------------------------------------

    def tasks(self) -> list[tuple[str, Task]]:
        """(name, async function with `task_status`) of the commit task and the effect workers, for the root nursery."""
        commit = CommitTask(
            self._own("commit task", self._connect_commit),
            directory=self._directory,
            submissions=self._plain_out,
            dispatcher=self._hub.dispatcher(),
            producer=self._audit.producer(),
            batch_max=self._settings.commit_batch,
            spool=self._spool,
            last_entries=partial(self._counts_due, everything=True),
        )
        tasks: list[tuple[str, Task]] = [("commit task", commit.run)]
        turns = Turns()
        for number in range(1, self._settings.effect_workers + 1):
            worker = EffectWorker(
                self._own(f"effect worker {number}", self._connect),
                key=self._key,
                directory=self._directory,
                work=self._work_out.clone(),
                dispatcher=self._hub.dispatcher(),
                producer=self._audit.producer(),
                turns=turns,
            )
            tasks.append((f"effect worker {number}", worker.run))
        self._work_out.close()
        return tasks

    @staticmethod
    def _own(name: str, connect: Connect) -> OwnConnection:
        return OwnConnection(connect, name=name, patience_seconds=PATIENCE_SECONDS)

    async def run_notes(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Writes the counted refusals now and then, and empties the spool when the store is back. Owner: root nursery;
        ends by cancellation: what is left then is the commit task's to write."""
        task_status.started()
        wait_seconds = NOTES_SECONDS
        while True:
            with trio.move_on_after(wait_seconds):
                await self._replay_now.wait()
            self._replay_now = trio.Event()
            self._submit_counts()
            await self._empty_spool()
            wait_seconds = REPLAY_SECONDS if self._spool is not None and self._spool.pending else NOTES_SECONDS

    async def run_reaper(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Reaper`. Owner: root nursery; ends by cancellation."""
        await self.reaper().run(task_status)

    def reaper(self) -> Reaper:
        """What looks for channels and events whose time is over, and acts as the relay."""

        async def submit(apply: Apply) -> Outcome:
            if self._closed:
                return Outcome.refused(SHUTTING_DOWN)
            return await self._run(apply, self._key.public_hex, self._now_us())

        return Reaper(submit, self._pool, pubkey=self._key.public_hex, seconds=self._settings.reaper_seconds)

    def close(self) -> None:
        """From now on nothing new is admitted; what was admitted goes on."""
        self._closed = True

    def finish(self) -> None:
        """No more submissions will come: the tasks end when their queues are empty, the commit task with the counts."""
        self._plain_in.close()
        self._work_in.close()
        self._dispatcher.close()

    # -- what has no transaction of its own ------------------------------------------------------------------------

    def _submit_counts(self) -> None:
        """Queues the counts that are due; where there is no room, the next time. Nobody waits for them."""
        entries = self._counts_due()
        if not entries:
            return
        try:
            self._plain_in.send_nowait(Submission(None, None, entries))
        except (trio.WouldBlock, *_ENDED):
            self._counts = entries

    def _counts_due(self, *, everything: bool = False) -> list[Entry]:
        entries, self._counts = self._counts, []
        # Those of later minutes wait in the notes meanwhile, which are bounded.
        if not entries or everything:
            entries += self._notes.take(self._now_us(), everything=everything)
        return entries

    async def _empty_spool(self) -> None:
        """Moves what is in the spool into the outbox, if the store is back; the sweep of the audit worker finds it."""
        if self._spool is None or not self._spool.pending:
            return
        try:
            with trio.fail_after(REPLAY_SECONDS_MAX):
                async with self._pool.acquire() as con:
                    await self._spool.replay(con)
        except (*STORE_FAILURES, CommitOutcomeUnknown, SpoolError, OSError, trio.TooSlowError) as error:
            log.warning("the audit spool stays as it is", error=str(error), kind=type(error).__name__)
