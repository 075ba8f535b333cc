"""The database goes away in the middle of requests: 503 in the envelope, nothing half done, recovery without a restart.

A real relay in a process of its own, a PostgreSQL of the test's own beside it, which is stopped, killed and started
again; and the app alone, for which errors become which answer.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx2
import psutil
import pytest
import trio

from relay.asyncpg_trio import Pool, PoolTimeout, connect, errors
from relay.asyncpg_trio.wire import SETTLE_SECONDS
from relay.errors import StoreBusy, StoreGone
from relay.http import undecided
from relay.http.app import create_app
from relay.store.outcome import PATIENCE_SECONDS
from tests.asyncpg_trio.cluster import Cluster
from tests.http.raw import RawAnswer, ask
from tests.support.http import Rig, new_key, signed
from tests.support.launching import Launched, free_port, launched, reachable_dir

UNAVAILABLE = {"error": "temporarily unavailable"}
UNDECIDED = {"error": "undecided", "message": "the database did not say in time whether this was done"}
STATEMENT_SECONDS = 1
ACQUIRE_SECONDS = 0.5
KEY = new_key()
WAIT_SECONDS = 30


# -- which error is which answer --------------------------------------------------------------------------------------


def of_the_server(code: str) -> errors.PostgresError:
    error: errors.PostgresError = errors.PostgresError.new({"C": code, "M": "a secret detail"})
    return error


@pytest.mark.parametrize(
    "error",
    [
        errors.ConnectionLost("gone"),
        errors.ConnectFailed("refused"),
        errors.CommitOutcomeUnknown("who knows"),
        errors.PoolTimeout("full"),
        errors.PoolClosed("closed"),
        errors.StatementTimeout("slow"),
        StoreBusy("busy"),
        StoreGone("gone"),
        *map(of_the_server, ("08006", "25006", "40001", "40P01", "53300", "53200", "55P03", "57014", "57P01", "58030")),
        ExceptionGroup("two at once", [errors.ConnectionLost("gone"), ExceptionGroup("", [of_the_server("57P01")])]),
    ],
    ids=repr,
)
async def test_the_stores_trouble_is_503(rig: Rig, error: Exception) -> None:
    found = await answer_to(rig, error)
    assert (found.status, found.json) == (503, UNAVAILABLE)
    assert found.header("retry-after") == "2"
    assert found.header("access-control-allow-origin") == "*"


@pytest.mark.parametrize(
    "error",
    [
        *map(of_the_server, ("42601", "42P01", "22P02", "23505", "0A000", "XX000")),
        errors.InterfaceError("the wrong number of arguments"),
        errors.DataError("cannot be encoded"),
        ValueError("a bug"),
        ExceptionGroup("both", [errors.ConnectionLost("gone"), ValueError("a bug")]),
    ],
    ids=repr,
)
async def test_a_bug_is_500(rig: Rig, error: Exception) -> None:
    found = await answer_to(rig, error)
    assert (found.status, found.json) == (500, {"error": "internal server error"})
    assert found.header("retry-after") is None


async def answer_to(rig: Rig, error: Exception) -> RawAnswer:
    """Of a route that lets this pass."""

    async def fails() -> None:
        raise error

    rig.app.add_url_rule("/fails", view_func=fails)
    return await ask(rig.app, "GET", "/fails")


async def test_no_route_waits_longer_for_a_connection_than_the_pool_does(rig: Rig, migrated_dsn: str) -> None:
    """And readiness says why: the database itself is well."""
    token = await rig.mint(KEY, ["channels:read"])
    async with Pool(migrated_dsn, size_max=1, acquire_seconds=ACQUIRE_SECONDS) as pool:
        app = create_app(replace(rig.services, pool=pool))
        assert (await rig.get("/_readiness", app=app)).status == 200
        async with pool.acquire():
            started = trio.current_time()
            found = await rig.get("/api/channels", token=token, app=app)
            assert ACQUIRE_SECONDS <= trio.current_time() - started < 3 * ACQUIRE_SECONDS
            assert (found.status, found.json) == (503, UNAVAILABLE)
            ready = await rig.get("/_readiness", app=app)
            assert ready.status == 503
            assert ready.json == {
                "status": "not_ready", "postgres": True, "redis": True, "audit": True, "pool": False,
            }  # fmt: skip
        assert (await rig.get("/api/channels", token=token, app=app)).status == 200


async def test_the_pool_is_ready_again_some_time_after(rig: Rig, migrated_dsn: str) -> None:
    now = 1000.0
    async with Pool(migrated_dsn, size_max=1, acquire_seconds=0.01, clock=lambda: now) as pool:
        app = create_app(replace(rig.services, pool=pool))
        async with pool.acquire():
            with pytest.raises(PoolTimeout):
                await pool.fetch("SELECT 1")
        now += 4.9
        assert (await rig.get("/_readiness", app=app)).json["pool"] is False
        now += 0.2
        assert (await rig.get("/_readiness", app=app)).status == 200


# -- the real thing ---------------------------------------------------------------------------------------------------


class Server(Cluster):
    """May be frozen: its processes live, and none of them answers."""

    def processes(self) -> list[psutil.Process]:
        postmaster = psutil.Process(self.process.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def freeze(self) -> None:
        for process in self.processes():
            process.suspend()

    def thaw(self) -> None:
        for process in self.processes():
            process.resume()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    if running.process.poll() is None:
        running.thaw()
    running.stop()


@asynccontextmanager
async def relay_on(server: Server, **settings: str) -> AsyncIterator[tuple[Launched, httpx2.AsyncClient, str]]:
    """The relay, a client of it, and the address of its readiness."""
    health = free_port()
    with reachable_dir() as directory:
        environment = {
            "DATABASE_URL": server.dsn(),
            "SPROUT_DEV_X_PUBKEY": "true",
            "SPROUT_HEALTH_PORT": str(health),
            "SPROUT_STATEMENT_SECONDS": str(STATEMENT_SECONDS),
            "SPROUT_POOL_ACQUIRE_SECONDS": str(ACQUIRE_SECONDS),
            **settings,
        }
        async with launched("relay serve", directory, **environment) as running:
            await running.ready()
            base = f"http://127.0.0.1:{running.port}"
            headers = {"X-Pubkey": KEY.public_hex}
            async with httpx2.AsyncClient(base_url=base, headers=headers, timeout=WAIT_SECONDS) as client:
                yield running, client, f"http://127.0.0.1:{health}/_readiness"


async def until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while not await condition():
            await trio.sleep(0.05)


def is_refused(response: httpx2.Response) -> bool:
    assert response.headers["content-type"] == "application/json"
    assert "retry-after" in response.headers
    # Whoever was at COMMIT when the database died hears that nobody knows.
    return response.status_code == 503 and (response.json() in (UNAVAILABLE, UNDECIDED))


async def create(client: httpx2.AsyncClient) -> tuple[str, httpx2.Response]:
    """Asks for a new channel: an event with effects, in one transaction."""
    channel = str(uuid4())
    event = signed(KEY, 9007, [["h", channel], ["name", "general"], ["visibility", "open"]])
    return channel, await client.post("/api/events", content=event.json)


async def say(client: httpx2.AsyncClient, channel: str) -> tuple[str, httpx2.Response]:
    event = signed(KEY, 9, [["h", channel]], uuid4().hex)
    return event.id, await client.post("/api/events", content=event.json)


async def check_whole(server: Server, kept: list[str], refused: list[str]) -> None:
    """What was answered with 200 is stored; every stored event has its one audit entry; no refused one is half done."""
    con = await connect(server.dsn())
    try:
        stored = {row[0] for row in await con.fetch("SELECT encode(id, 'hex') FROM events")}
        assert set(kept) <= stored
        audited = await con.fetch(
            "SELECT event_id, count(*) FROM (SELECT event_id FROM audit_log WHERE action = 'event_created'"
            " UNION ALL SELECT event_id FROM audit_outbox WHERE action = 'event_created') AS entries GROUP BY event_id"
        )
        assert {(row[0], row[1]) for row in audited} == {(event_id, 1) for event_id in stored}
        # A channel exists exactly where the event that made it does.
        made = await con.fetch("SELECT tags FROM events WHERE kind = 9007")
        channels = await con.fetchval("SELECT count(*) FROM channels")
        assert channels == len(made)
        assert len(refused) == len(set(refused))
    finally:
        con.terminate()


async def test_a_database_that_stops_answering_in_mid_request(server: Server) -> None:
    async with relay_on(server) as (running, client, readiness):
        channel, made = await create(client)
        assert made.status_code == 200
        first, said = await say(client, channel)
        assert said.status_code == 200
        answers: list[httpx2.Response] = []
        refused: list[str] = []

        async def read() -> None:
            answers.append(await client.get("/api/channels"))
            # The statement, and as long again as it may take to bring its connection to rest.
            assert trio.current_time() - started < STATEMENT_SECONDS + SETTLE_SECONDS + 2

        async def write() -> None:
            event_id, answer = await say(client, channel)
            answers.append(answer)
            refused.append(event_id)

        server.freeze()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read)
            nursery.start_soon(write)
        # For a write: what ingest is patient for.
        assert trio.current_time() - started < STATEMENT_SECONDS + 2 * SETTLE_SECONDS + PATIENCE_SECONDS + 3
        assert all(map(is_refused, answers)), [answer.status_code for answer in answers]
        async with httpx2.AsyncClient(timeout=WAIT_SECONDS) as probe:
            ready = await probe.get(readiness)
            assert (ready.status_code, ready.json()["postgres"]) == (503, False)
        assert running.process.poll() is None
        server.thaw()
        await recovered(client, readiness)
        last, said = await say(client, channel)
        assert said.status_code == 200
        await check_whole(server, [first, last], refused)


async def test_a_database_that_is_killed_in_mid_request(server: Server) -> None:
    async with relay_on(server) as (running, client, readiness):
        channel, made = await create(client)
        assert made.status_code == 200
        kept: list[str] = []
        refused: list[str] = []
        statuses: set[int] = set()
        stop = trio.Event()

        async def read() -> None:
            while not stop.is_set():
                answer = await client.get("/api/channels")
                statuses.add(answer.status_code)
                assert answer.status_code == 200 or is_refused(answer), answer.text

        async def write() -> None:
            while not stop.is_set():
                event_id, answer = await say(client, channel)
                statuses.add(answer.status_code)
                assert answer.status_code == 200 or is_refused(answer), answer.text
                (kept if answer.status_code == 200 else refused).append(event_id)

        async def build() -> None:
            while not stop.is_set():
                _, answer = await create(client)
                assert answer.status_code == 200 or is_refused(answer), answer.text

        async with trio.open_nursery() as nursery:
            for task in (read, write, build):
                nursery.start_soon(task)
            with trio.fail_after(WAIT_SECONDS):
                while len(kept) < 5:
                    await trio.sleep(0.01)
            for process in reversed(server.processes()):
                with suppress(ProcessLookupError):  # they follow one another
                    os.kill(process.pid, signal.SIGKILL)
            await trio.to_thread.run_sync(server.process.wait)
            with trio.fail_after(WAIT_SECONDS):
                while 503 not in statuses or not refused:
                    await trio.sleep(0.05)
            await trio.to_thread.run_sync(server.revive)
            count = len(kept)
            with trio.fail_after(WAIT_SECONDS):
                while len(kept) < count + 5:
                    await trio.sleep(0.05)
            stop.set()
        await recovered(client, readiness)
        assert running.process.poll() is None
        assert statuses == {200, 503}
        await check_whole(server, kept, refused)


async def recovered(client: httpx2.AsyncClient, readiness: str) -> None:
    async with httpx2.AsyncClient(timeout=WAIT_SECONDS) as probe:

        async def ready() -> bool:
            return (await probe.get(readiness)).status_code == 200

        async def served() -> bool:
            return (await client.get("/api/channels")).status_code == 200

        await until(served)
        await until(ready)


async def test_a_pool_that_is_all_in_use(server: Server) -> None:
    """One connection, and somebody holds the rows that its statement waits for."""
    settings = {"SPROUT_POOL_SIZE_MAX": "1", "SPROUT_POOL_SIZE_MIN": "1", "SPROUT_STATEMENT_SECONDS": "20"}
    async with relay_on(server, SPROUT_LOCK_SECONDS="20", **settings) as (_, client, readiness):
        assert (await client.get("/api/channels")).status_code == 200
        other = await connect(server.dsn())
        transaction = other.transaction()
        await transaction.__aenter__()
        await other.execute("LOCK TABLE channels")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.get, "/api/channels")

            async def in_use() -> bool:
                return bool(await other.fetchval("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"))

            await until(in_use)
            started = trio.current_time()
            answer = await client.get("/api/channels")
            took = trio.current_time() - started
            assert is_refused(answer)
            assert ACQUIRE_SECONDS <= took < ACQUIRE_SECONDS + 1
            async with httpx2.AsyncClient() as probe:
                ready = await probe.get(readiness)
            assert ready.status_code == 503
            assert ready.json() == {
                "status": "not_ready", "postgres": True, "redis": True, "audit": True, "pool": False,
            }  # fmt: skip
            other.terminate()  # with its lock
        await recovered(client, readiness)


async def test_a_write_that_nobody_can_tell_the_end_of(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undecided, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(undecided, "_SPARE_SECONDS", 0.0)
    app = rig.with_settings(statement_seconds=0.1)
    key = new_key()
    event = signed(key, 1, [], "hello")
    async with rig.con.transaction():
        await rig.con.execute("LOCK TABLE events")
        found = await rig.post("/api/events", key=key, data=event.json, app=app)
        assert (found.status, found.json, found.headers["retry-after"]) == (503, UNDECIDED, "2")
    again = await rig.post("/api/events", key=key, data=event.json)
    assert (again.status, again.json["accepted"], again.json["message"]) == (200, True, "duplicate:")
