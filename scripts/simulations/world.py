# ruff: noqa: ARG002  # stand-ins have the signatures of what they stand for
"""One life of a relay in the simulation: the real supervisor, script, ingest, audit worker and sink, from the start to
the end, on a simulated PostgreSQL, by Trio's mock clock and a scheduler whose order the seed decides.

In: a scenario. Out: a `Life`, which the judge (judge.py) holds against what was promised. Stand-ins are the web server
(clients are tasks here), the fan-out's listeners (nobody subscribes), and the database.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import structlog
import trio
from trio._core import _run as scheduler
from trio.testing import MockClock

from relay import assembly, supervisor
from relay.access.directory import Directory
from relay.access.identity import AuthMethod, Caller
from relay.audit.checkpointer import Checkpointer
from relay.audit.entry import Action, Entry, new_entry
from relay.audit.log import chain_outbox
from relay.audit.note import Checkpoint
from relay.audit.sink import RETRIED, PoolSink
from relay.config import Settings, load
from relay.errors import StoreGone
from relay.fanout.hub import Hub
from relay.ingest.effects import Effect
from relay.ingest.pipeline import Ingest
from relay.ingest.types import STORED, Admission, Outcome, Route
from relay.nostr.event import Event
from relay.shutdown import Stop, finish, seal
from relay.store.own_connection import Connect
from scripts.simulations.connection import SimulatedPool, connect
from scripts.simulations.life import EPOCH_US, KEY, Life, MemoryLedger, Request, SimulatedSpool, now_us
from scripts.simulations.mood import CALM
from scripts.simulations.scenario import Scenario
from scripts.simulations.server import Server

OURS, NEIGHBOUR, NEXT_START = "ours", "neighbour", "next start"
# A life that has not ended by then will not end.
LIFE_SECONDS_MAX = 300.0
_ALICE = Caller("ab" * 32, frozenset({"messages:write"}), AuthMethod.PUBKEY)
_BASE: list[Settings] = []


class _Stop(Stop):
    """Remembers what it was told of a crash."""

    def __init__(self, life: Life, seconds: float) -> None:
        super().__init__(cast("Any", _Watchdog(life)), seconds)
        self._life = life

    def crashed(self, name: str, error: BaseException) -> None:
        self._life.crashes.append(f"{name}: {_leaf(error)!r}")
        super().crashed(name, error)


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Watchdog:
    """Armed at T. The thread of the real one would live by another clock."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def arm(self, seconds: float, exit_code: Callable[[], int]) -> None:
        if self._life.began_stopping is None:
            self._life.began_stopping = trio.current_time()


class SimulatedRelay:
    """The parts, put together as relay/assembly.py does. Implements `relay.supervisor.Relay`."""

    def __init__(self, life: Life, settings: Settings) -> None:
        scenario, server = life.scenario, life.server
        self.life = life
        self.announced = trio.Event()
        self.refusing = False
        self.reading = trio.CancelScope()
        self.connections = trio.CancelScope()
        self.connections_ended = trio.Event()
        self.app: Any = None
        self._own: list[Any] = []
        self._ended_input = False
        self.pool = SimulatedPool(server, OURS, size_max=settings.audit_pool_size_max, name="audit")
        self.ledger = MemoryLedger(life)
        self.checkpointer = Checkpointer(
            self.ledger, key=KEY, keep=self._keep, entries_max=settings.audit_checkpoint_entries, seconds=1.0
        )
        self.worker = self._audit_worker = life.worker = assembly._audit_worker(settings, self.pool, self.checkpointer)
        self.hub = Hub(cast("Any", None), queue=settings.fanout_queue, now=self._now)
        directory = Directory(self.pool, settings)
        self.ingest = Ingest(
            settings,
            pool=self.pool,
            connect=cast("Connect", self._connect),
            connect_commit=cast("Connect", self._connect),
            directory=directory,
            hub=self.hub,
            audit=self.worker,
            key=KEY,
            now_us=now_us,
            spool=SimulatedSpool(life),
        )
        self._forgotten = self.worker.producer() if scenario.forgetful else None
        self.sibling: Callable[[], Awaitable[None]] = trio.sleep_forever

    async def _connect(self) -> Any:
        connection = await connect(self.life.server, OURS)
        connection.answer_seconds = 12.0
        self._own.append(connection)
        return connection

    @staticmethod
    def _now() -> float:
        return trio.current_time()

    @property
    def audit(self) -> Any:
        return self.worker.run

    @property
    def workers(self) -> Sequence[tuple[str, Any]]:
        return [("fan-out", self.hub.run), *self.ingest.tasks()]

    @property
    def timers(self) -> Sequence[tuple[str, Any]]:
        return [
            ("refusal counts", self.ingest.run_notes),
            ("checkpoints", self.checkpointer.run),
            ("sibling", self._sibling),
        ]

    @property
    def listeners(self) -> Sequence[tuple[str, Any]]:
        return []

    async def _sibling(self) -> None:
        await self.sibling()

    def announce(self, addresses: Sequence[str]) -> None:
        self.announced.set()

    async def seal(self) -> None:
        await self.checkpointer.last()

    async def _keep(self, checkpoint: Checkpoint) -> None:
        await trio.sleep(self.life.server.mood.latency_seconds * 0.1)
        self.life.signed.append((checkpoint.size, checkpoint.root))

    def refuse_new_work(self) -> None:
        self.refusing = True
        self.ingest.close()

    async def close_connections(self, code: int, reason: str) -> None:
        self.reading.cancel()
        with trio.move_on_after(self.life.scenario.drain_seconds * 0.4):
            await self.connections_ended.wait()
            return
        self.connections.cancel()

    def end_input(self) -> None:
        if not self._ended_input:
            self._ended_input = True
            self.ingest.finish()
            self.hub.close()

    def drain_audit_until(self, deadline: float) -> None:
        self.worker.begin_drain(deadline)

    def abort(self) -> None:
        self.life.aborted = True
        self.checkpointer.cut_off()
        self.pool.abort()
        self.close_own_connections()

    def close_own_connections(self) -> None:
        for connection in self._own:
            connection.terminate()

    def drain_result(self) -> tuple[bool, int]:
        return assembly.Parts.drain_result(cast("Any", self))  # the real one


class Clients:
    """The web server's part: a task a connection, until they are told to go."""

    def __init__(self, life: Life, relay: SimulatedRelay) -> None:
        self.life = life
        self.relay = relay
        self.flood = trio.Event()
        self._number = 0
        self.told = trio.Event()

    async def wait_told_to_stop(self) -> str:
        await self.told.wait()
        return "the launcher ends"

    async def serve(self, app: Any, *, stop: Callable[[], Awaitable[None]], task_status: Any) -> None:
        task_status.started(["memory"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._connections)
            await stop()
            with trio.CancelScope(shield=True):
                await self.relay.connections_ended.wait()

    async def _connections(self) -> None:
        life, relay = self.life, self.relay
        try:
            with relay.connections:
                async with trio.open_nursery() as nursery:
                    for _ in range(life.scenario.clients):
                        nursery.start_soon(self._client)
        finally:
            relay.connections_ended.set()

    async def _client(self) -> None:
        life, dice = self.life, self.life.server.dice
        for _ in range(life.scenario.requests):
            with trio.CancelScope() as reading:
                if self.relay.refusing and dice.random() < 0.5:
                    return
                with trio.move_on_after(life.scenario.pause_seconds * dice.random()):
                    await self.flood.wait()
            if reading.cancelled_caught:
                return
            request = Request(dice.choice(["event", "record", "effect"]), trio.current_time())
            life.requests.append(request)
            patience = dice.uniform(0, 0.2) if dice.random() < life.scenario.impatient else LIFE_SECONDS_MAX
            try:
                with trio.move_on_after(patience) as waiting:
                    request.outcome = await self._ask(request)
                request.left = waiting.cancelled_caught
            except trio.Cancelled:
                request.left = True
                raise
            finally:
                request.ended = trio.current_time()
            self._check_queue()

    async def _ask(self, request: Request) -> Outcome:
        ingest = self.relay.ingest
        if request.what == "record":
            entries = [self._entry() for _ in range(self.life.server.dice.choice([1, 1, 3]))]
            request.uuids = [entry.uuid for entry in entries]
            try:
                await ingest.record(entries)
            except StoreGone as error:
                return Outcome(False, f"error: {error}", cast("Any", error))
            return STORED
        if request.what == "effect":

            async def apply(effect: Effect) -> Outcome:
                entry = self._entry()
                request.uuids.append(entry.uuid)
                effect.entries.append(entry)
                return STORED

            return await ingest.transact(apply, actor=_ALICE.pubkey)
        if self.relay.refusing:  # what admission says; the rest of it has nothing to do with the audit
            return Outcome(False, "error: shutting down", cast("Any", "refused"))
        return await ingest.perform(self._admission(request))

    def _entry(self) -> Entry:
        self._number += 1
        uuid = f"00000000-0000-4000-8000-{self._number:012x}"
        return new_entry(Action.AUTH_SUCCESS, time_us=EPOCH_US + self._number, uuid=uuid)

    def _admission(self, request: Request) -> Admission:
        self._number += 1
        request.event_id = f"{self._number:064x}"
        event = Event(request.event_id, _ALICE.pubkey, 1_767_225_600, 1, [], "", "00" * 64)
        return Admission(event, _ALICE, None, Route.PLAIN, None, False, EPOCH_US + self._number)

    def _check_queue(self) -> None:
        worker = self.relay.worker
        statistics = worker.statistics()
        if statistics.queued > statistics.capacity:
            self.life.breach("the queue holds more than its capacity")
        # Up to the capacity once more, and the one entry that woke the worker; or what a batch lingers for.
        most = max(statistics.capacity + 1, self.life.scenario.batch)
        if not statistics.draining and len(worker._queue.pending) > most:
            self.life.breach("the worker has taken more than its queue may hold")


async def _neighbour(server: Server, stop: trio.Event) -> None:
    """Another node on the same database: chains what it finds, and now and then dies between outbox and log."""
    dice, number = server.dice, 0
    pool = SimulatedPool(server, NEIGHBOUR, size_max=1, name="neighbour")
    sink = PoolSink(pool, entries_max=4)
    while not stop.is_set():
        with trio.move_on_after(dice.uniform(0, 0.6)):
            await stop.wait()
        uuids = [f"00000000-0000-4000-9000-{number + place:012x}" for place in range(dice.choice([0, 1, 3]))]
        number += len(uuids)
        if trio.current_time() >= max(server.down_until, server.frozen_until):
            server.commit_entries(
                [new_entry(Action.AUTH_FAILURE, time_us=EPOCH_US, uuid=uuid) for uuid in uuids], NEIGHBOUR
            )
        if dice.random() < 0.7:
            try:
                with trio.move_on_after(10):
                    await sink.chain_batch()
            except RETRIED:
                continue
    pool.abort()


async def _blow(life: Life, clients: Clients, at: float, what: str, seconds: float) -> None:
    server = life.server
    await trio.sleep_until(at)
    if what == "freeze":
        server.freeze(seconds)
    elif what == "crash":
        server.crash(seconds)
    elif what == "flood":
        clients.flood.set()
    else:
        await server.hold_row(seconds)


async def _end(life: Life, stop: Stop, relay: SimulatedRelay, clients: Clients, outside: trio.CancelScope) -> None:
    scenario = life.scenario
    await relay.announced.wait()
    await trio.sleep_until(scenario.ends_at)
    if scenario.ending == "launcher":
        clients.told.set()
        stop.request(await clients.wait_told_to_stop())
    elif scenario.ending == "cancelled":
        outside.cancel()
    elif scenario.ending not in ("sibling", "worker"):
        stop.request("SIGTERM")
    if scenario.ending == "two signals":
        await trio.sleep(scenario.second_signal_after)
        stop.request("SIGINT")
    if scenario.ending == "worker":
        await trio.sleep(10)  # for a worker that has nothing to do, and so meets nothing
        stop.request("SIGTERM")


def _misbehave(scenario: Scenario, relay: SimulatedRelay) -> None:
    if scenario.ending == "sibling":

        async def crash() -> None:
            await trio.sleep_until(scenario.ends_at)
            raise ZeroDivisionError("a sibling's bug")

        relay.sibling = crash
    if scenario.ending == "worker":
        sink: Any = relay.worker._sink
        chain_batch = sink.chain_batch

        async def bug() -> Any:
            if trio.current_time() >= scenario.ends_at:
                raise ZeroDivisionError("a bug in the sink")
            return await chain_batch()

        sink.chain_batch = bug


async def _live(life: Life) -> None:
    scenario, server = life.scenario, life.server
    settings = _settings(scenario)
    stop = _Stop(life, settings.shutdown_seconds)
    relay = SimulatedRelay(life, settings)
    clients = Clients(life, relay)
    _misbehave(scenario, relay)
    neighbours_end, ended = trio.Event(), trio.Event()
    async with trio.open_nursery() as world:
        if scenario.neighbour:
            world.start_soon(_neighbour, server, neighbours_end)
        for blow in scenario.blows:
            world.start_soon(_blow, life, clients, *blow)
        with trio.CancelScope() as outside:
            world.start_soon(_end, life, stop, relay, clients, outside)
            try:
                database: Any = SimpleNamespace(server=None)
                await supervisor._run(settings, clients, database, cast("Any", relay), stop, own_process=False)
                finish(stop, cast("Any", relay))
                await seal(cast("Any", relay))
            except Exception as error:
                life.error = error
            if outside.cancel_called:
                finish(stop, cast("Any", relay))
        life.ended = trio.current_time()
        life.code = stop.exit_code
        relay.close_own_connections()
        relay.pool.abort()
        life.at_end = {row.entry.uuid for row in server.log}
        life.in_outbox_at_end = {entry.uuid for entry in server.outbox.values()}
        life.written = relay.worker.statistics().written_total
        life.clients_left = len(relay.worker._queue.producers)
        if relay._forgotten is not None:
            relay._forgotten.close()
        ended.set()
        neighbours_end.set()


async def _restart(life: Life) -> None:
    """The next start, when the weather has cleared: chains what was left."""
    server = life.server
    server.mood = CALM
    server.frozen_until = server.down_until = 0.0
    connection = await connect(server, NEXT_START)
    await SimulatedSpool(life, sound=True).replay(connection)
    await chain_outbox(connection)
    connection.terminate()


async def _run(scenario: Scenario, directory: Path) -> Life:
    dice = random.Random(f"life {scenario.seed}")
    life: Life | None = None
    with trio.move_on_after(LIFE_SECONDS_MAX) as whole:
        async with trio.open_nursery() as behind_the_scenes:
            life = Life(scenario, Server(dice, behind_the_scenes, scenario.mood), directory)
            await _live(life)
        await _restart(life)
    assert life is not None
    if whole.cancelled_caught:
        life.breach(f"it had not ended after {LIFE_SECONDS_MAX:g} s")
    return life


def live(scenario: Scenario) -> Life:
    """Run one life. The same scenario gives the same life."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # fsync is not what is tried here
    with _quiet(), _ordered(scenario.seed), TemporaryDirectory(prefix="relay-life-", dir=memory) as directory:
        return trio.run(_run, scenario, Path(directory), clock=MockClock(autojump_threshold=0))


@contextmanager
def _ordered(seed: int) -> Iterator[None]:
    """Which of the tasks that could run does run is decided by the seed."""
    state, before = scheduler._r.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._r.seed(seed)
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        yield
    finally:
        scheduler._r.setstate(state)
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]


@contextmanager
def _quiet() -> Iterator[None]:
    """Thousands of lives tell nobody anything by their log lines."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _settings(scenario: Scenario) -> Settings:
    if not _BASE:
        _BASE.append(load({}))
    return _BASE[0].model_copy(
        update={
            "grace_seconds": scenario.grace_seconds,
            "audit_drain_seconds": scenario.drain_seconds,
            "close_seconds": scenario.drain_seconds * 0.4,
            "audit_queue": scenario.queue,
            "audit_batch": scenario.batch,
            "commit_queue": scenario.commit_queue,
            "effect_workers": scenario.effect_workers,
        }
    )
