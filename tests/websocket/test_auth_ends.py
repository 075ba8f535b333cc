"""A credential that ends under an open connection: what the client hears, what it gets no more, and how soon.

Everything is real: sockets, PostgreSQL, and for a revocation another connection to it, as another process has it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from relay import metrics
from relay.access.token_watch import TokenWatch, Why
from relay.asyncpg_trio import connect
from relay.store import tokens, users
from relay.websocket.session import Session
from tests.support.core import ALICE, BOB, Person
from tests.support.provider import running_provider
from tests.support.relay import Client, RelayUnderTest, fields, message, serving


@dataclass
class Watched:
    relay: RelayUnderTest
    watch: TokenWatch[Session]

    async def mint(self, person: Person, **changes: Any) -> tuple[str, str]:
        """(id, text) of a token that may do what its owner wants."""
        values = {"scopes": sorted(person.caller.scopes), "channel_ids": None, "expires_days": None, "name": "t"}
        text = tokens.new_text()
        pool = self.relay.core.pool
        await users.ensure(pool, [person.pubkey])
        async with pool.acquire() as con:
            token = await tokens.mint(con, text=text, owner=person.pubkey, **(values | changes))
        return token.id, text

    async def log_in(self, person: Person, text: str) -> Client:
        client = await self.relay.connect()
        assert (await client.log_in(person, tags=[["auth_token", text]]))[2:] == [True, ""]
        return client

    async def revoke_elsewhere(self, token_id: str) -> None:
        con = await connect(self.relay.core.dsn)
        assert await tokens.revoke(con, token_id) is tokens.Revocation.DONE
        await con.close()


@asynccontextmanager
async def watching(dsn: str, **settings: Any) -> AsyncIterator[Watched]:
    async with serving(dsn, **settings) as relay, trio.open_nursery() as nursery:
        watch: TokenWatch[Session] = TokenWatch(
            partial(connect, dsn),
            token_ids=relay.core.hub.token_ids,
            holders=relay.endpoint.sessions,
            end=relay.endpoint.end_identity,
            check_seconds=3600,
        )
        relay.endpoint.on_login(watch.logged_in)
        nursery.start_soon(watch.run)
        nursery.start_soon(watch.run_expiries)
        yield Watched(relay, watch)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def watched(migrated_dsn: str) -> AsyncIterator[Watched]:
    async with watching(migrated_dsn) as found:
        yield found


def ended(why: str) -> float:
    return metrics.REGISTRY.get_sample_value("sprout_ended_identities_total", {"why": why}) or 0


async def test_a_revocation_ends_every_connection_of_the_token(watched: Watched) -> None:
    relay = watched.relay
    channel = await relay.channel(ALICE)
    token_id, text = await watched.mint(ALICE)
    clients = [await watched.log_in(ALICE, text) for _ in range(2)]
    bystanders = [await relay.connect(ALICE), await watched.log_in(ALICE, (await watched.mint(ALICE))[1])]
    for client in (*clients, *bystanders):
        assert await client.request("global", {"kinds": [1]}) == []
        assert await client.request("channel", {"kinds": [9], "#h": [channel]}) == []
    idle = await watched.log_in(ALICE, text)
    before = ended("revoked")
    began = time.monotonic()
    await watched.revoke_elsewhere(token_id)
    for client in clients:
        assert await client.closed() == (1008, "token revoked")
        assert sorted(client.frames) == [
            ["CLOSED", "channel", "auth-required: token revoked"],
            ["CLOSED", "global", "auth-required: token revoked"],
        ]
    assert await idle.closed() == (1008, "token revoked")
    assert idle.frames == []
    assert time.monotonic() - began < 1
    assert ended("revoked") == before + 3
    # The others go on, with the same key.
    event = message(ALICE, channel, "still here")
    await bystanders[1].send("EVENT", fields(event))
    for client in bystanders:
        await client.until("EVENT", "channel")
    refused = await (await relay.connect()).log_in(ALICE, tags=[["auth_token", text]])
    assert refused[2:] == [False, "auth-required: invalid token"]


async def test_nothing_is_delivered_or_taken_after_the_closed(watched: Watched) -> None:
    """Events are being published all the time, by others and by the connection itself."""
    relay = watched.relay
    channel = await relay.channel(ALICE, BOB)
    token_id, text = await watched.mint(ALICE)
    client = await watched.log_in(ALICE, text)
    await client.request("s", {"kinds": [9], "#h": [channel]})
    writer = await relay.connect(BOB)
    stop = False

    async def write() -> None:
        number = 0
        while not stop:
            number += 1
            await writer.publish(message(BOB, channel, str(number)))

    mine: list[str] = []

    async def write_too() -> None:
        with trio.move_on_after(10):
            try:
                while True:
                    event = message(ALICE, channel, f"mine {len(mine)}")
                    mine.append(event.id)
                    await client.send("EVENT", fields(event))
                    await trio.sleep(0.001)
            except Exception:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(write_too)
        await client.until("EVENT", "s")
        await watched.revoke_elsewhere(token_id)
        assert await client.closed() == (1008, "token revoked")
        stop = True
    place = client.frames.index(["CLOSED", "s", "auth-required: token revoked"])
    assert {frame[0] for frame in client.frames[place + 1 :]} <= {"OK"}
    # What was not read was not stored.
    stored = await relay.core.pool.fetchval(
        "SELECT count(*) FROM events WHERE pubkey = $1 AND kind = 9", bytes.fromhex(ALICE.pubkey)
    )
    assert stored < len(mine)


async def test_a_replay_is_broken_off(watched: Watched) -> None:
    """Stored events on their way to a client that does not read: they wait, and never come."""
    relay = watched.relay
    channel = await relay.channel(ALICE)
    writer = await relay.connect(ALICE)
    for number in range(64):
        await writer.publish(message(ALICE, channel, f"{number} " + "x" * 60_000))
    token_id, text = await watched.mint(ALICE)
    client = await watched.log_in(ALICE, text)
    await client.send("REQ", "s", {"kinds": [9], "#h": [channel]})
    await client.expect("EVENT", "s")
    await trio.testing.wait_all_tasks_blocked(0.05)
    await watched.revoke_elsewhere(token_id)
    assert (await client.closed())[0] == 1008
    assert client.frames[-1] == ["CLOSED", "s", "auth-required: token revoked"]
    assert len(client.frames) < 64
    assert relay.core.hub.statistics().subscriptions == 0


async def test_events_that_wait_for_a_slow_client_are_withdrawn(watched: Watched) -> None:
    """Of a channel or of none; the answer to what it had published itself still comes."""
    relay = watched.relay
    channel = await relay.channel(ALICE, BOB)
    token_id, text = await watched.mint(ALICE)
    client = await relay.connect(receive_buffer=4096)
    assert (await client.log_in(ALICE, tags=[["auth_token", text]]))[2:] == [True, ""]
    await client.request("s", {"kinds": [9], "#h": [channel]})
    await client.request("t", {"kinds": [1], "authors": [BOB.pubkey]})
    (session,) = relay.core.hub.peers_with_token(token_id)
    writer, published = await relay.connect(BOB), 0
    while session.outbound.statistics().queued_frames < 6:
        text = f"{published} " + "x" * 30_000
        await writer.publish(message(BOB, channel, text) if published % 2 else BOB.sign(1, text))
        published += 1
    mine = ALICE.sign(1, "mine")
    await client.send("EVENT", fields(mine))
    with trio.fail_after(10):
        while not await relay.core.pool.fetchval("SELECT true FROM events WHERE id = $1", bytes.fromhex(mine.id)):
            await trio.sleep(0.01)
    await trio.testing.wait_all_tasks_blocked(0.05)
    unsent = session.outbound.statistics().queued_frames - 1
    assert relay.endpoint.end_identity(token_id, Why.REVOKED) == 1
    assert (await client.closed())[0] == 1008
    assert [frame[0] for frame in client.frames] == ["EVENT"] * (published - unsent) + ["OK", "CLOSED", "CLOSED"]


async def test_a_request_that_waits_for_the_store_is_broken_off(watched: Watched) -> None:
    """It has no subscription yet that could be ended; it must not get one when the store answers after all."""
    relay = watched.relay
    writer = await relay.connect(ALICE)
    assert (await writer.publish(ALICE.sign(1, "stored")))[2:] == [True, ""]
    token_id, text = await watched.mint(BOB)
    client = await watched.log_in(BOB, text)
    con = await connect(relay.core.dsn)
    async with con.transaction():
        await con.execute("LOCK TABLE channel_members IN ACCESS EXCLUSIVE MODE")
        await client.send("REQ", "s", {"kinds": [1]})
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        with trio.fail_after(5):
            while not await con.fetchval(waiting):
                await trio.sleep(0.01)
        assert relay.endpoint.end_identity(token_id, Why.REVOKED) == 1
    await con.close()
    assert await client.closed() == (1008, "token revoked")
    assert client.frames == []
    assert relay.core.hub.statistics().subscriptions == 0


async def test_a_token_expires_on_time(watched: Watched) -> None:
    _, text = await watched.mint(ALICE, expires_days=1)
    await watched.relay.core.pool.execute("UPDATE api_tokens SET expires_at = now() + interval '1.5 s'")
    end = await watched.relay.core.pool.fetchval("SELECT extract(epoch FROM expires_at)::float8 FROM api_tokens")
    client = await watched.log_in(ALICE, text)
    await client.request("s", {"kinds": [1]})
    before = ended("expired")
    assert await client.closed() == (1008, "token expired")
    assert 0 <= time.time() - end < 1
    assert client.frames == [["CLOSED", "s", "auth-required: token expired"]]
    assert ended("expired") == before + 1


async def test_a_json_web_token_from_login_to_end(migrated_dsn: str) -> None:
    async with trio.open_nursery() as nursery:
        provider = await running_provider(nursery)
        async with watching(migrated_dsn, require_auth_token=True, **provider.settings()) as watched:
            refused = await (await watched.relay.connect()).log_in(ALICE)
            assert refused[2:] == [False, "auth-required: verification failed"]
            stolen = await watched.relay.connect()
            text = provider.token(ALICE.pubkey, scp=["messages:read", "messages:write"], exp=int(time.time()) + 3)
            refused = await stolen.log_in(BOB, tags=[["auth_token", text]])
            assert refused[2:] == [False, "auth-required: verification failed"]
            client = await watched.log_in(ALICE, text)
            note = ALICE.sign(1, "hello")
            assert (await client.publish(note))[2:] == [True, ""]
            assert [event["id"] for event in await client.request("s", {"kinds": [1]})] == [note.id]
            profile = await client.publish(ALICE.sign(0, "{}"))
            assert profile[2:] == [False, "restricted: insufficient scope (need users:write)"]
            end = max(each.caller.expires_at or 0 for each in watched.relay.endpoint.sessions() if each.caller)
            assert await client.closed() == (1008, "token expired")
            assert 0 <= time.time() - end < 1
            assert client.frames == [["CLOSED", "s", "auth-required: token expired"]]
            rows = await watched.relay.core.pool.fetch(
                "SELECT actor, metadata FROM audit_log WHERE action = 'auth_success'"
                " UNION ALL SELECT actor, metadata FROM audit_outbox WHERE action = 'auth_success'"
            )
            assert [(row["actor"], '"oidc"' in row["metadata"]) for row in rows] == [(ALICE.pubkey, True)]
            assert text not in str(rows)
        nursery.cancel_scope.cancel()


async def test_an_identity_is_ended_once(watched: Watched) -> None:
    relay = watched.relay
    token_id, text = await watched.mint(ALICE)
    client, other = await watched.log_in(ALICE, text), await relay.connect()
    sessions = {each.caller is not None: each for each in relay.endpoint.sessions()}
    before = ended("expired")
    assert relay.endpoint.end_identity(sessions[False], Why.EXPIRED) == 0
    assert relay.endpoint.end_identity(token_id, Why.EXPIRED) == 1
    assert relay.endpoint.end_identity(token_id, Why.REVOKED) == 0
    assert relay.endpoint.end_identity(sessions[True], Why.REVOKED) == 0
    assert await client.closed() == (1008, "token expired")
    assert ended("expired") == before + 1
    assert (await other.log_in(BOB))[2:] == [True, ""]
