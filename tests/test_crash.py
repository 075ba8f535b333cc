"""One task of the relay fails, in a real process under load: it ends in time, with code 70, and loses nothing.

Every case injects a fault into another task (see tests/support/crashing.py) and asks the same questions: did readiness
go off, were clients told 1011, is everything stored that was acknowledged, and audited exactly once, in the log or in
the outbox that the next start chains?
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import trio
from trio_websocket import ConnectionClosed

from tests.support.core import ALICE, BOB, CHANNEL
from tests.support.crashing import FAULT
from tests.support.launching import Launched, free_port, launched, reachable_dir
from tests.support.relay import message

BUDGET_SECONDS = 8.5
"""The promise is eight; the half is for a machine that runs other tests at the same time."""

ACKNOWLEDGED = 100


@pytest.fixture
def databases(postgres_server) -> Iterator[Callable[[], str]]:
    names: list[str] = []

    def new() -> str:
        names.append(postgres_server.create_database())
        return postgres_server.dsn(names[-1])

    yield new
    for name in names:
        postgres_server.drop_database(name)


class Load:
    """Clients that publish without a pause, and a probe that asks for readiness, to the end of the process."""

    def __init__(self, relay: Launched, health: int, nursery: trio.Nursery) -> None:
        self.relay = relay
        self.nursery = nursery
        self.acknowledged: set[str] = set()
        self.closed_with: list[int] = []
        self.readiness: list[int] = []
        self._health = health

    async def start(self) -> None:
        first = await self.relay.connect(self.nursery, ALICE)
        created = ALICE.sign(9007, tags=[["h", CHANNEL], ["name", "general"], ["visibility", "open"]])
        assert (await first.publish(created))[2] is True
        listener = await self.relay.connect(self.nursery, BOB)
        await listener.send("REQ", "live", {"kinds": [9], "#h": [CHANNEL], "limit": 0})
        self.nursery.start_soon(self._probe)
        for number in range(3):
            client = first if number == 0 else await self.relay.connect(self.nursery, ALICE)
            self.nursery.start_soon(self._publish, client, number)
        with trio.fail_after(30):
            while len(self.acknowledged) < ACKNOWLEDGED:
                await trio.sleep(0.01)

    async def _publish(self, client, number: int) -> None:
        turn = 0
        try:
            while True:
                answer = await client.publish(message(ALICE, CHANNEL, f"{number} {turn}"))
                if answer[2]:
                    self.acknowledged.add(answer[1])
                turn += 1
        except ConnectionClosed as end:
            if end.reason is not None:
                self.closed_with.append(end.reason.code)

    async def _probe(self) -> None:
        """The last answer counts: the listener serves until the end."""
        while True:
            try:
                async with await trio.open_tcp_stream("127.0.0.1", self._health) as stream:
                    await stream.send_all(b"GET /_readiness HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    answer = b"".join([bytes(piece) async for piece in stream])
                self.readiness.append(int(answer.split(b" ", 2)[1]))
            except (OSError, IndexError, trio.BrokenResourceError):
                return
            await trio.sleep(0.02)


async def _crash(
    name: str, trigger: Callable[[Load], Awaitable[None]], directory: Path, **environment: str
) -> set[str]:
    """One life and its end by a fault in `name`; returns the ids of the acknowledged events."""
    health, command = free_port(), [sys.executable, "-m", "tests.support.crashing", name]
    own = {"SPROUT_HEALTH_PORT": str(health), "SPROUT_PING_SECONDS": "0.5"}
    async with (
        launched("relay serve", directory, command=command, **own, **environment) as relay,
        trio.open_nursery() as nursery,
    ):
        load = Load(await relay.ready(), health, nursery)
        await load.start()
        # A request that never ends holds the listener for `close_seconds`, so that the probe is sure to see the stop.
        stuck = await trio.open_tcp_stream("127.0.0.1", relay.port)
        await stuck.send_all(b"POST /api/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        (directory / "armed").touch()
        await trigger(load)
        await relay.wait_said("a supervised task crashed")
        relay.told_at = trio.current_time()
        code, seconds = await relay.exit()
        await trio.aclose_forcefully(stuck)
        nursery.cancel_scope.cancel()
    log = relay.stderr.read_text()
    first = relay.said("a supervised task crashed")[0]  # others may follow: who feeds a dead task ends too
    assert first["task"].startswith(name), log
    assert FAULT in first["exception"]
    assert (code, [line["code"] for line in relay.said("stopped")]) == (70, [70]), log
    assert seconds < BUDGET_SECONDS, log
    assert set(load.closed_with) == {1011}, log
    assert load.readiness[0] == 200
    assert load.readiness[-1] == 503, load.readiness
    assert relay.postgres() == []
    return load.acknowledged


def _kept_and_audited_once(server, dsn: str, acknowledged: set[str]) -> None:
    database = urlsplit(dsn).path.strip("/")
    kept = server.psql(database, "SELECT encode(id, 'hex') FROM events").split()
    assert acknowledged <= set(kept)
    audited = "SELECT event_id FROM {} WHERE action = 'event_created'"
    both = f"{audited.format('audit_log')} UNION ALL {audited.format('audit_outbox')}"
    assert sorted(server.psql(database, both).split()) == sorted(kept)


async def _nothing(load: Load) -> None:
    """The load itself runs into the fault."""


async def _new_channel(load: Load) -> None:
    """An event with effects, then a subscription to a channel that no audience is known of."""
    client = await load.relay.connect(load.nursery, BOB)
    tags = [["h", str(uuid4())], ["name", "other"], ["visibility", "open"]]
    await client.send_text(b'["EVENT",' + BOB.sign(9007, tags=tags).json + b"]")
    await client.send("REQ", "other", {"kinds": [9], "#h": [tags[0][1]]})


async def test_a_task_that_fails_ends_the_relay_in_time_and_loses_nothing(databases, postgres_server):
    async def one(name: str, trigger: Callable[[Load], Awaitable[None]]) -> None:
        dsn = databases()
        with reachable_dir() as directory:
            acknowledged = await _crash(name, trigger, directory, DATABASE_URL=dsn)
        _kept_and_audited_once(postgres_server, dsn, acknowledged)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "commit task", _nothing)
        nursery.start_soon(one, "effect worker", _new_channel)
        nursery.start_soon(one, "fan-out", _nothing)
        nursery.start_soon(one, "audit worker", _nothing)
        nursery.start_soon(one, "audience loader", _new_channel)
        nursery.start_soon(one, "heartbeat", _nothing)


async def test_an_embedded_database_that_cannot_be_started_again_ends_the_relay():
    async def kill(load: Load) -> None:
        for pid in load.relay.postgres():
            os.kill(pid, signal.SIGKILL)

    with reachable_dir() as directory:
        acknowledged = await _crash("embedded PostgreSQL", kill, directory)
        async with launched("relay serve", directory) as relay, trio.open_nursery() as nursery:
            reader = await (await relay.ready()).connect(nursery, ALICE)
            events = await reader.request("all", {"kinds": [9], "#h": [CHANNEL], "limit": 10_000})
            assert acknowledged <= {event["id"] for event in events}
            relay.signal(signal.SIGTERM)
            assert (await relay.exit())[0] == 0
            nursery.cancel_scope.cancel()
