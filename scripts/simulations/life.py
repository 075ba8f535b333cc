"""What one life leaves behind for the judge, and the two parts of it that keep something beside the database: the spool
on a disk that may fail, and the ledger of checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from relay.asyncpg_trio import ConnectionLost
from relay.audit import note
from relay.audit.checkpoints import Stored
from relay.audit.note import Checkpoint
from relay.audit.signing import Latest, Memory
from relay.audit.spool import Spool, SpoolError
from relay.audit.tree import Frontier
from relay.audit.worker import AuditWorker
from relay.ingest.types import Outcome
from relay.nostr.keys import SecretKey
from relay.shutdown import ExitCode
from scripts.simulations.scenario import Scenario
from scripts.simulations.server import Server

EPOCH_US = 1_767_225_600_000_000
KEY = SecretKey.from_hex("01" * 32)


@dataclass(eq=False)
class Request:
    """What one client asked for: entries by their uuids (plain events: by the event's id) and what became of it."""

    what: str
    began: float
    uuids: list[str] = field(default_factory=list)
    event_id: str | None = None
    outcome: Outcome | None = None
    left: bool = False  # the client went away
    ended: float | None = None


@dataclass(eq=False)
class Life:
    """All that the judge needs to know."""

    scenario: Scenario
    server: Server
    directory: Path
    signed: list[tuple[int, bytes]] = field(default_factory=list)  # checkpoints: size and root
    spool_doubts: int = 0
    crashes: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    worker: AuditWorker | None = None
    code: ExitCode | None = None
    error: BaseException | None = None
    began_stopping: float | None = None  # T: accepting ends
    ended: float = 0.0
    at_end: set[str] = field(default_factory=set)  # what was in the log when the relay had ended
    in_outbox_at_end: set[str] = field(default_factory=set)
    written: int = 0  # by what the worker says
    clients_left: int = 0
    aborted: bool = False

    def breach(self, text: str) -> None:
        if text not in self.breaches:
            self.breaches.append(text)


class SimulatedSpool(Spool):
    """The real one, on a disk that may refuse, or stop; its steps are done in place of a thread's."""

    def __init__(self, life: Life, *, sound: bool = False) -> None:
        super().__init__(life.directory / "spool", now_us)
        self._life = life
        self._sound = sound

    async def _in_thread(self, function: Any, *args: Any) -> Any:  # type: ignore[override]
        dice = self._life.server.dice.random()
        await trio.lowlevel.checkpoint()
        if not self._sound and dice < 0.1:
            if dice < 0.05:  # it is done, and nobody hears of it
                await trio.sleep(self._disk_seconds)
                function(*args)
            self._life.spool_doubts += 1
            raise SpoolError("the disk did not answer in time")
        try:
            return function(*args)
        except OSError as error:
            raise SpoolError(str(error)) from error


class MemoryLedger:
    """Signs what the log holds, and remembers it."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._latest: Latest | None = None
        self._gone = False

    async def sign_next(self, memory: Memory) -> Latest | None:
        server = self._life.server
        known = memory.snapshot()
        await trio.sleep(max(server.frozen_until - trio.current_time(), 0.0))
        if self._gone or trio.current_time() < server.down_until or server.dice.random() < server.mood.lost:
            raise ConnectionLost("the connection was lost")
        tree = Frontier()
        for row in server.log:
            if known is not None and tree.size == known.size and tree.root() != known.root():
                self._life.breach("the worker told of a batch that is not in the log")
            tree.append(row.hash)
        if known is not None and known.size > tree.size:
            self._life.breach("the worker told of more than is in the log")
        if not tree.size:
            return None
        if self._latest is None or self._latest.checkpoint.size != tree.size:
            checkpoint = note.sign("simulation", tree.size, tree.root(), KEY)
            self._life.signed.append((tree.size, tree.root()))
            self._latest = Latest(Stored(checkpoint, now_us(), None), tree, made=True)
        return self._latest

    async def note_event(self, _checkpoint: Checkpoint, _event_id: str) -> None:
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        self._gone = True


def now_us() -> int:
    return EPOCH_US + int(trio.current_time() * 1e6)
