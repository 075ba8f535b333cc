"""Every launch form as an operator starts it: what signals do to it, how long it takes, and what it answers.

Real processes, a real PostgreSQL, real clients. Launches that do not depend on each other run side by side.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
from trio_websocket import ConnectionClosed

from tests.asyncpg_trio.proxy import open_proxy
from tests.support.core import ALICE, BOB, CHANNEL
from tests.support.launching import FORMS, Launched, free_port, launched, reachable_dir
from tests.support.relay import Client, message

TERM, INT = signal.SIGTERM, signal.SIGINT
BUDGET_SECONDS = 8.5
"""The promise is eight; the half is for a machine that runs other tests at the same time."""


@pytest.fixture
def directory() -> Iterator[Path]:
    with reachable_dir() as path:
        yield path


class Databases:
    """Any number of empty databases of the run's server, for launches that need none of their own."""

    def __init__(self, server) -> None:
        self._server = server
        self._names: list[str] = []

    def new(self) -> str:
        self._names.append(self._server.create_database())
        return self._server.dsn(self._names[-1])

    def drop(self) -> None:
        for name in self._names:
            self._server.drop_database(name)


@pytest.fixture
def databases(postgres_server) -> Iterator[Databases]:
    found = Databases(postgres_server)
    yield found
    found.drop()


def _stopped_with(relay: Launched) -> list[int]:
    return [line["code"] for line in relay.said("stopped")]


async def _each(function, cases) -> None:
    """Run `function(*case)` for every case, two at a time."""
    limit = trio.CapacityLimiter(2)

    async def one(case) -> None:
        async with limit:
            await function(*case)

    async with trio.open_nursery() as nursery:
        for case in cases:
            nursery.start_soon(one, case)


# -- signals ---------------------------------------------------------------------------------------------------------


async def test_a_signal_in_any_form_drains_and_ends_with_zero(databases):
    async def one(form: str, number: signal.Signals, target: str, times: int) -> None:
        with reachable_dir() as directory:
            async with launched(form, directory, DATABASE_URL=databases.new(), SPROUT_GRACE_SECONDS="0") as relay:
                await relay.ready()
                for _ in range(times):
                    relay.signal(number, target)
                    await trio.sleep(0.02)
                code, seconds = await relay.exit()
                # What Hypercorn's parent process ends with is its own: a second signal may meet it on its way out.
                parents = form == "hypercorn -w 1" and times > 1
                assert code == 0 or (parents and code == -number), (form, code, relay.stderr.read_text())
                assert _stopped_with(relay) == [0], (form, relay.stderr.read_text())
                assert seconds < BUDGET_SECONDS
                assert relay.said("audit drain over")[0]["finished"]

    cases = [(form, TERM, "parent", 1) for form in FORMS]
    cases += [("relay serve", INT, "group", 2), ("hypercorn -w 0", INT, "parent", 2)]
    cases += [("hypercorn -c", TERM, "group", 2), ("hypercorn -w 1", TERM, "group", 2)]
    cases += [("hypercorn -w 1", INT, "group", 1)]
    await _each(one, cases)


@pytest.mark.slow
@pytest.mark.skipif("RELAY_LAUNCH_ALL" not in os.environ, reason="the whole matrix: RELAY_LAUNCH_ALL=1")
async def test_the_whole_matrix_of_signals_on_the_embedded_database():
    async def one(form: str, number: signal.Signals, target: str, times: int) -> None:
        with reachable_dir() as directory:
            async with launched(form, directory) as relay:
                await relay.ready()
                for _ in range(times):
                    relay.signal(number, target)
                    await trio.sleep(0.05)
                code, seconds = await relay.exit()
                assert (code, _stopped_with(relay), relay.postgres()) == (0, [0], []), relay.stderr.read_text()
                assert seconds < BUDGET_SECONDS

    await _each(one, product(FORMS, (TERM, INT), ("parent", "group"), (1, 2)))


async def test_a_worker_that_is_told_to_stop_drains_and_hypercorn_starts_another(databases, directory):
    async with launched("hypercorn -w 1", directory, DATABASE_URL=databases.new(), SPROUT_GRACE_SECONDS="0") as relay:
        await relay.ready()
        relay.signal(TERM, "child")
        await relay.wait_said("ready", times=2)
        assert _stopped_with(relay) == [0]
        relay.signal(TERM)
        assert (await relay.exit())[0] == 0
        assert _stopped_with(relay) == [0, 0]


async def test_a_worker_whose_parent_was_killed_stops_by_itself(databases, directory):
    async with launched("hypercorn -w 1", directory, DATABASE_URL=databases.new(), SPROUT_GRACE_SECONDS="0") as relay:
        await relay.ready()
        relay.signal(signal.SIGKILL)
        await relay.exit()
        with trio.fail_after(BUDGET_SECONDS):
            while not relay.said("stopped"):
                await trio.sleep(0.05)
        assert relay.said("stopping")[0]["why"] == "Hypercorn's parent process is gone"
        assert _stopped_with(relay) == [0]


async def test_a_signal_during_the_start_ends_it_and_leaves_no_postgres_behind():
    async def one(form: str, moment: str) -> None:
        with reachable_dir() as directory:
            async with launched(form, directory) as relay:
                await relay.wait_said(moment)
                relay.signal(TERM, "group" if form == "hypercorn -w 1" else "parent")
                code, seconds = await relay.exit()
                assert (code, _stopped_with(relay)) == (0, [0]), relay.stderr.read_text()
                assert not relay.said("ready")
                assert seconds < BUDGET_SECONDS
                assert relay.postgres() == []

    await _each(
        one, [("relay serve", "starting PostgreSQL"), ("relay serve", "PostgreSQL is ready"),
              ("hypercorn -w 0", "starting PostgreSQL"), ("hypercorn -w 1", "starting PostgreSQL")]
    )  # fmt: skip


async def test_a_stop_while_the_start_waits_for_the_database(directory):
    url = f"postgresql://relay@127.0.0.1:{free_port()}/relay"
    async with launched("relay serve", directory, "--database-url", url) as relay:
        await relay.wait_said("waiting for the database")
        relay.signal(TERM)
        assert (await relay.exit())[0] == 0
        assert url not in relay.stderr.read_text()


# -- under load, with everything that can be stuck ---------------------------------------------------------------------


class Publishers:
    """Clients that publish as fast as they get answers, and remember every id that was acknowledged."""

    def __init__(self, relay: Launched, nursery: trio.Nursery) -> None:
        self.relay = relay
        self.nursery = nursery
        self.acknowledged: set[str] = set()
        self.refused: set[str] = set()
        self.closed_with: list[int] = []

    async def start(self, count: int) -> None:
        first = await self.relay.connect(self.nursery, ALICE)
        created = ALICE.sign(9007, tags=[["h", CHANNEL], ["name", "general"], ["visibility", "open"]])
        assert (await first.publish(created))[2] is True
        self.nursery.start_soon(self._publish, first, 0)
        for number in range(1, count):
            self.nursery.start_soon(self._publish, await self.relay.connect(self.nursery, ALICE), number)

    async def _publish(self, client: Client, number: int) -> None:
        turn = 0
        try:
            while True:
                answer = await client.publish(message(ALICE, CHANNEL, f"{number} {turn}"))
                if answer[2]:
                    self.acknowledged.add(answer[1])
                else:
                    self.refused.add(answer[3])
                turn += 1
        except ConnectionClosed as end:
            if end.reason is not None:
                self.closed_with.append(end.reason.code)


async def test_a_stop_under_load_loses_no_acknowledged_event(databases, postgres_server):
    async def one(form: str) -> None:
        dsn = databases.new()
        with reachable_dir() as directory:
            async with (
                launched(form, directory, DATABASE_URL=dsn, SPROUT_GRACE_SECONDS="0") as relay,
                trio.open_nursery() as nursery,
            ):
                publishers = Publishers(await relay.ready(), nursery)
                await publishers.start(8)
                while len(publishers.acknowledged) < 200:
                    await trio.sleep(0.01)
                relay.signal(TERM)
                code, seconds = await relay.exit()
                assert (code, _stopped_with(relay)) == (0, [0]), relay.stderr.read_text()
                assert seconds < BUDGET_SECONDS
            _everything_is_kept_and_audited_once(postgres_server, dsn, publishers.acknowledged)
            assert set(publishers.closed_with) == {1012}
            assert publishers.refused <= {"error: shutting down"}

    await _each(one, [(form,) for form in FORMS])


def _everything_is_kept_and_audited_once(server, dsn: str, acknowledged: set[str]) -> None:
    database = urlsplit(dsn).path.strip("/")
    kept = set(server.psql(database, "SELECT encode(id, 'hex') FROM events").split())
    assert acknowledged <= kept
    audited = server.psql(database, "SELECT event_id FROM audit_log WHERE action = 'event_created'").split()
    assert sorted(audited) == sorted(kept)
    assert server.psql(database, "SELECT count(*) FROM audit_outbox") == "0"


async def test_a_database_that_stops_answering_costs_five_seconds_and_no_entry(databases, postgres_server):
    async def one(form: str) -> None:
        dsn = databases.new()
        database, directory_of_socket = urlsplit(dsn).path.strip("/"), parse_qs(urlsplit(dsn).query)["host"][0]
        with reachable_dir() as directory:
            async with AsyncExitStack() as stack:
                proxy = await stack.enter_async_context(open_proxy(f"{directory_of_socket}/.s.PGSQL.5432"))
                environment = {"DATABASE_URL": proxy.dsn(database), "SPROUT_GRACE_SECONDS": "0"}
                relay = await stack.enter_async_context(launched(form, directory, **environment))
                nursery = await stack.enter_async_context(trio.open_nursery())
                publishers = Publishers(await relay.ready(), nursery)
                await publishers.start(4)
                while len(publishers.acknowledged) < 50:
                    await trio.sleep(0.01)
                proxy.deaf = True
                await trio.sleep(0.2)
                relay.signal(TERM)
                code, seconds = await relay.exit()
                nursery.cancel_scope.cancel()
                assert code == (0 if form == "hypercorn -w 1" else 75), relay.stderr.read_text()
                assert _stopped_with(relay) == [75], relay.stderr.read_text()
                assert seconds < BUDGET_SECONDS
            # The next start, with a database that answers, chains what was left.
            async with launched(form, directory, DATABASE_URL=dsn, SPROUT_GRACE_SECONDS="0") as relay:
                await relay.ready()
                relay.signal(TERM)
                assert (await relay.exit())[0] == 0
            _everything_is_kept_and_audited_once(postgres_server, dsn, publishers.acknowledged)

    await _each(one, [("relay serve",), ("hypercorn -w 0",), ("hypercorn -w 1",)])


async def test_an_embedded_database_that_is_frozen_is_killed_in_time_and_works_again(directory):
    async with launched("relay serve", directory) as relay, trio.open_nursery() as nursery:
        publishers = Publishers(await relay.ready(), nursery)
        await publishers.start(4)
        while len(publishers.acknowledged) < 50:
            await trio.sleep(0.01)
        for pid in relay.postgres():
            os.kill(pid, signal.SIGSTOP)
        await trio.sleep(0.2)
        relay.signal(TERM)
        code, seconds = await relay.exit()
        nursery.cancel_scope.cancel()
        assert (code, _stopped_with(relay)) == (75, [75]), relay.stderr.read_text()
        assert "still running" not in relay.stderr.read_text(), "the watchdog had to end it"
        assert seconds < BUDGET_SECONDS
        assert relay.postgres() == []
    async with launched("relay serve", directory) as relay, trio.open_nursery() as nursery:
        await relay.ready()
        reader = await relay.connect(nursery, ALICE)
        events = await reader.request("all", {"kinds": [9], "#h": [CHANNEL], "limit": 10_000})
        stored = {event["id"] for event in events}
        assert publishers.acknowledged <= stored
        relay.signal(TERM)
        assert (await relay.exit())[0] == 0
        nursery.cancel_scope.cancel()


async def test_fifty_clients_that_stopped_reading_do_not_hold_up_the_stop(databases):
    async def one(form: str) -> None:
        with reachable_dir() as directory:
            async with (
                launched(form, directory, DATABASE_URL=databases.new(), SPROUT_GRACE_SECONDS="0") as relay,
                trio.open_nursery() as nursery,
            ):
                await relay.ready()
                writer = await relay.connect(nursery, ALICE)
                created = ALICE.sign(9007, tags=[["h", CHANNEL], ["name", "general"], ["visibility", "open"]])
                assert (await writer.publish(created))[2] is True
                deaf = [await _stopped_reading(relay, nursery) for _ in range(50)]
                stuck_upload = _half_a_request(relay.port)
                # 600 KB for each: more than the socket buffers take, less than what closes a slow client.
                for number in range(10):
                    assert (await writer.publish(message(ALICE, CHANNEL, f"{number}" + "x" * 60_000)))[2] is True
                relay.signal(TERM)
                code, seconds = await relay.exit()
                assert (code, _stopped_with(relay)) == (0, [0]), relay.stderr.read_text()
                assert seconds < 5, seconds
                for sock in (*deaf, stuck_upload):
                    sock.close()
                nursery.cancel_scope.cancel()

    await _each(one, [("relay serve",), ("hypercorn -w 0",)])


async def _stopped_reading(relay: Launched, nursery: trio.Nursery) -> socket.socket:
    """A client that subscribed, and whose process then stopped: its kernel still takes a little."""
    client = await relay.connect(nursery, BOB, receive_buffer=4096)
    assert await client.request("s", {"kinds": [9], "#h": [CHANNEL], "limit": 0}) == []
    copy = socket.socket(fileno=os.dup(client.stream.socket.fileno()))
    client.stream.socket.close()  # the copy keeps the connection; nobody reads it
    return copy


def _half_a_request(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(b"POST /api/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    return sock


async def test_a_relay_that_was_killed_starts_again_with_everything_it_acknowledged(directory):
    async with launched("relay serve", directory) as relay, trio.open_nursery() as nursery:
        publishers = Publishers(await relay.ready(), nursery)
        await publishers.start(4)
        while len(publishers.acknowledged) < 100:
            await trio.sleep(0.01)
        relay.signal(signal.SIGKILL)
        assert (await relay.exit())[0] == -signal.SIGKILL
        nursery.cancel_scope.cancel()
    async with launched("relay serve", directory) as relay, trio.open_nursery() as nursery:
        await relay.ready()
        reader = await relay.connect(nursery, ALICE)
        events = await reader.request("all", {"kinds": [9], "#h": [CHANNEL], "limit": 10_000})
        stored = {event["id"] for event in events}
        assert publishers.acknowledged <= stored
        relay.signal(TERM)
        assert (await relay.exit())[0] == 0
        nursery.cancel_scope.cancel()


async def test_a_grace_is_served_with_readiness_off_and_costs_the_budget_nothing(databases, directory):
    health = free_port()
    environment = {"DATABASE_URL": databases.new(), "SPROUT_GRACE_SECONDS": "1.5", "SPROUT_HEALTH_PORT": str(health)}
    async with launched("relay serve", directory, **environment) as relay, trio.open_nursery() as nursery:
        await relay.ready()
        assert await _get(health, "/_readiness") == 200
        relay.signal(TERM)
        await relay.wait_said("still serving")
        assert await _get(health, "/_readiness") == 503
        assert await _get(relay.port, "/_liveness") == 200
        late = await relay.connect(nursery, ALICE)
        assert (await late.publish(ALICE.sign(0, "{}")))[2] is True
        assert await late.closed() == (1012, "the relay is restarting")
        code, seconds = await relay.exit()
        assert code == 0
        assert 1.5 <= seconds < 1.5 + BUDGET_SECONDS
        nursery.cancel_scope.cancel()


async def _get(port: int, path: str) -> int:
    with trio.fail_after(10):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
            answer = b"".join([bytes(piece) async for piece in stream])
    return int(answer.split(b" ", 2)[1])


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


async def test_a_start_that_is_refused_says_why_and_does_not_loop(databases, taken_port):
    async def one(form: str, arguments: tuple[str, ...], environment: dict[str, str], code: int, sentence: str) -> None:
        with reachable_dir() as directory:
            async with launched(form, directory, *arguments, **environment) as relay:
                assert (await relay.exit())[0] == code, relay.stderr.read_text()
                text = relay.stderr.read_text()
                assert sentence in text
                assert "Traceback" not in text
                assert text.count(sentence) <= 2

    dsn = databases.new()
    await _each(one, [
        ("relay serve", ("--bind", f"127.0.0.1:{taken_port}"), {}, 2, "SPROUT_BIND_ADDR: cannot listen on"),
        ("relay serve", ("--health-port", str(taken_port), "--database-url", dsn), {}, 2, "SPROUT_HEALTH_PORT: cannot"),
        ("relay serve", (), {"RELAY_URL": "http://x", "SPROUT_SEND_BUFFER": "many"}, 2, "SPROUT_SEND_BUFFER"),
        ("relay serve", ("--database-url", "mysql://nowhere"), {}, 2, "DATABASE_URL: "),
        ("relay serve", ("--database-url", f"postgresql://r@127.0.0.1:{taken_port}/x"),
         {"SPROUT_DATABASE_WAIT_SECONDS": "0.5"}, 75, "did not answer within 0.5 s"),
        ("hypercorn -w 0", (), {"RELAY_URL": "http://x", "SPROUT_SEND_BUFFER": "many"}, 2, "RELAY_URL"),
        ("hypercorn -w 1", (), {"RELAY_URL": "http://x"}, 0, "RELAY_URL: must be a ws:// or wss:// address"),
        ("hypercorn -w 1", ("-w", "2"), {}, 0, "2 workers: the processes of a relay cannot talk to each other yet"),
        ("hypercorn -w 0", ("--certfile", "c.pem"), {}, 2, "Let Caddy, nginx or another proxy in front end TLS"),
        ("hypercorn -w 0", ("--max-requests", "5"), {}, 2, "max-requests"),
    ])  # fmt: skip


async def test_hypercorns_default_worker_is_refused_with_the_right_command(databases, directory):
    async with launched("hypercorn -w 0", directory, "-k", "asyncio", DATABASE_URL=databases.new()) as relay:
        assert (await relay.exit())[0] != 0
        assert "hypercorn -c hypercorn.toml relay.asgi:app" in relay.stderr.read_text()


async def test_a_second_relay_on_a_data_directory_is_refused_and_names_the_first(directory):
    async with launched("relay serve", directory) as first:
        await first.ready()
        for form in ("python -m relay", "hypercorn -w 0"):
            with reachable_dir() as elsewhere:
                async with launched(form, elsewhere, SPROUT_DATA_DIR=str(directory / "data")) as second:
                    assert (await second.exit())[0] == 2
                    assert f"in use by process {first.process.pid}" in second.stderr.read_text()
        first.signal(TERM)
        assert (await first.exit())[0] == 0


async def test_a_node_with_another_key_does_not_start_on_the_database(databases):
    dsn = databases.new()
    with reachable_dir() as one, reachable_dir() as other:
        async with launched("relay serve", one, DATABASE_URL=dsn, SPROUT_GRACE_SECONDS="0") as relay:
            await relay.ready()
            relay.signal(TERM)
            assert (await relay.exit())[0] == 0
        async with launched("relay serve", other, DATABASE_URL=dsn) as stranger:
            assert (await stranger.exit())[0] == 2
            assert "SPROUT_RELAY_PRIVATE_KEY" in stranger.said("the relay does not start")[0]["reason"]


async def test_a_free_port_is_chosen_and_said(databases, directory):
    arguments = ("--bind", "127.0.0.1:0", "--database-url", databases.new())
    async with launched("relay serve", directory, *arguments, SPROUT_GRACE_SECONDS="0", RELAY_URL="") as relay:
        ready = await relay.wait_said("ready")
        port = int(ready["listening"][0].rsplit(":", 1)[1])
        assert ready["relay_url"] == f"ws://localhost:{port}"
        assert await _get(port, "/_liveness") == 200
        assert f"ws://localhost:{port}" in relay.stdout.read_text()
        relay.signal(INT)
        assert (await relay.exit())[0] == 0


async def test_a_standard_output_that_nobody_reads_is_no_reason_to_end(databases):
    """`relay serve | head -1`, and a service manager that gives none at all."""

    async def one(shell: str) -> None:
        with reachable_dir() as directory:
            command = ["/bin/bash", "-c", shell.format(relay=FORMS["relay serve"][0])]
            own = {"DATABASE_URL": databases.new(), "SPROUT_GRACE_SECONDS": "0"}
            async with launched("relay serve", directory, command=command, **own) as relay:
                await relay.ready()
                assert await _get(relay.port, "/_liveness") == 200
                relay.signal(TERM)
                assert (await relay.exit())[0] == 0, relay.stderr.read_text()

    await _each(one, [("exec {relay} serve >&-",), ("exec {relay} serve > >(true)",)])
