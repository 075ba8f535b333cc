"""`POST /api/tokens`: what it makes, and what a request can have wrong, in the order in which it is told."""

from __future__ import annotations

import secrets
from typing import Any

import orjson
import pytest
import trio

from relay.store import tokens
from tests.support.http import Rig, new_key
from tests.support.minting import app_with, ask, ask_signed, authorization, wanted

ALL = ["messages:read", "messages:write", "channels:read", "channels:write", "users:read", "users:write", "files:read",
       "files:write"]  # fmt: skip
SCOPED = {"name": "invalid_name: name must be 1–100 characters", "empty": "invalid_scopes: scopes must not be empty"}


def escalation(text: str) -> dict[str, str]:
    return {"error": "channel_escalation", "message": f"Your token is channel-restricted; minted tokens must {text}"}


# -- what it makes ---------------------------------------------------------------------------------------------------


async def test_a_token_of_a_key_of_its_own(rig: Rig) -> None:
    key = new_key()
    answer = await ask_signed(rig, key, scopes=[*ALL, "messages:read"], expires_in_days=365)
    assert answer.status == 201
    assert answer.headers["Cache-Control"] == "no-store"
    text = answer.json["token"]
    assert tokens.is_well_formed(text)
    found = await tokens.look_up(rig.con, tokens.digest(text))
    assert found is not None
    assert (found.id, found.owner, found.scopes, found.channel_ids) == (
        answer.json["id"], key.public_hex, tuple(ALL), None,
    )  # fmt: skip
    assert found.expires_at is not None
    assert (found.expires_at - found.created_at).days == 365
    assert {name: answer.json[name] for name in ("name", "scopes", "channel_ids")} == {
        "name": "bot", "scopes": ALL, "channel_ids": [],
    }  # fmt: skip
    assert sorted(answer.json) == ["channel_ids", "created_at", "expires_at", "id", "name", "scopes", "token"]
    assert await rig.con.fetchval("SELECT created_by_self_mint FROM api_tokens") is True
    assert (await rig.get("/api/channels", token=text)).status == 200


async def test_it_is_in_the_audit_log_without_its_text(rig: Rig) -> None:
    key = new_key()
    channel = await rig.channel(key)
    made = (await ask_signed(rig, key, channel_ids=[channel])).json
    columns = "SELECT action, actor, metadata, event_id FROM"
    (entry,) = await rig.con.fetch(f"{columns} audit_outbox UNION ALL {columns} audit_log")
    assert (entry["action"], entry["actor"], entry["event_id"]) == ("token_created", key.public_hex, None)
    assert orjson.loads(entry["metadata"]) == {
        "by": "http", "token_id": made["id"], "owner": key.public_hex, "scopes": ["messages:read"],
        "channels": [channel],
    }  # fmt: skip
    assert made["token"] not in entry["metadata"]
    assert tokens.digest(made["token"]).hex() not in entry["metadata"]


async def test_statements_do_not_grow_with_the_channels(rig: Rig) -> None:
    for count in (1, 20, 200):
        key = new_key()
        channels = [await rig.channel(key) for _ in range(count)]
        rig.statements.clear()
        answer = await ask_signed(rig, key, channel_ids=channels)
        assert answer.json["channel_ids"] == sorted(channels)
        assert len(rig.statements) == 2  # the user's row, the channels; the rest is the worker's


async def test_every_credential_may_ask(rig: Rig) -> None:
    key = new_key()
    assert (await rig.post("/api/tokens", key=key, json=wanted(scopes=ALL))).status == 201
    token = await rig.mint(key, ["users:read"])
    assert (await ask(rig, token=token, scopes=["users:read"])).status == 201
    # What type the body says to be is not looked at.
    body = orjson.dumps(wanted())
    headers = {"Authorization": authorization(key, body), "Content-Type": "text/plain"}
    assert (await rig.post("/api/tokens", data=body, headers=headers)).status == 201


async def test_channel_ids_in_any_spelling_are_kept_once(rig: Rig) -> None:
    key = new_key()
    one, two = sorted([await rig.channel(key), await rig.channel(key)])
    spelled = [two, one.upper(), one.replace("-", ""), f"urn:uuid:{two}", f"{{{one}}}"]
    assert (await ask_signed(rig, key, channel_ids=spelled)).json["channel_ids"] == [one, two]
    assert (await ask_signed(rig, key, channel_ids=None)).json["channel_ids"] == []
    assert (await ask_signed(rig, key, channel_ids=[])).json["channel_ids"] == []


# -- 1 to 2: the body, then who asks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"name":"n"}', b'{"scopes":[]}', b'{"name":1,"scopes":[]}',
        b'{"name":null,"scopes":[]}', b'{"name":"n","scopes":"x"}', b'{"name":"n","scopes":[1]}',
        b'{"name":"n","scopes":null}', b'{"name":"n","scopes":[],"channel_ids":"x"}',
        b'{"name":"n","scopes":[],"channel_ids":[null]}', b'{"name":"n","scopes":[],"expires_in_days":-1}',
        b'{"name":"n","scopes":[],"expires_in_days":4294967296}', b'{"name":"n","scopes":[],"expires_in_days":1.5}',
        b'{"name":"n","scopes":[],"expires_in_days":true}', b'{"name":"n","scopes":[],"owner_pubkey":1}',
        b'{"name":"\xff","scopes":[]}', b'{"name":"\\ud800","scopes":[]}',
    ],
)  # fmt: skip
async def test_the_body_comes_before_who_asks(rig: Rig, body: bytes) -> None:
    answer = await rig.post("/api/tokens", data=body)
    assert answer.status == 400
    assert list(answer.json) == ["error"]
    assert answer.json["error"].startswith("invalid request body: ")
    assert answer.headers["Content-Type"] == "application/json"
    assert rig.statements == []


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": "0" * 64},
        {"payload": ""},
        {"method": "GET"},
        {"method": None},
        {"u": None},
        {"u": "http://localhost:3000/api/token"},
        {"u": "https://localhost:3000/api/tokens"},
        {"u": "http://localhost:3001/api/tokens"},
        {"u": "http://elsewhere.example/api/tokens"},
        {"kind": 22242},
        {"at": 1_700_000_000},
        {"at": 4_000_000_000},
    ],
)
async def test_a_signature_of_something_else(rig: Rig, changes: dict[str, Any]) -> None:
    body = orjson.dumps(wanted())
    header = authorization(new_key(), body, **changes)
    answer = await rig.post("/api/tokens", data=body, headers={"Authorization": header})
    assert (answer.status, answer.json) == (401, {"error": "invalid_auth", "message": "NIP-98 verification failed"})
    assert rig.statements == []


@pytest.mark.parametrize("header", ["Nostr ", "Nostr !!!", "Nostr eyJ9", "Nostr /w==", "Nostr bnVsbA=="])
async def test_what_is_no_signature_at_all(rig: Rig, header: str) -> None:
    answer = await rig.post("/api/tokens", json=wanted(), headers={"Authorization": header})
    assert (answer.status, answer.json) == (401, {"error": "invalid_auth", "message": "NIP-98 verification failed"})


async def test_the_signature_is_of_the_body(rig: Rig) -> None:
    body = orjson.dumps(wanted())
    header = authorization(new_key(), body, payload=None)
    answer = await rig.post("/api/tokens", data=body, headers={"Authorization": header})
    message = "NIP-98 payload tag required for POST /api/tokens"
    assert (answer.status, answer.json) == (401, {"error": "invalid_auth", "message": message})
    header = authorization(new_key(), body)
    answer = await rig.post("/api/tokens", data=body + b" ", headers={"Authorization": header})
    assert (answer.status, answer.json["message"]) == (401, "NIP-98 verification failed")


@pytest.mark.parametrize("url", ["http://127.0.0.1:3000/api/tokens/", "HTTP://[::1]:3000/api/tokens"])
async def test_spellings_of_the_address(rig: Rig, url: str) -> None:
    body = orjson.dumps(wanted())
    header = authorization(new_key(), body, u=url, method="post")
    assert (await rig.post("/api/tokens", data=body, headers={"Authorization": header})).status == 201


async def test_a_signed_request_is_good_once(rig: Rig) -> None:
    body = orjson.dumps(wanted())
    headers = {"Authorization": authorization(new_key(), body)}
    statuses: list[int] = []

    async def send() -> None:
        statuses.append((await rig.post("/api/tokens", data=body, headers=headers)).status)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(send)
    assert sorted(statuses) == [201, 401, 401, 401]
    again = await rig.post("/api/tokens", data=body, headers=headers)
    assert (again.status, again.json) == (401, {"error": "invalid_auth", "message": "NIP-98 verification failed"})
    assert await rig.con.fetchval("SELECT count(*) FROM api_tokens") == 1


async def test_the_allow_list_rules_who_may_make_himself_a_token(rig: Rig) -> None:
    app, key = app_with(rig, pubkey_allowlist=True), new_key()
    answer = await ask_signed(rig, key, app)
    assert (answer.status, answer.json) == (401, {"error": "invalid_auth", "message": "NIP-98 verification failed"})
    assert await rig.con.fetchval("SELECT count(*) FROM users") == 0
    await rig.con.execute("INSERT INTO pubkey_allowlist (pubkey) VALUES ($1)", bytes.fromhex(key.public_hex))
    made = await ask_signed(rig, key, app)
    assert made.status == 201
    # A token is its own permission.
    await rig.con.execute("DELETE FROM pubkey_allowlist")
    assert (await ask(rig, app, token=made.json["token"])).status == 201


async def test_refused_signatures_are_counted_for_the_audit(rig: Rig) -> None:
    body = orjson.dumps(wanted())
    for _ in range(2):
        headers = {"Authorization": authorization(new_key(), body, method="PUT")}
        await rig.post("/api/tokens", data=body, headers=headers)
    (entry,) = rig.services.ingest._notes.take(2**60, everything=True)
    assert entry.action == "auth_failure"
    assert "http: method mismatch" in entry.metadata


# -- 3 to 7: what is asked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status", "body"),
    [
        ({"name": ""}, 400, {"error": SCOPED["name"]}),
        ({"name": "é" * 51}, 400, {"error": SCOPED["name"]}),
        ({"name": "a\0b"}, 400, {"error": "invalid_name: name must not contain NUL"}),
        ({"name": "", "scopes": []}, 400, {"error": SCOPED["name"]}),
        ({"scopes": []}, 400, {"error": SCOPED["empty"]}),
        ({"scopes": ["x"]}, 400, {"error": "invalid_scopes", "message": "unknown scope: x"}),
        (
            {"scopes": ["users:read", "admin:users", "x"]},
            400,
            {"error": "invalid_scopes", "message": "scope requires admin: admin:users"},
        ),
        (
            {"scopes": ["proxy:submit"]},
            400,
            {"error": "invalid_scopes", "message": "scope requires admin: proxy:submit"},
        ),
        ({"scopes": ["jobs:read"]}, 400, {"error": "invalid_scopes", "message": "scope requires admin: jobs:read"}),
        (
            {"channel_ids": ["nil"]},
            400,
            {"error": "invalid_channel_ids", "message": "malformed UUID: nil"},
        ),
        (
            {"channel_ids": ["nil"], "owner_pubkey": "x"},
            400,
            {"error": "invalid_channel_ids", "message": "malformed UUID: nil"},
        ),
        ({"owner_pubkey": "x"}, 400, {"error": "invalid owner_pubkey hex"}),
        ({"owner_pubkey": "zz"}, 400, {"error": "invalid owner_pubkey hex"}),
        ({"owner_pubkey": "abc"}, 400, {"error": "invalid owner_pubkey hex"}),
        ({"owner_pubkey": "ab"}, 400, {"error": "owner_pubkey must be 32 bytes (64 hex chars)"}),
        (
            {"owner_pubkey": "ab", "expires_in_days": 0},
            400,
            {"error": "owner_pubkey must be 32 bytes (64 hex chars)"},
        ),
        ({"expires_in_days": 0}, 400, {"error": "invalid expires_in_days: must be 1–365"}),
        ({"expires_in_days": 366}, 400, {"error": "invalid expires_in_days: must be 1–365"}),
        (
            {"expires_in_days": 366, "owner_pubkey": "ab" * 32},
            400,
            {"error": "invalid expires_in_days: must be 1–365"},
        ),
        (
            {"owner_pubkey": "ab" * 32},
            400,
            {"error": "owned agents require the 'users:read' scope for controllability"},
        ),
    ],
)
async def test_what_a_signed_request_can_have_wrong(
    rig: Rig, changes: dict[str, Any], status: int, body: dict[str, str]
) -> None:
    answer = await ask_signed(rig, new_key(), **changes)
    assert (answer.status, answer.json) == (status, body)
    assert await rig.con.fetchval("SELECT count(*) FROM api_tokens") == 0


async def test_a_token_gives_no_more_than_it_has(rig: Rig) -> None:
    token = await rig.mint(new_key(), ["messages:read", "admin:users"])
    answer = await ask(rig, token=token, scopes=["messages:read", "messages:write"])
    message = "Cannot mint scope 'messages:write' — not in your token's scopes"
    assert (answer.status, answer.json) == (403, {"error": "scope_escalation", "message": message})
    # An administrator's scope is not handed on, even by one who has it, and that is told first.
    answer = await ask(rig, token=token, scopes=["messages:write", "admin:users"])
    assert answer.json == {"error": "invalid_scopes", "message": "scope requires admin: admin:users"}
    assert (await ask(rig, token=token)).status == 201


async def test_a_restricted_token_makes_tokens_within_its_own_channels(rig: Rig) -> None:
    key = new_key()
    inside, outside = await rig.channel(key), await rig.channel(key)
    token = await rig.mint(key, ["messages:read"], [inside])
    answer = await ask(rig, token=token)
    assert (answer.status, answer.json) == (403, escalation("also specify channel_ids (subset of yours)"))
    answer = await ask(rig, token=token, channel_ids=[])
    assert (answer.status, answer.json) == (403, escalation("specify non-empty channel_ids (subset of yours)"))
    answer = await ask(rig, token=token, channel_ids=[inside, "x", outside.upper()])
    message = f"Cannot mint access to channel {outside} — not in your token's channel_ids"
    assert (answer.status, answer.json) == (403, {"error": "channel_escalation", "message": message})
    assert (await ask(rig, token=token, channel_ids=["x"])).json["message"] == "malformed UUID: x"
    made = await ask(rig, token=token, channel_ids=[inside])
    assert (made.status, made.json["channel_ids"]) == (201, [inside])
    nowhere = await rig.mint(key, ["messages:read"], [])
    assert (await ask(rig, token=nowhere, channel_ids=[inside])).json["error"] == "channel_escalation"


async def test_a_guess_at_a_token(rig: Rig) -> None:
    answer = await ask(rig, token="sprout_" + secrets.token_hex(32))
    assert (answer.status, answer.json) == (401, {"error": "invalid_token"})
    answer = await ask(rig)
    assert (answer.status, answer.json) == (401, {"error": "authentication required"})
