"""The checkpointer: the task that has the log signed every N entries, every T seconds, and at the end.

In: word of every batch that was chained (`chained`), and time. Out: signed checkpoints, in this order: a row in the
database, a record in the file, an event that anybody may keep, and word to whoever wants more signatures
(`on_checkpoint`). The task is a timer of the root nursery; it ends by cancellation, and `last` then signs once more.

Rules
-----
1. Nobody waits for a checkpoint. What fails is tried again for ever, with back-off; entries are chained meanwhile.
2. An idle relay neither signs nor asks the database. The entry of a checkpoint's own event is no reason to sign.
3. Each step is found out, not remembered: a pass takes the newest checkpoint, whoever signed it and whenever, and sees
   to it that it is in the file and published. So what a crash, another node or a full disk left undone is done later.
4. A log that does not continue what was signed is never signed. The task goes on looking, for it may be repaired, the
   relay is not ready meanwhile, and goes on chaining: ending would only hide what happens next. The next start refuses.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from relay import metrics
from relay.audit import checkpoint_file, note
from relay.audit.log import Batch
from relay.audit.note import Checkpoint
from relay.audit.signing import Latest, Ledger, Memory
from relay.errors import AuditError
from relay.nostr.event import Event, sign_event
from relay.nostr.keys import SecretKey
from relay.nostr.kinds import AUDIT_CHECKPOINT
from relay.store.failures import STORE_FAILURES

ENTRIES_MAX = 10_000
SECONDS_MAX = 60.0
BACKOFF_SECONDS_MIN = 0.5
BACKOFF_SECONDS_MAX = 60.0
# A disk that takes longer than this for 300 bytes has stopped.
FILE_SECONDS = 5.0
# Of the time that `last` has; the rest is for the file.
LAST_DATABASE_SECONDS = 0.2

Keep = Callable[[Checkpoint], Awaitable[None]]
"""Append to the file. Raises OSError or trio.TooSlowError where it is not known to be there."""
Publish = Callable[[Event], Awaitable[bool]]
"""Store and deliver an event that the relay has signed, once; False if that has to be tried again."""

_FAILURES = (*STORE_FAILURES, OSError, trio.TooSlowError)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointStatistics:
    """`size` is -1 before the first; `behind` is how many entries this process has chained since the last look, and
    `disagreement` the sentence that says why nothing is signed."""

    size: int
    time_us: int
    behind: int
    failures: int
    published: bool
    in_file: bool
    disagreement: str | None

    @property
    def healthy(self) -> bool:
        return self.disagreement is None


class Checkpointer:
    """See the module's docstring. One per process; `run` is called once, then perhaps `last`."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        key: SecretKey,
        keep: Keep,
        publish: Publish | None = None,
        on_checkpoint: Callable[[Checkpoint], object] = lambda _: None,
        entries_max: int = ENTRIES_MAX,
        seconds: float = SECONDS_MAX,
    ) -> None:
        assert entries_max > 0
        self._ledger = ledger
        self._key = key
        self._keep = keep
        self._publish = publish
        self._on_checkpoint = on_checkpoint
        self._entries_max = entries_max
        self._seconds = seconds
        self._memory = Memory()
        self._latest: Latest | None = None
        self._filed: str | None = None  # the text of the checkpoint known to be in the file
        self._published: str | None = None
        self._told: str | None = None
        self._disagreement: str | None = None
        self._failures = 0  # in a row
        self._cut_off = False
        # At the start nobody knows what the last run has left: one pass at once.
        self._behind = 1
        self._due = -math.inf
        self._woken = trio.Event()

    # -- for others --------------------------------------------------------------------------------------------------

    def chained(self, batch: Batch) -> None:
        """A batch was committed. Never waits; for `AuditWorker`."""
        self._memory.chained(batch)
        if self._behind == 0:
            self._due = trio.current_time() + self._seconds
        self._behind += batch.written
        self._woken.set()

    def statistics(self) -> CheckpointStatistics:
        latest = self._latest
        text = None if latest is None else latest.checkpoint.text
        return CheckpointStatistics(
            size=-1 if latest is None else latest.checkpoint.size,
            time_us=0 if latest is None else latest.stored.time_us,
            behind=self._behind,
            failures=self._failures,
            published=text is not None and self._published == text,
            in_file=text is not None and self._filed == text,
            disagreement=self._disagreement,
        )

    def filed(self, checkpoint: Checkpoint) -> None:
        """The file was read, and ends with this one."""
        self._filed = checkpoint.text

    def cut_off(self) -> None:
        """The database is not asked any more. Synchronous."""
        self._cut_off = True
        self._ledger.abort()

    # -- the task ----------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sign, for ever.

        Cancellation: at any moment; what a step has not done, the next start does.
        """
        task_status.started()
        while True:
            await self._wait_due()
            await trio.sleep(await self._pass())

    async def last(self) -> None:
        """Sign what the last entries left, for the next start to publish. To the file alone where the database does not
        answer: then it covers what this process knows to be committed.

        To be called when `run` has ended and nothing is chained any more. Never raises for a failure.
        Cancellation: at any moment; the caller sets the deadline.
        """
        latest = None
        try:
            if not self._cut_off:
                with trio.fail_after(LAST_DATABASE_SECONDS):
                    latest = await self._ledger.sign_next(self._memory)
        except AuditError as error:
            self._disagrees(error)
            return
        except _FAILURES as error:
            _log.warning("the last checkpoint goes to the file alone", error=repr(error))
        checkpoint = self._by_heart() if latest is None else latest.checkpoint
        if checkpoint is None or checkpoint.text == self._filed:
            return
        try:
            await self._keep(checkpoint)
            _log.info("the last checkpoint", size=checkpoint.size, in_database=latest is not None)
        except _FAILURES as error:
            _log.warning("the last checkpoint could not be written to the file", error=repr(error))

    async def _wait_due(self) -> None:
        while self._behind < self._entries_max:
            self._woken = trio.Event()
            if self._behind == 0:
                await self._woken.wait()
                continue
            if trio.current_time() >= self._due:
                return
            with trio.move_on_at(self._due):
                await self._woken.wait()

    async def _pass(self) -> float:
        """One look at the log and at what became of the newest checkpoint; how long to rest before the next one."""
        # Entries that come from here on are the next pass's, whether this one still sees them or not.
        self._behind, behind = 0, self._behind
        try:
            latest = await self._ledger.sign_next(self._memory)
        except AuditError as error:
            self._disagrees(error)
            self._again(behind)
            return min(self._seconds, BACKOFF_SECONDS_MAX)
        except _FAILURES as error:
            self._failed("sign", error)
            self._again(behind)
            return self._backoff()
        self._agrees()
        if latest is not None:
            self._note(latest)
            done = [await self._step("file", self._write), await self._step("publish", self._tell_everybody)]
            if not all(done):
                self._again(1)
                return self._backoff()
        self._failures = 0
        return 0

    def _note(self, latest: Latest) -> None:
        self._latest = latest
        checkpoint = latest.checkpoint
        self._memory.signed(latest.frontier)
        metrics.AUDIT_CHECKPOINT_SIZE.set(checkpoint.size)
        metrics.AUDIT_CHECKPOINT_TIME.set(latest.stored.time_us / 1e6)
        if latest.made:
            metrics.AUDIT_CHECKPOINTS.inc()
            _log.info("signed a checkpoint of the audit log", size=checkpoint.size, root=checkpoint.root.hex())
        if checkpoint.text != self._told:
            self._told = checkpoint.text
            self._on_checkpoint(checkpoint)

    async def _step(self, name: str, step: Callable[[Latest], Awaitable[None]]) -> bool:
        assert self._latest is not None
        try:
            await step(self._latest)
        except _FAILURES as error:
            self._failed(name, error)
            return False
        return True

    async def _write(self, latest: Latest) -> None:
        if self._filed != latest.checkpoint.text:
            await self._keep(latest.checkpoint)
            self._filed = latest.checkpoint.text

    async def _tell_everybody(self, latest: Latest) -> None:
        checkpoint = latest.checkpoint
        if self._publish is None or self._published == checkpoint.text:
            return
        if latest.stored.event_id is None:
            event = event_of(self._key, checkpoint, latest.stored.time_us)
            if not await self._publish(event):
                raise OSError("it was not accepted")
            await self._ledger.note_event(checkpoint, event.id)
        self._published = checkpoint.text

    def _by_heart(self) -> Checkpoint | None:
        tree = self._memory.snapshot()
        if tree is None or self._latest is None or tree.size <= self._latest.checkpoint.size or self._disagreement:
            return None
        return note.sign(self._latest.checkpoint.origin, tree.size, tree.root(), self._key)

    def _again(self, behind: int) -> None:
        self._behind += behind
        self._due = trio.current_time()

    def _backoff(self) -> float:
        self._failures += 1
        return min(BACKOFF_SECONDS_MIN * 2.0 ** min(self._failures - 1, 10), BACKOFF_SECONDS_MAX)

    def _failed(self, step: str, error: Exception) -> None:
        metrics.AUDIT_CHECKPOINT_FAILURES.labels(step).inc()
        _log.warning("a checkpoint has to wait", step=step, error=repr(error), failures=self._failures + 1)

    def _disagrees(self, error: AuditError) -> None:
        metrics.AUDIT_CHECKPOINT_DISAGREEMENT.set(1)
        metrics.AUDIT_CHECKPOINT_FAILURES.labels("sign").inc()
        self._disagreement = str(error)
        _log.critical("the audit log is not what was signed: nothing is signed any more", reason=str(error))

    def _agrees(self) -> None:
        if self._disagreement is not None:
            _log.warning("the audit log is again what was signed")
        self._disagreement = None
        metrics.AUDIT_CHECKPOINT_DISAGREEMENT.set(0)


class File:
    """The file as `Keep`: in a thread, with a deadline."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # One write at a time: threads that a disk holds must not pile up.
        self._writers = trio.CapacityLimiter(1)

    async def append(self, checkpoint: Checkpoint) -> None:
        """Cancellation: the thread is left behind. It holds nothing but the file, and ends with the process."""
        with trio.fail_after(FILE_SECONDS):
            await trio.to_thread.run_sync(
                checkpoint_file.append, self._path, checkpoint, abandon_on_cancel=True, limiter=self._writers
            )


def event_of(key: SecretKey, checkpoint: Checkpoint, time_us: int) -> Event:
    """The event that publishes a checkpoint: the same one whenever it is made, so that it is stored once. Witnesses'
    lines are not in it: they come later."""
    note_text = f"{checkpoint.text}\n{checkpoint.signatures[0].line}\n"
    tags = [
        ["origin", checkpoint.origin],
        ["size", str(checkpoint.size)],
        ["root", checkpoint.root.hex()],
        ["alt", f"checkpoint of the audit log at {checkpoint.size} entries"],  # NIP-31
    ]
    return sign_event(key, created_at=time_us // 1_000_000, kind=AUDIT_CHECKPOINT, tags=tags, content=note_text)
