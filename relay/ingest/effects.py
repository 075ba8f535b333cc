"""Events that change state: the event, what it changes and its audit entries in one transaction.

So no event is stored whose effect did not happen, no effect happens without its event, and a retry never meets half of
one. The workers run in the root nursery; whoever submitted the event only waits for the outcome. After COMMIT
"invalidate, hand to the fan-out, answer" is one stretch that no client can cancel.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import uuid4

import structlog
import trio

from relay import metrics
from relay.access.directory import Directory
from relay.asyncpg_trio import Connection
from relay.asyncpg_trio.errors import CommitOutcomeUnknown, ConnectionLost, PostgresError
from relay.audit import outbox
from relay.audit.entry import Action, Entry, new_entry
from relay.audit.queue import Producer
from relay.errors import INTERNAL_ERROR, Refusal, StoreError
from relay.fanout.items import Batch, Item, Left, Live, Redefined
from relay.ingest.turns import Turn, Turns
from relay.ingest.types import Outcome, hand_over
from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from relay.store.failures import refusal
from relay.store.outcome import Patience, committed
from relay.store.own_connection import OwnConnection

log = structlog.get_logger()


class Ended(Exception):
    """Leaves the transaction with nothing done and this outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


def refuse(detail: str) -> Ended:
    """To be raised: `invalid: {detail}`."""
    return Ended(Outcome.refused(Refusal.invalid(detail)))


@dataclass(slots=True)
class Effect:
    """One transaction in the making: what it says to the fan-out, the caches and the audit log when it is committed.

    `now` and `time_us` are the moment of admission. `items` keep the order in which things were done. `turn` is to be
    taken before the lock of a channel that is changed.
    """

    con: Connection
    key: SecretKey
    actor: str
    time_us: int
    xid: int
    turn: Turn
    items: list[Item] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    invalidations: list[Callable[[Directory], None]] = field(default_factory=list)

    @property
    def now(self) -> int:
        return self.time_us // 1_000_000

    def stored(self, event: Event, channel_id: str | None, *, actor: str | None = None) -> None:
        """Notes an event that this transaction has stored: it is delivered, and has exactly one `event_created`."""
        self.items.append(Live(event, channel_id, self.xid))
        self.audit(Action.EVENT_CREATED, event, channel_id, actor=actor)

    def audit(
        self,
        action: Action,
        event: Event | None,
        channel_id: str | None,
        *,
        actor: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Notes an entry of this transaction; without an event for what no client's event asked for."""
        entry = new_entry(
            action,
            time_us=self.time_us,
            uuid=str(uuid4()),
            actor=actor or self.actor,
            event_id=None if event is None else event.id,
            kind=None if event is None else event.kind,
            channel_id=channel_id,
            metadata=metadata,
        )
        self.entries.append(entry)


Apply = Callable[[Effect], Awaitable[Outcome]]


@dataclass(eq=False, slots=True)
class Work:
    """A transaction to be run. `apply` may run more than once and must keep nothing outside the `Effect`."""

    apply: Apply
    actor: str
    time_us: int
    done: trio.Event = field(default_factory=trio.Event)
    outcome: Outcome = field(default_factory=lambda: Outcome.refused(INTERNAL_ERROR))

    def end(self, outcome: Outcome) -> None:
        """Wakes whoever waits."""
        self.outcome = outcome
        self.done.set()


class EffectWorker:
    """One of the workers. Owner: root nursery; ends when the queue's send ends are closed."""

    def __init__(
        self,
        own: OwnConnection,
        *,
        key: SecretKey,
        directory: Directory,
        work: trio.MemoryReceiveChannel[Work],
        dispatcher: trio.MemorySendChannel[Batch],
        producer: Producer,
        turns: Turns,
    ) -> None:
        self._own = own
        self._turns = turns
        self._key = key
        self._directory = directory
        self._work = work
        self._dispatcher = dispatcher
        self._producer = producer

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Takes work until there will be none."""
        task_status.started()
        try:
            async with self._work, self._dispatcher:
                async for work in self._work:
                    await self._perform(work)
        finally:
            self._producer.close()
            self._own.close()

    async def _perform(self, work: Work) -> None:
        turn = self._turns.turn()
        effect = passed = None
        outcome = work.outcome
        try:
            effect, outcome = await self._transact(work, turn)
            if effect is not None:
                passed = await self._tell(effect)
        except (PostgresError, ConnectionLost, StoreError) as error:
            log.error("an event could not be stored", error=str(error), kind=type(error).__name__)
            outcome = Outcome.refused(refusal(error))
        finally:
            turn.release()
            if passed is None:
                work.end(outcome)  # also where this task is ended: nobody else will
        try:
            if passed is not None:
                await passed.wait()
        finally:
            work.end(outcome)
        if effect is not None:
            await hand_over(self._producer, effect.entries)

    async def _tell(self, effect: Effect) -> trio.Event | None:
        """Caches and fan-out, in this order; returns what to wait for where somebody may have lost access."""
        passed = trio.Event() if any(isinstance(item, Left | Redefined) for item in effect.items) else None
        for invalidate in effect.invalidations:
            invalidate(self._directory)
        if effect.items:
            await self._dispatcher.send(Batch(effect.items, passed))
        return passed

    async def _transact(self, work: Work, turn: Turn) -> tuple[Effect | None, Outcome]:
        """(what was committed or None, the outcome). Tries again where that can help."""
        patience = Patience()
        while True:
            effect = None
            try:
                con = await self._own.get()
                async with con.transaction():
                    xid = int(await con.fetchval("SELECT pg_current_xact_id()::text"))
                    effect = Effect(con, self._key, work.actor, work.time_us, xid, turn)
                    outcome = await work.apply(effect)
                    await outbox.insert(con, effect.entries)
                return effect, outcome
            except Ended as ended:
                return None, ended.outcome
            except CommitOutcomeUnknown:
                assert effect is not None
                metrics.COMMIT_RETRIES.labels("unknown_outcome").inc()
                trace = effect.entries[0].uuid if effect.entries else None
                if await committed(self._own, effect.xid, trace):
                    return effect, outcome
            except (ConnectionLost, PostgresError) as error:
                # COMMIT was not sent, or was refused: nothing has happened.
                await patience.try_again(error)
