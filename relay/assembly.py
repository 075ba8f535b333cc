"""The parts of a relay, made in the order in which they need each other, and how each of them is stopped.

In: settings and a database that answers. Out: what the supervisor runs (relay/supervisor.py) and the script stops
(relay/shutdown.py). This is the one place that knows all parts; they know each other only downwards. What must go up
is handed over here as a function or a channel. No task is started here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from relay import __version__, admin, metrics
from relay.access import relay_key
from relay.access.authenticate import Authenticator
from relay.access.directory import Directory
from relay.access.token_watch import TokenWatch
from relay.asyncpg_trio import Connection, Pool, connect
from relay.audit import checkpoint_file, outbox, start, witness
from relay.audit import log as audit_log
from relay.audit import spool as audit_spool
from relay.audit.checkpointer import Checkpointer
from relay.audit.checkpointer import File as CheckpointFile
from relay.audit.signing import DatabaseLedger
from relay.audit.sink import PoolSink
from relay.audit.spool import Spool
from relay.audit.verify import verify_head
from relay.audit.witness_client import Peer, peers
from relay.audit.witnesses import Witnesses
from relay.audit.worker import AuditWorker
from relay.config import Settings
from relay.database import Database, connect_patiently
from relay.fanout.hub import Hub
from relay.fanout.presence import Presence
from relay.http.app import create_app
from relay.http.health import create_health_app, create_metrics_app
from relay.http.services import Readiness, Services
from relay.ingest import batch, own_events
from relay.ingest.pipeline import Ingest
from relay.last_message import ASGIApp
from relay.nostr import nip19
from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from relay.shutdown import Stop
from relay.store import members, migrate
from relay.store.own_connection import OwnConnection
from relay.supervisor import Started
from relay.websocket.endpoint import WebSocketEndpoint
from relay.websocket.listener import ListenerLimits, install
from relay.websocket.origin import same_host_or

# An outbox row this old means that nothing is being chained: no new traffic, please.
OUTBOX_AGE_SECONDS_MAX = 10.0
# A probe that gives up must not wait long for a server that does not answer; nor must the last checkpoint of a stop.
PROBE_SETTLE_SECONDS = 0.2
LEDGER_SETTLE_SECONDS = 0.05
# While the database is away, the checkpointer backs off by itself.
LEDGER_PATIENCE_SECONDS = 1.0
LAG_SECONDS = 0.5
# How much later than its own deadline a living server says so.
SILENCE_SECONDS = 2.0
# Before the audit deadline, for the entries that the last producers left in the outbox.
LAST_BATCH_SECONDS = 0.5

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the start found out: the relay's key, what is known of its log, where entries wait that the database cannot
    take, and who cosigns for it."""

    key: SecretKey
    known: start.Known
    spool: Spool
    witnesses: Sequence[Peer]


async def prepare(settings: Settings, database: Database) -> Prepared:
    """Schema, key and audit log as this version needs them.

    Raises:
        MigrationError, ConfigError, AuditError: This relay must not run on this database as it is.
    """
    witness.trusted_logs(settings.audit_witness_for)
    witnesses = peers(settings.audit_witnesses)
    spool = Spool(audit_spool.place(settings, database.data_dir), _now_us)
    async with _connected(await connect_patiently(database.dsn, settings.database_wait_seconds)) as connection:
        await migrate.up(connection)
        key = relay_key.obtain(settings, database.data_dir)
        await relay_key.confirm(connection, key)
        head = await verify_head(connection)
        file = checkpoint_file.place(settings, database.data_dir)
        known = await start.check(connection, key.public_hex, file, _now_us)
        await spool.replay(connection)
        if chained := await audit_log.chain_outbox(connection, entries_max=settings.audit_batch):
            log.info("chained what the last run had left in the outbox", entries=chained)
        signed = known.largest
        log.info("audit log checked", head=head.seq + chained, signed=0 if signed is None else signed.size)
    return Prepared(key, known, spool, witnesses)


@asynccontextmanager
async def assemble(settings: Settings, database: Database, stop: Stop) -> AsyncIterator[Parts]:
    """Everything but the tasks. Raises as `prepare`, and ConfigError where a port is taken."""
    prepared = await prepare(settings, database)
    sessions = {"statement_timeout": _ms(settings.statement_seconds), "lock_timeout": _ms(settings.lock_seconds)}
    main = Pool(
        database.dsn,
        size_max=settings.pool_size_max,
        size_min=settings.pool_size_min,
        acquire_seconds=settings.pool_acquire_seconds,
        statement_seconds=settings.statement_seconds,
        server_settings={**sessions, "application_name": "relay"},
    )
    audit = Pool(
        database.dsn,
        name="audit",
        size_max=settings.audit_pool_size_max,
        size_min=settings.audit_pool_size_min,
        acquire_seconds=settings.pool_acquire_seconds,
        server_settings={"application_name": "relay audit"},
    )
    async with main, audit:
        parts = Parts(settings, database, prepared, stop, main, audit, sessions)
        await parts.open_admin_listeners()
        try:
            yield parts
        finally:
            parts.close_own_connections()


class Parts:
    """See the module. Implements `relay.supervisor.Relay`."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        prepared: Prepared,
        stop: Stop,
        main: Pool,
        audit: Pool,
        sessions: dict[str, str],
    ) -> None:
        self._settings = settings
        self._database = database
        self._key = key = prepared.key
        self._stop = stop
        self._pools = (main, audit)
        self._own: list[Connection] = []
        self._refusing = False
        self._input_ended = False
        self._admin: list[tuple[str, ASGIApp, list[trio.SocketListener]]] = []

        file = checkpoint_file.place(settings, database.data_dir)
        self._witnesses = Witnesses(prepared.witnesses, pool=audit, pubkey=key.public_hex, file=file)
        self._checkpointer = self._make_checkpointer(prepared.known, file)
        self._audit_worker = _audit_worker(settings, audit, self._checkpointer)
        self._directory = Directory(main, settings)
        self._hub = Hub(
            partial(_audiences, main),
            queue=settings.fanout_queue,
            presence=Presence(settings.presence_seconds, time.monotonic),
        )
        ingest_session = {**sessions, "application_name": "relay ingest"}
        # The server itself ends a statement before; where it does not, it has stopped.
        ingest = partial(self._connect, answer_seconds=settings.statement_seconds + SILENCE_SECONDS)
        self._ingest = Ingest(
            settings,
            pool=main,
            connect=partial(ingest, server_settings=ingest_session),
            connect_commit=partial(ingest, server_settings=ingest_session | batch.SESSION),
            directory=self._directory,
            hub=self._hub,
            audit=self._audit_worker,
            key=key,
            now_us=_now_us,
            spool=prepared.spool,
        )
        authenticator = Authenticator(main, settings, settings.relay_url)
        self._endpoint = WebSocketEndpoint(
            settings, self._hub, self._ingest, authenticator, self._directory, main, _now_us
        )
        self._tokens = TokenWatch(
            partial(self._connect, server_settings={"application_name": "relay token watch"}),
            token_ids=self._hub.token_ids,
            holders=self._endpoint.sessions,
            end=self._endpoint.end_identity,
            check_seconds=settings.token_check_seconds,
        )
        self._endpoint.on_login(self._tokens.logged_in)
        self._install_listener()
        self._services = self._http_services(authenticator)
        self.app: ASGIApp = create_app(self._services)

    def _make_checkpointer(self, known: start.Known, file: Path) -> Checkpointer:
        settings, seconds = self._settings, self._settings.statement_seconds
        connect = partial(
            self._connect,
            server_settings={"application_name": "relay checkpoints", "statement_timeout": _ms(seconds)},
            settle_seconds=LEDGER_SETTLE_SECONDS,
            answer_seconds=seconds + SILENCE_SECONDS,
        )
        own = OwnConnection(connect, name="checkpointer", patience_seconds=LEDGER_PATIENCE_SECONDS)
        checkpointer = Checkpointer(
            DatabaseLedger(own, self._key, _now_us),
            key=self._key,
            keep=CheckpointFile(file).append,
            publish=self._publish if settings.audit_publish_checkpoints else None,
            on_checkpoint=self._witnesses.hint,
            entries_max=settings.audit_checkpoint_entries,
            seconds=settings.audit_checkpoint_seconds,
        )
        if known.in_file is not None:
            checkpointer.filed(known.in_file)
        return checkpointer

    async def _publish(self, event: Event) -> bool:
        return await own_events.publish(self._ingest, event)

    def _http_services(self, authenticator: Authenticator) -> Services:
        main, *others = self._pools
        probe = _Probe(
            OwnConnection(
                partial(
                    self._connect,
                    server_settings={"application_name": "relay health"},
                    settle_seconds=PROBE_SETTLE_SECONDS,
                ),
                name="health probe",
                patience_seconds=0.5,
            ),
            healthy=lambda: self._audit_worker.statistics().healthy and self._checkpointer.statistics().healthy,
        )
        began = time.monotonic()
        return Services(
            settings=self._settings,
            pool=main,
            directory=self._directory,
            ingest=self._ingest,
            hub=self._hub,
            audit=self._audit_worker,
            authenticator=authenticator,
            relay_key=self._key,
            readiness=probe.ask,
            shutting_down=lambda: not self._stop.is_ready,
            uptime=lambda: time.monotonic() - began,
            writes_refused=lambda: self._refusing,
            other_pools=tuple(others),
            refuse_event=self._endpoint.limits.refuse_event,
            handling=self._endpoint.guests.handling,
            asking=self._endpoint.guests.asking,
        )

    def _install_listener(self) -> None:
        settings = self._settings
        origins = settings.allowed_origins if settings.cors_origins.strip() else ("*",)
        install(
            self._endpoint,
            admission=self._endpoint.admission,
            arrival=self._endpoint.limits.arrival,
            origin_allowed=same_host_or(origins),
            limits=ListenerLimits(
                head_seconds=settings.handshake_seconds,
                send_stall_seconds=settings.send_stall_seconds,
                stop_seconds=settings.close_seconds,
            ),
        )

    async def open_admin_listeners(self) -> None:
        """Take the ports of health and metrics. Raises ConfigError, which names the setting."""
        settings = self._settings
        for name, port, variable, make_app in (
            ("health", settings.health_port, "SPROUT_HEALTH_PORT", create_health_app),
            ("metrics", settings.metrics_port, "SPROUT_METRICS_PORT", create_metrics_app),
        ):
            if port:
                listeners = await admin.open_listeners(settings.admin_host, port, variable)
                self._admin.append((name, make_app(self._services), listeners))

    async def _connect(self, **options: Any) -> Connection:
        """A connection outside the pools, for one task; remembered, so that `abort` reaches it."""
        connection = await connect(self._database.dsn, **options)
        self._own = [each for each in self._own if not each.is_closed()] + [connection]
        return connection

    # -- what the supervisor runs ------------------------------------------------------------------------------------

    @property
    def audit(self) -> Started:
        return self._audit_worker.run

    @property
    def workers(self) -> Sequence[tuple[str, Started]]:
        return [("fan-out", self._hub.run), *self._ingest.tasks()]

    @property
    def timers(self) -> Sequence[tuple[str, Callable[[], Awaitable[object]]]]:
        return [
            ("heartbeat", self._endpoint.run_heartbeat),
            ("audience loader", self._hub.run_loader),
            ("refusal counts", self._ingest.run_notes),
            ("reaper", self._ingest.run_reaper),
            ("audit checkpoints", self._checkpointer.run),
            ("audit witnesses", self._witnesses.run),
            ("token watch", self._tokens.run),
            ("token expiries", self._tokens.run_expiries),
            ("loop lag", _measure_loop_lag),
        ]

    @property
    def listeners(self) -> Sequence[tuple[str, Started]]:
        return [
            (f"{name} listener", partial(admin.serve, app, listeners, self._stop.requested.is_set))
            for name, app, listeners in self._admin
        ]

    def announce(self, addresses: Sequence[str]) -> None:
        """One log line for machines, a few on standard output for whoever has just started it at a terminal."""
        settings = self._settings
        beside = {name: f"{settings.admin_host}:{_port(listeners[0])}" for name, _, listeners in self._admin}
        log.info("ready", listening=list(addresses), relay_url=settings.relay_url, key=self._key.public_hex, **beside)
        where = str(self._database.data_dir) if self._database.server is not None else "DATABASE_URL"
        lines = [
            f"relay {__version__} is ready. Stop it with Ctrl-C or SIGTERM.",
            f"  connect   {settings.relay_url}   (listening on {', '.join(addresses)})",
            f"  relay key {nip19.encode_npub(self._key.public_hex)}",
            f"  data      {where}",
        ]
        if "health" in beside:
            lines.append(f"  health    http://{beside['health']}/_readiness")
        if "metrics" in beside:
            lines.append(f"  metrics   http://{beside['metrics']}/metrics")
        _say("\n".join(lines) + "\n")

    # -- what the script does, in the order of its phases --------------------------------------------------------------

    def refuse_new_work(self) -> None:
        self._refusing = True
        self._ingest.close()
        self._endpoint.drain()

    async def close_connections(self, code: int, reason: str) -> None:
        self._endpoint.stop_reading()
        settings = self._settings
        await self._endpoint.close_all(code, reason, settings.flush_seconds, settings.close_seconds)

    def end_input(self) -> None:
        if not self._input_ended:
            self._input_ended = True
            self._ingest.finish()
            self._hub.close()

    def drain_audit_until(self, deadline: float) -> None:
        self._audit_worker.begin_drain(deadline)

    def abort(self) -> None:
        self._checkpointer.cut_off()
        for pool in self._pools:
            pool.abort()
        self.close_own_connections()

    def close_own_connections(self) -> None:
        """Those of tasks that did not end by themselves."""
        for connection in self._own:
            connection.terminate()

    async def seal(self) -> None:
        await self._checkpointer.last()

    def drain_result(self) -> tuple[bool, int]:
        report = self._audit_worker.report
        return (True, 0) if report is None else (report.finished, self._audit_worker.left)


def _audit_worker(settings: Settings, pool: Pool, checkpointer: Checkpointer) -> AuditWorker:
    return AuditWorker(
        PoolSink(pool, entries_max=settings.audit_batch),
        capacity=settings.audit_queue,
        batch_entries=settings.audit_batch,
        linger_seconds=settings.audit_linger_seconds,
        drain_seconds=settings.audit_drain_seconds,
        producers_seconds=max(0.0, settings.audit_drain_seconds - LAST_BATCH_SECONDS),
        on_chained=checkpointer.chained,
    )


class _Probe:
    """Readiness. Asks over a connection of its own, so that a full pool does not make the relay unready."""

    def __init__(self, own: OwnConnection, healthy: Callable[[], bool]) -> None:
        self._own = own
        self._healthy = healthy  # as far as this process knows, without asking
        self._turn = trio.Lock()

    async def ask(self) -> Readiness:
        """Raises what the store raises; bounded by its caller."""
        async with self._turn:
            age = await outbox.oldest_age_seconds(await self._own.get())
        return Readiness(postgres=True, audit=age < OUTBOX_AGE_SECONDS_MAX and self._healthy())


async def _measure_loop_lag() -> None:
    """How much later than asked a timer fires: what every client waits when a task holds the loop."""
    while True:
        due = trio.current_time() + LAG_SECONDS
        await trio.sleep_until(due)
        metrics.LOOP_LAG_SECONDS.observe(trio.current_time() - due)


async def _audiences(pool: Pool, channel_ids: Sequence[str]) -> dict[str, members.Audience]:
    return await members.audiences(pool, list(channel_ids))


@asynccontextmanager
async def _connected(connection: Connection) -> AsyncIterator[Connection]:
    try:
        yield connection
    finally:
        await connection.close()


def _now_us() -> int:
    return time.time_ns() // 1000


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _say(text: str) -> None:
    """To standard output, if there is one: whoever read it may be gone, and the relay serves all the same.

    Past Python's buffer, which would be written once more at the end of the process, and fail there.
    """
    if sys.stdout is None:
        return
    with suppress(OSError, ValueError):
        os.write(sys.stdout.fileno(), text.encode(errors="replace"))


def _port(listener: trio.SocketListener) -> int:
    port: int = listener.socket.getsockname()[1]
    return port
