"""Signed requests (NIP-98) at the routes that take them, and what else these routes accept."""

from __future__ import annotations

import secrets
import time
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest
import trio
from quart_trio import QuartTrio

from relay.nostr.keys import SecretKey
from tests.support.http import Answer, Rig, new_key, signed
from tests.support.minting import app_with, authorization

BODY = b'[{"kinds":[9]}]'
URL = "http://localhost:3000/query"


async def ask(rig: Rig, header: str, body: bytes = BODY, path: str = "/query", app: QuartTrio | None = None) -> Answer:
    return await rig.post(path, data=body, headers={"Authorization": header}, app=app)


def sign(key: SecretKey, body: bytes = BODY, *, ago: int = 0, **changes: Any) -> str:
    return authorization(key, body, **({"u": URL, "at": int(time.time()) - ago} | changes))


def problem(status: int, error: str, **more: str) -> dict[str, Any]:
    titles = {401: "Unauthorized", 403: "Forbidden"}
    return {"type": "about:blank", "title": titles[status], "status": status, "error": error} | more


async def test_a_signed_request_is_answered_and_makes_a_user(rig: Rig) -> None:
    key = new_key()
    channel = await rig.channel(key)
    event = await rig.message(channel, key, int(time.time()))
    found = await ask(rig, sign(key))
    assert (found.status, [each["id"] for each in found.json]) == (200, [event.id])
    assert await rig.con.fetchval("SELECT count(*) FROM users WHERE pubkey = $1", bytes.fromhex(key.public_hex)) == 1
    assert (await ask(rig, sign(key, u="http://localhost:3000/count"), path="/count")).json == {"count": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": None},
        {"method": "post"},
        {"u": "http://127.0.0.1:3000/query"},
        {"u": "HTTP://LocalHost:3000/query/"},
        {"ago": 30},
        {"ago": -30},
    ],
)
async def test_what_is_as_good(rig: Rig, changes: dict[str, Any]) -> None:
    assert (await ask(rig, sign(new_key(), **changes))).status == 200


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"kind": 1}, "NIP-98: wrong event kind"),
        ({"at": 1_700_000_000}, "NIP-98: timestamp outside of the allowed window"),
        ({"ago": 90}, "NIP-98: timestamp outside of the allowed window"),
        ({"ago": -90}, "NIP-98: timestamp outside of the allowed window"),
        ({"u": "http://localhost:3000/count"}, "NIP-98: URL mismatch"),
        ({"u": "http://localhost:3000/api/tokens"}, "NIP-98: URL mismatch"),
        ({"u": "http://localhost/query"}, "NIP-98: URL mismatch"),
        ({"u": "https://localhost:3000/query"}, "NIP-98: URL mismatch"),
        ({"u": None}, "NIP-98: URL mismatch"),
        ({"method": "GET"}, "NIP-98: method mismatch"),
        ({"method": None}, "NIP-98: method mismatch"),
        ({"payload": sha256(b"[]").hexdigest()}, "NIP-98: payload hash mismatch"),
    ],
)
async def test_what_proves_nothing(rig: Rig, changes: dict[str, Any], error: str) -> None:
    key = new_key()
    found = await ask(rig, sign(key, **changes))
    assert (found.status, found.json) == (401, problem(401, error))
    assert found.headers["content-type"] == "application/problem+json"
    entries = rig.services.ingest._notes.take(2**60, everything=True)
    assert [(entry.action, entry.actor) for entry in entries] == [("auth_failure", None)], "the key is only a claim"
    assert not await rig.con.fetchval("SELECT count(*) FROM users")


async def test_what_is_no_signed_event(rig: Rig) -> None:
    forged = signed(new_key(), 27235, [["u", URL], ["method", "POST"]])
    forged.content = "another"
    forged._json = None
    cases = [
        ("Nostr ", "invalid NIP-98 event JSON"),
        ("Nostr x", "invalid base64 in Nostr auth"),
        ("Nostr e30=", "invalid NIP-98 event JSON"),
        ("Nostr " + b64encode(b"\xff").decode(), "invalid NIP-98 event JSON"),
        ("Nostr " + b64encode(forged.json).decode(), "NIP-98: invalid signature"),
    ]
    for header, error in cases:
        found = await ask(rig, header)
        assert (found.status, found.json) == (401, problem(401, error)), header


async def test_the_host_of_the_request_says_nothing(rig: Rig) -> None:
    """Whoever sends it chooses it; and behind a proxy it is another one."""
    header = sign(new_key(), u="http://evil.example/query")
    found = await rig.post("/query", data=BODY, headers={"Authorization": header, "Host": "evil.example"})
    assert (found.status, found.json["error"]) == (401, "NIP-98: URL mismatch")
    header = sign(new_key())
    found = await rig.post("/query", data=BODY, headers={"Authorization": header, "Host": "inside:8080"})
    assert found.status == 200


async def test_a_query_string_is_signed_too(rig: Rig) -> None:
    key = new_key()
    assert (await ask(rig, sign(key), path="/query?a=1")).json["error"] == "NIP-98: URL mismatch"
    assert (await ask(rig, sign(key, u=URL + "?a=2"), path="/query?a=1")).status == 401
    assert (await ask(rig, sign(key, u=URL + "?a=1"), path="/query?a=1")).status == 200


async def test_each_is_good_once(rig: Rig) -> None:
    key = new_key()
    header = sign(key)
    assert (await ask(rig, header)).status == 200
    found = await ask(rig, header)
    assert (found.status, found.json) == (401, problem(401, "NIP-98: replay detected"))
    # The same event in another spelling is the same event.
    assert (await ask(rig, header.replace("Nostr ", "Nostr  "))).status == 401
    # The same request once more, in the same second: another tag makes another event of it.
    at = int(time.time())
    for nonce, status in (("1", 200), ("2", 200), ("1", 401)):
        assert (await ask(rig, sign(key, at=at, nonce=nonce))).status == status


async def test_of_many_at_once_one_is_good(rig: Rig) -> None:
    header = sign(new_key())
    found: list[int] = []

    async def one() -> None:
        found.append((await ask(rig, header)).status)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(one)
    assert sorted(found) == [200] + [401] * 7


async def test_what_is_refused_for_itself_is_not_used_up(rig: Rig) -> None:
    key = new_key()
    header = sign(key)
    assert (await ask(rig, header, body=b"[]")).json["error"] == "NIP-98: payload hash mismatch"
    assert (await ask(rig, header)).status == 200


async def test_where_tokens_are_required_a_signature_is_not_enough(rig: Rig) -> None:
    key = new_key()
    app = app_with(rig, require_auth_token=True)
    found = await ask(rig, sign(key), app=app)
    assert (found.status, found.json) == (401, problem(401, "NIP-98: this relay requires a token"))
    token = await rig.mint(key, ["messages:read"])
    assert (await rig.post("/query", data=BODY, token=token, app=app)).status == 200
    assert (await rig.post("/query", data=BODY, key=key, app=app)).status == 401


async def test_the_allow_list(rig: Rig) -> None:
    key = new_key()
    app = app_with(rig, pubkey_allowlist=True)
    header = sign(key)
    found = await ask(rig, header, app=app)
    assert (found.status, found.json) == (
        403,
        problem(403, "relay_membership_required", detail="You must be a relay member to access this relay"),
    )
    await rig.con.execute("INSERT INTO pubkey_allowlist (pubkey) VALUES ($1)", bytes.fromhex(key.public_hex))
    assert (await ask(rig, header, app=app)).status == 200
    await rig.con.execute("DELETE FROM pubkey_allowlist")
    assert (await ask(rig, sign(key), app=app)).status == 403


async def test_other_credentials(rig: Rig) -> None:
    key = new_key()
    assert (await rig.post("/query", data=BODY, key=key)).status == 200
    reader, writer = await rig.mint(key, ["messages:read"]), await rig.mint(key, ["messages:write"])
    for path in ("/query", "/count"):
        assert (await rig.post(path, data=BODY, token=reader)).status == 200
        found = await rig.post(path, data=BODY, token=writer)
        detail = "token missing required scope: messages:read"
        assert (found.status, found.json) == (403, problem(403, "insufficient_scope", detail=detail))
    await rig.con.execute("UPDATE api_tokens SET revoked_at = now()")
    assert (await rig.post("/query", data=BODY, token=reader)).json == problem(401, "token_revoked")


@pytest.mark.parametrize("path", ["/query", "/count", "/events"])
async def test_without_any(rig: Rig, path: str) -> None:
    """Before the body is looked at."""
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "missing Nostr auth"),
        ({"Authorization": "nostr e30="}, "missing Nostr auth"),
        ({"Authorization": "Basic e30="}, "missing Nostr auth"),
        ({"X-Pubkey": "ab"}, "invalid X-Pubkey hex"),
        ({"Authorization": "Bearer sprout_" + secrets.token_hex(32)}, "invalid_token"),
        ({"Authorization": "Bearer x.y.z"}, "authentication failed"),
    ]
    for headers, error in cases:
        found = await rig.post(path, data=b"no JSON", headers=headers)
        assert (found.status, found.json) == (401, problem(401, error)), headers


async def test_the_older_routes_take_no_signature(rig: Rig) -> None:
    found = await rig.post(
        "/api/events", data=BODY, headers={"Authorization": sign(new_key(), u="http://localhost:3000/api/events")}
    )
    assert (found.status, found.json["error"]) == (401, "nip98_not_supported")
