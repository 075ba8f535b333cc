"""Who a request comes from: tokens, the development header and each of its conditions, and what is neither."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import pytest
import trio
from werkzeug.datastructures import Headers

from relay.access.authenticate import Authenticator
from relay.http.app import create_app
from relay.store import tokens
from tests.support.http import LOOPBACK, Rig, new_key
from tests.support.provider import running_provider

FAILED = {"error": "authentication failed"}
REQUIRED = {"error": "authentication required"}


async def test_no_credential(rig: Rig) -> None:
    found = await rig.get("/api/channels")
    assert (found.status, found.json) == (401, REQUIRED)
    assert rig.statements == []


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("Basic abc", REQUIRED),
        ("bearer sprout_" + "0" * 64, REQUIRED),
        ("Bearer", REQUIRED),
        ("Bearer ", FAILED),
        ("Bearer eyJhbGciOiJub25lIn0.e30.", FAILED),
        ("Bearer sprout_", {"error": "invalid_token"}),
        ("Bearer sprout_" + "0" * 64, {"error": "invalid_token"}),
        ("Bearer sprout_" + "G" * 64, {"error": "invalid_token"}),
        (
            "Nostr eyJ9",
            {"error": "nip98_not_supported", "message": "NIP-98 auth is only supported for POST /api/tokens"},
        ),
    ],
)
async def test_other_credentials(rig: Rig, header: str, answer: dict[str, str]) -> None:
    found = await rig.get("/api/channels", headers={"Authorization": header})
    assert (found.status, found.json) == (401, answer)


async def test_only_an_ignored_scheme_falls_through_to_the_header(rig: Rig) -> None:
    key = new_key()
    for header, status in [("Basic x", 200), ("Bearer x", 401), ("Bearer sprout_x", 401), ("Nostr x", 401)]:
        found = await rig.get("/api/channels", key=key, headers={"Authorization": header})
        assert found.status == status, header


async def test_a_token_that_works_and_its_scopes(rig: Rig) -> None:
    token = await rig.mint(new_key(), ["channels:read", "something:else"])
    assert tokens.is_well_formed(token)
    assert (await rig.get("/api/channels", token=token)).status == 200
    assert len(rig.statements) == 2
    denied = await rig.get("/api/dms", token=token)
    assert (denied.status, denied.json["message"]) == (403, "token missing required scope: messages:read")


async def test_a_revoked_token_is_refused_from_the_next_request_on(rig: Rig) -> None:
    token = await rig.mint(new_key(), ["channels:read"])
    assert (await rig.get("/api/channels", token=token)).status == 200
    (found,) = await tokens.newest(rig.con)
    assert await tokens.revoke(rig.con, found.id) is tokens.Revocation.DONE
    answer = await rig.get("/api/channels", token=token)
    assert (answer.status, answer.json) == (401, {"error": "token_revoked"})


async def test_an_expired_token(rig: Rig) -> None:
    token = await rig.mint(new_key(), ["channels:read"], expires_days=1)
    assert (await rig.get("/api/channels", token=token)).status == 200
    await rig.con.execute("UPDATE api_tokens SET expires_at = now() - interval '1 ms'")
    answer = await rig.get("/api/channels", token=token)
    assert (answer.status, answer.json) == (401, {"error": "token_expired"})
    # Revocation is looked at first.
    await rig.con.execute("UPDATE api_tokens SET revoked_at = now()")
    assert (await rig.get("/api/channels", token=token)).json == {"error": "token_revoked"}


async def test_failed_credentials_are_counted_for_the_audit(rig: Rig) -> None:
    for _ in range(3):
        await rig.get("/api/channels", headers={"Authorization": "Bearer sprout_" + secrets.token_hex(32)})
    await rig.get("/api/channels")  # shows nothing, so nothing failed
    entries = rig.services.ingest._notes.take(2**60, everything=True)
    assert [(entry.action, entry.actor) for entry in entries] == [("auth_failure", None)]
    assert '"http: invalid_token"' in entries[0].metadata
    assert "127.0.0.1" in entries[0].metadata


async def test_the_header_grants_everything_known_and_makes_a_user_once(rig: Rig) -> None:
    key = new_key()
    for _ in range(2):
        assert (await rig.get("/api/channels", headers={"x-pubkey": key.public_hex.upper()})).status == 200
    assert [s for s in rig.statements if "INSERT INTO users" in s] == rig.statements[:1]
    assert await rig.con.fetchval("SELECT count(*) FROM users WHERE pubkey = $1", bytes.fromhex(key.public_hex)) == 1


@pytest.mark.parametrize("value", ["", "00" * 32, "ff" * 32, "ab", "z" * 64, "0x" + "1" * 62])
async def test_a_header_that_is_no_key(rig: Rig, value: str) -> None:
    found = await rig.get("/api/channels", headers={"X-Pubkey": value})
    assert (found.status, found.json) == (401, FAILED)


PROXY = [
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Whatever", "Via",
    "X-Real-IP", "X-Envoy-Downstream-Service-Cluster", "X-Original-URL", "X-Client-IP", "X-Cluster-Client-IP",
    "X-NginX-Proxy", "X-ProxyUser-Ip", "X-Scheme", "X-Remote-User", "X-Amzn-Trace-Id", "X-Azure-ClientIP",
    "CF-Connecting-IP", "CF-Ray", "CDN-Loop", "True-Client-IP", "Fly-Client-IP", "Fastly-Client-IP", "Remote-User",
    "Proxy-Connection", "SSL-Client-Cert",
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "scope", "headers"),
    [
        ({"dev_x_pubkey": False}, {}, {}),
        ({"require_auth_token": True}, {}, {}),
        ({"relay_url": "wss://relay.example"}, {}, {}),
        ({}, {"client": ("192.0.2.1", 5)}, {}),
        ({}, {"server": ("192.0.2.1", 3000)}, {}),
        ({}, {"client": None}, {}),
        ({}, {"client": ("::ffff:192.0.2.1", 5)}, {}),
        ({}, {"client": ("<local>", 5)}, {}),
        ({}, {"server": ("/run/relay.sock", None)}, {}),
        ({}, {"http_version": "1.0"}, {}),
        ({}, {"http_version": "0.9"}, {}),
        ({}, {}, {"Connection": "close"}),
        ({}, {}, {"Connection": "TE, Close"}),
        ({}, {}, {"Host": "rebound.example:3000"}),
        ({}, {}, {"Host": "127.0.0.1.example"}),
        ({}, {}, {"Host": "[::1"}),
        ({}, {}, {"Origin": "https://page.example"}),
        ({}, {}, {"Origin": "null"}),
        *(({}, {}, {name: "x"}) for name in PROXY),
    ],
)
async def test_each_condition_of_the_header(
    rig: Rig, settings: dict[str, Any], scope: dict[str, Any], headers: dict[str, str]
) -> None:
    """With this one thing wrong the header is as good as not there."""
    app = rig.with_settings(**settings)
    key = new_key()
    found = await rig.get("/api/channels", key=key, app=app, scope=LOOPBACK | scope, headers=headers)
    assert (found.status, found.json) == (401, REQUIRED)
    assert rig.statements == []


@pytest.mark.parametrize(
    ("scope", "headers"),
    [
        ({}, {}),
        ({"client": ("127.9.8.7", 5)}, {}),
        ({"client": ("::1", 5), "server": ("::1", 3000)}, {"Host": "[::1]:3000"}),
        ({"client": ("::ffff:127.0.0.1", 5)}, {}),
        ({}, {"Connection": "keep-alive"}),
        ({"http_version": "2"}, {}),
        ({}, {"Origin": "tauri://localhost"}),
        ({}, {"Origin": "http://tauri.localhost"}),
        ({}, {"Origin": "http://localhost:1420", "Host": "localhost:3000"}),
    ],
)
async def test_what_the_header_counts_on(rig: Rig, scope: dict[str, Any], headers: dict[str, str]) -> None:
    found = await rig.get("/api/channels", key=new_key(), scope=LOOPBACK | scope, headers=headers)
    assert found.status == 200


async def test_two_headers_are_one_too_many(rig: Rig) -> None:
    first, second = new_key(), new_key()
    headers = Headers([("X-Pubkey", first.public_hex), ("X-Pubkey", second.public_hex)])
    found = await rig.app.test_client(use_cookies=False).get("/api/channels", headers=headers, scope_base=LOOPBACK)
    assert found.status_code == 401


async def test_a_store_that_fails_is_not_the_credentials_fault(rig: Rig) -> None:
    """A client that is told "invalid token" would throw a good one away."""
    token = await rig.mint(new_key(), ["channels:read"])
    rig.services.pool.abort()
    found = await rig.get("/api/channels", token=token)
    assert (found.status, found.json) == (503, {"error": "temporarily unavailable"})


@pytest.mark.parametrize("required", [False, True])
async def test_a_json_web_token(rig: Rig, nursery: trio.Nursery, required: bool) -> None:
    provider, key = await running_provider(nursery), new_key()
    settings = rig.services.settings.model_copy(update={**provider.settings(), "require_auth_token": required})
    authenticator = Authenticator(rig.services.pool, settings, settings.relay_url)
    app = create_app(replace(rig.services, settings=settings, authenticator=authenticator))
    text = provider.token(key.public_hex, scp=["users:read"])
    assert (await rig.get("/api/channels", token=text, app=app)).status == 200
    denied = await rig.get("/api/dms", token=text, app=app)
    assert (denied.status, denied.json["message"]) == (403, "token missing required scope: messages:read")
    assert await rig.con.fetchval("SELECT count(*) FROM users WHERE pubkey = $1", bytes.fromhex(key.public_hex)) == 1
    for scope, status in (("users:read", 201), ("messages:read", 403)):
        minted = await rig.post("/api/tokens", token=text, app=app, json={"name": "n", "scopes": [scope]})
        assert minted.status == status
    for wrong in (text[:-8] + "AAAAAAAA", provider.token(key.public_hex, aud="other"), provider.token(None), "x"):
        # Whoever shows a bearer token is measured by it, whatever else is there.
        answer = await rig.get("/api/channels", token=wrong, key=key, app=app)
        assert (answer.status, answer.json) == (401, FAILED)
    (entry,) = rig.services.ingest._notes.take(2**60, everything=True)
    assert '"count":4' in entry.metadata.replace(" ", "")
    assert text[:20] not in entry.metadata
