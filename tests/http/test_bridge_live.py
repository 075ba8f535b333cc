"""The bridge of a relay as it is started: signed requests through its own port, and one budget for both doors."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import httpx2
import orjson
import pytest
import trio

from relay.nostr.keys import SecretKey
from tests.support.core import ALICE
from tests.support.http import signed
from tests.support.launching import Launched, launched, reachable_dir
from tests.support.minting import authorization

SECONDS = 20
REQUESTS = 3


@pytest.fixture
async def relay(migrated_dsn: str) -> AsyncIterator[Launched]:
    with reachable_dir() as directory:
        environment = {"DATABASE_URL": migrated_dsn, "SPROUT_RATE_REQUESTS": str(REQUESTS)}
        async with launched("relay serve", directory, **environment) as running:
            yield await running.ready()


async def post(relay: Launched, client: httpx2.AsyncClient, key: SecretKey, path: str, body: bytes) -> httpx2.Response:
    url = f"http://127.0.0.1:{relay.port}{path}"
    return await client.post(url, content=body, headers={"Authorization": authorization(key, body, u=url)})


async def test_a_channel_a_message_and_both_questions(relay: Launched, nursery: trio.Nursery) -> None:
    channel = str(uuid.uuid4())
    about = orjson.dumps([{"#h": [channel], "kinds": [9]}])
    message = signed(ALICE.key, 9, [["h", channel]], "hello")
    async with httpx2.AsyncClient(timeout=SECONDS, trust_env=False) as client:
        for event in (signed(ALICE.key, 9007, [["h", channel], ["name", "general"]]), message):
            answer = await post(relay, client, ALICE.key, "/events", event.json)
            assert (answer.status_code, answer.json()["accepted"]) == (200, True)
        answer = await post(relay, client, ALICE.key, "/query", about)
        assert (answer.status_code, answer.content) == (200, b"[" + message.json + b"]")
        answer = await post(relay, client, ALICE.key, "/count", about)
        assert (answer.status_code, answer.json()) == (200, {"count": 1})
        # What was asked here is gone from what the same key may ask on a socket.
        socket = await relay.connect(nursery, ALICE)
        for number in range(REQUESTS - 2):
            await socket.send("COUNT", str(number), {"kinds": [9]})
            assert (await socket.expect("COUNT"))[2] == {"count": 1}
        await socket.send("COUNT", "last", {"kinds": [9]})
        assert (await socket.expect("CLOSED"))[2] == "rate-limited: too many requests, slow down"
        answer = await post(relay, client, ALICE.key, "/query", about)
        assert answer.status_code == 429
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["error"] == "rate-limited: too many requests, slow down"
