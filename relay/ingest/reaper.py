"""What the relay does by itself: archives ephemeral channels whose time is over, and takes away events that expired.

In: time. Out: transactions for the effect workers, one for each channel, so that an archived channel is told of like
one that its owner archives. A look finds candidates without a lock and decides nothing: the transaction looks again
under the channel's lock, because an event may have given the channel its time back, and another relay on the same
database may have been quicker.

The first look also gives their state events to channels that have none: those of an imported database, or of a relay
that signed with another key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from relay import metrics
from relay.audit.entry import Action
from relay.ingest import expiry
from relay.ingest.effects import Apply, Effect, Ended
from relay.ingest.group_state import store_group_state, store_system_message
from relay.ingest.relay_events import GROUP_STATE_KINDS
from relay.ingest.types import STORED, Outcome
from relay.nostr.ids import NIL_UUID
from relay.store import channels
from relay.store.channels import Database
from relay.store.failures import STORE_FAILURES

log = structlog.get_logger()

PAGE = 500
"""Channels of one look into the table; there is a next one as long as it is full."""

# Somebody else did it, or it is not due any more: nothing was stored.
_NOTHING = Outcome(True, "nothing to do")


class Reaper:
    """`submit` runs a transaction in an effect worker with the relay as its actor; `pubkey` is the relay's."""

    def __init__(
        self, submit: Callable[[Apply], Awaitable[Outcome]], db: Database, *, pubkey: str, seconds: float
    ) -> None:
        self._submit = submit
        self._db = db
        self._pubkey = pubkey
        self._seconds = seconds
        self._reconciled = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Looks at once and then every `seconds`. Owner: root nursery; ends by cancellation, which leaves a transaction
        that was submitted to its worker."""
        task_status.started()
        while True:
            try:
                if not self._reconciled:
                    await self.reconcile()
                await self.look()
            except STORE_FAILURES as error:
                log.warning(
                    "the look for what is over will be tried again", error=str(error), kind=type(error).__name__
                )
            await trio.sleep(self._seconds)

    async def look(self) -> None:
        """Archives what is over, and sweeps out what has expired.

        Raises:
            StoreError, PostgresError ...: The store could not be asked; what was done before stays done.
        """
        while True:
            found = await channels.expired(self._db, PAGE)
            done = 0
            for channel_id in found:
                done += await self._archive(channel_id)
            if len(found) < PAGE or done == 0:
                break
        while await self._sweep():
            pass

    async def _archive(self, channel_id: str) -> bool:
        outcome = await self._submit(partial(archive_expired, channel_id=channel_id))
        if outcome is STORED:
            metrics.REAPED.labels("channel").inc()
            log.info("an ephemeral channel was archived", channel=channel_id)
        return outcome is STORED

    async def _sweep(self) -> bool:
        """Whether something was found, and there may be more."""
        outcome = await self._submit(expiry.sweep)
        swept = int(outcome.message) if outcome.accepted else 0
        if not swept:
            return False
        metrics.REAPED.labels("event").inc(swept)
        return True

    async def reconcile(self) -> None:
        """Gives 39000, 39001 and 39002 to every channel that lacks one of them.

        Raises:
            StoreError, PostgresError ...: As `look`.
        """
        after, complete = NIL_UUID, True
        while found := await channels.without_state(self._db, self._pubkey, GROUP_STATE_KINDS, after=after, limit=PAGE):
            for channel_id in found:
                outcome = await self._submit(partial(complete_state, channel_id=channel_id))
                complete = complete and outcome.accepted
            after = found[-1]
        self._reconciled = complete


async def archive_expired(effect: Effect, *, channel_id: str) -> Outcome:
    """Archives the channel if its time is still over."""
    await effect.turn.take(channel_id)
    if not await channels.lock_expired(effect.con, channel_id):
        raise Ended(_NOTHING)
    await channels.archive(effect.con, channel_id)
    effect.audit(Action.CHANNEL_UPDATED, None, channel_id, metadata={"changed": "archived", "reason": "ttl"})
    effect.invalidations.append(lambda directory: directory.invalidate_channel(channel_id))
    await store_system_message(effect, channel_id, type="channel_auto_archived")
    await store_group_state(effect, channel_id)
    return STORED


async def complete_state(effect: Effect, *, channel_id: str) -> Outcome:
    """Stores the channel's state events if one of them is still missing."""
    await effect.turn.take(channel_id)
    if await channels.lock(effect.con, channel_id) is None:
        raise Ended(_NOTHING)
    if await channels.has_state(effect.con, effect.key.public_hex, GROUP_STATE_KINDS, channel_id):
        raise Ended(_NOTHING)
    await store_group_state(effect, channel_id)
    return STORED
