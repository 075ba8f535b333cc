"""Tokens that end over HTTP while a WebSocket holds them: on a relay as it is started, through its own port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import orjson
import pytest
import trio

from tests.support.core import ALICE, BOB, Person
from tests.support.launching import Launched, launched, reachable_dir
from tests.support.minting import authorization
from tests.support.relay import Client

SECONDS = 20


# By the notice of the database then, and not by the round that asks about all tokens now and then.
ENVIRONMENT = {"SPROUT_TOKEN_CHECK_SECONDS": "3600"}


@pytest.fixture
async def relay(migrated_dsn: str) -> AsyncIterator[Launched]:
    with reachable_dir() as directory:
        async with launched("relay serve", directory, DATABASE_URL=migrated_dsn, **ENVIRONMENT) as running:
            yield await running.ready()


@asynccontextmanager
async def http(relay: Launched) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{relay.port}", timeout=SECONDS, trust_env=False
    ) as client:
        yield client


async def mint(relay: Launched, client: httpx2.AsyncClient, person: Person) -> dict[str, str]:
    body = orjson.dumps({"name": "socket", "scopes": ["messages:read", "channels:read"]})
    header = authorization(person.key, body, u=f"http://127.0.0.1:{relay.port}/api/tokens")
    answer = await client.post("/api/tokens", content=body, headers={"Authorization": header})
    assert answer.status_code == 201, answer.text
    found: dict[str, str] = answer.json()
    return found


async def log_in(relay: Launched, nursery: trio.Nursery, person: Person, token: str) -> Client:
    client = await relay.connect(nursery)
    assert (await client.log_in(person, relay=relay.url, tags=[["auth_token", token]]))[2:] == [True, ""]
    return client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_one_and_all(relay: Launched, nursery: trio.Nursery) -> None:
    async with http(relay) as client:
        first, second, third = [await mint(relay, client, ALICE) for _ in range(3)]
        other = await mint(relay, client, BOB)
        sockets = [await log_in(relay, nursery, ALICE, token["token"]) for token in (first, first, second, third)]
        bob = await log_in(relay, nursery, BOB, other["token"])

        answer = await client.delete(f"/api/tokens/{first['id']}", headers=bearer(second["token"]))
        assert (answer.status_code, answer.content) == (204, b"")
        assert "Content-Type" not in answer.headers
        answer = await client.get("/api/channels", headers=bearer(first["token"]))
        assert (answer.status_code, answer.json()) == (401, {"error": "token_revoked"})
        for socket in sockets[:2]:
            assert await socket.closed() == (1008, "token revoked")
        assert await sockets[2].request("still", {"kinds": [9], "limit": 1}) == []

        answer = await client.delete("/api/tokens", headers=bearer(second["token"]))
        assert answer.json() == {"revoked_count": 2}
        for token in (second, third):
            assert (await client.get("/api/tokens", headers=bearer(token["token"]))).status_code == 401
        for socket in sockets[2:]:
            assert await socket.closed() == (1008, "token revoked")
        assert await bob.request("still", {"kinds": [9], "limit": 1}) == []
        # A login with what has ended is none.
        late = await relay.connect(nursery)
        refused = await late.log_in(ALICE, relay=relay.url, tags=[["auth_token", third["token"]]])
        assert refused[2:] == [False, "auth-required: invalid token"]
