"""Who may receive which channel, in memory, for every channel that has live subscriptions.

Loaded by a task of its own (`run_loader`), because the fan-out task never waits for the database, but changed only by
the fan-out task, in commit order: what is loaded comes back to it as an item of its own queue. Changes that arrive
while a load is under way are kept and applied to what was loaded. Adding and removing a key and putting the whole
audience in place are idempotent, and the changes are in commit order, so the result is right whether or not the load
saw them already.

An unknown channel is delivered to nobody.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import structlog
import trio

from relay.errors import StoreError
from relay.fanout.items import AudienceLoaded, Batch, Joined, Left, Live, LiveSubscription, Redefined
from relay.store.failures import STORE_FAILURES
from relay.store.members import Audience

log = structlog.get_logger()

Load = Callable[[Sequence[str]], Awaitable[Mapping[str, Audience]]]

WAITING_EVENTS_MAX = 1000
"""Events of one channel that may wait for its audience; a load takes milliseconds."""

RETRY_SECONDS = 0.25

Change = Joined | Left | Redefined


class _Record:
    __slots__ = ("changes", "error", "gone", "known", "members", "open", "ready", "waiting")

    def __init__(self) -> None:
        self.known = False
        self.gone = False  # there is no such channel, and nobody can join it
        self.open = False
        self.members: set[str] = set()
        self.changes: list[Change] = []
        self.waiting: deque[Live] = deque()
        self.ready = trio.Event()
        self.error: Exception | None = None


class Audiences:
    """The records by channel. `forget` asks whether a channel may go when there are more than `capacity`."""

    def __init__(self, load: Load, *, capacity: int, in_use: Callable[[str], bool]) -> None:
        self._load = load
        self._capacity = capacity
        self._in_use = in_use
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._wanted: deque[str] = deque()
        self._work = trio.Event()

    def __len__(self) -> int:
        return len(self._records)

    def may_receive(self, channel_id: str, pubkey: str) -> bool:
        """False too where nothing is known."""
        record = self._records.get(channel_id)
        return record is not None and record.known and (record.open or pubkey in record.members)

    def permitted(self, channel_id: str, subscriptions: Iterable[LiveSubscription]) -> list[LiveSubscription]:
        """Those whose connections may receive the channel, as `may_receive` says it."""
        record = self._records.get(channel_id)
        if record is None or not record.known:
            return []
        if record.open:
            return [each for each in subscriptions if each.connection.caller is not None]
        members = record.members
        return [
            each
            for each in subscriptions
            if (caller := each.connection.caller) is not None and caller.pubkey in members
        ]

    def is_known(self, channel_id: str) -> bool:
        record = self._records.get(channel_id)
        return record is not None and record.known

    async def watch(self, channel_ids: Sequence[str]) -> None:
        """Returns when all of them are known, at the same time.

        Raises:
            StoreError: The store could not be asked.
        """
        while unknown := [channel_id for channel_id in channel_ids if not self.is_known(channel_id)]:
            # All are wanted before one is waited for: they are loaded together, and none is let go meanwhile.
            for record in [self._records.get(channel_id) or self._want(channel_id) for channel_id in unknown]:
                await record.ready.wait()
                if not record.known and record.error is not None:
                    raise StoreError("the members of a channel could not be read") from record.error

    def _want(self, channel_id: str) -> _Record:
        record = self._records[channel_id] = _Record()
        self._wanted.append(channel_id)
        self._work.set()
        return record

    # -- the fan-out task's side ---------------------------------------------------------------------------------

    def hold(self, live: Live) -> bool:
        """Keeps an event of an unknown channel until its audience is there; False where too many wait."""
        assert live.channel_id is not None
        record = self._records.get(live.channel_id) or self._want(live.channel_id)
        if len(record.waiting) >= WAITING_EVENTS_MAX:
            return False
        record.waiting.append(live)
        return True

    def change(self, change: Change) -> None:
        """From here on the channel has this audience; where it is being loaded, from then on."""
        record = self._records.get(change.channel_id)
        if record is None:
            return
        if record.known:
            _apply(record, change)
        else:
            record.changes.append(change)

    def loaded(self, item: AudienceLoaded) -> Sequence[Live]:
        """Takes what was loaded and returns the events that waited for it."""
        record = self._records.get(item.channel_id)
        if record is None or record.known:
            return ()
        _define(record, item.audience)
        for change in record.changes:
            _apply(record, change)
        record.known = True
        record.error = None
        record.ready.set()
        waiting, record.waiting, record.changes = record.waiting, deque(), []
        self._trim()
        return waiting

    def _trim(self) -> None:
        for channel_id in list(self._records)[: max(0, len(self._records) - self._capacity)]:
            if self._records[channel_id].known and not self._in_use(channel_id):
                del self._records[channel_id]
            else:
                self._records.move_to_end(channel_id)

    # -- the loader task -----------------------------------------------------------------------------------------

    async def run_loader(self, out: trio.MemorySendChannel[Batch]) -> None:
        """Loads what is wanted, many channels in one statement. Owner: root nursery; ends by cancellation."""
        async with out:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                wanted = list(dict.fromkeys(self._wanted))
                self._wanted.clear()
                if wanted:
                    await self._load_all(wanted, out)

    async def _load_all(self, wanted: list[str], out: trio.MemorySendChannel[Batch]) -> None:
        try:
            found = await self._load(wanted)
        except STORE_FAILURES as error:
            log.warning("audiences could not be loaded", channels=len(wanted), error=str(error))
            self._fail(wanted, error)
            await trio.sleep(RETRY_SECONDS)
            return
        await out.send(Batch([AudienceLoaded(channel_id, found.get(channel_id)) for channel_id in wanted]))

    def _fail(self, wanted: list[str], error: Exception) -> None:
        for channel_id in wanted:
            record = self._records.get(channel_id)
            if record is None or record.known:
                continue
            if record.waiting or record.changes or self._in_use(channel_id):
                # Somebody is subscribed: try again rather than lose what waits.
                self._wanted.append(channel_id)
                self._work.set()
                failed, record.ready = record.ready, trio.Event()
            else:
                failed = self._records.pop(channel_id).ready
            record.error = error
            failed.set()


def _define(record: _Record, audience: Audience | None) -> None:
    record.gone = audience is None
    record.open = audience is not None and audience.visibility == "open"
    record.members = set() if audience is None else set(audience.members)


def _apply(record: _Record, change: Change) -> None:
    if isinstance(change, Redefined):
        _define(record, change.audience)
    elif isinstance(change, Left):
        record.members.discard(change.pubkey)
    elif not record.gone:
        record.members.add(change.pubkey)
