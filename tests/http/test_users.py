"""Profiles by key and in batches; what all routes about people ask of their caller."""

from __future__ import annotations

from typing import Any

import pytest

from relay.nostr.keys import SecretKey
from tests.support.http import Rig, new_key

SHAPE = "Failed to deserialize the JSON body into the target type: "
SYNTAX = "Failed to parse the request body as JSON: "
JSON = {"Content-Type": "application/json"}
EMPTY = {"display_name": None, "avatar_url": None, "nip05_handle": None}

# (method, path, body, scope)
ROUTES: list[tuple[str, str, Any, str]] = [
    ("GET", "/api/users/me/profile", None, "users:read"),
    ("GET", f"/api/users/{'ab' * 32}/profile", None, "users:read"),
    ("POST", "/api/users/batch", {"pubkeys": []}, "users:read"),
    ("GET", "/api/users/search?q=x", None, "users:read"),
    ("PUT", "/api/users/me/channel-add-policy", {"channel_add_policy": "anyone"}, "users:write"),
    ("GET", f"/api/users/{'ab' * 32}/notes", None, "messages:read"),
    ("GET", f"/api/users/{'ab' * 32}/contact-list", None, "users:read"),
]


@pytest.mark.parametrize(("method", "path", "body", "scope"), ROUTES)
async def test_who_may_ask(rig: Rig, method: str, path: str, body: object, scope: str) -> None:
    nobody = await rig.request(method, path, json=body)
    assert (nobody.status, nobody.json) == (401, {"error": "authentication required"})
    assert nobody.headers["content-type"] == "application/json"
    scopes = {"users:read", "users:write", "messages:read", "channels:read"}
    token = await rig.mint(new_key(), sorted(scopes - {scope}))
    refused = await rig.request(method, path, json=body, token=token)
    assert (refused.status, refused.json) == (
        403,
        {"error": "insufficient_scope", "message": f"token missing required scope: {scope}"},
    )
    # The one scope is enough, and a list of channels has nothing to do with people.
    allowed = await rig.request(method, path, json=body, token=await rig.mint(new_key(), [scope], channel_ids=[]))
    assert allowed.status in (200, 404), allowed.body


async def known(rig: Rig, name: str | None = None) -> SecretKey:
    key = new_key()
    await rig.con.execute(
        "INSERT INTO users (pubkey, display_name) VALUES ($1, $2)", bytes.fromhex(key.public_hex), name
    )
    return key


# -- one profile -------------------------------------------------------------------------------------------------------


async def test_a_key_is_known_from_its_first_request_on(rig: Rig) -> None:
    me, other = new_key(), new_key()
    unknown = await rig.get(f"/api/users/{me.public_hex}/profile", key=other)
    assert (unknown.status, unknown.json) == (404, {"error": "user not found"})
    own = await rig.get("/api/users/me/profile", key=me)
    assert (own.status, own.json) == (
        200,
        {"pubkey": me.public_hex, **EMPTY, "about": None, "agent_owner_pubkey": None},
    )
    assert (await rig.get(f"/api/users/{me.public_hex.upper()}/profile", key=other)).json == own.json


async def test_a_profile_is_what_its_kind_0_says(rig: Rig) -> None:
    me, owner = new_key(), new_key()
    content = '{"display_name":"Ada","picture":"https://a.example/a.png","about":"counts","nip05":"Ada@localhost","lud16":"x"}'
    assert (await rig.submit(me, 0, [], content)).status == 200
    await rig.get("/api/users/me/profile", key=owner)
    await rig.con.execute(
        "UPDATE users SET agent_owner_pubkey = $1 WHERE pubkey = $2",
        bytes.fromhex(owner.public_hex),
        bytes.fromhex(me.public_hex),
    )
    expected = {
        "pubkey": me.public_hex,
        "display_name": "Ada",
        "avatar_url": "https://a.example/a.png",
        "about": "counts",
        "nip05_handle": "ada@localhost",
        "agent_owner_pubkey": owner.public_hex,
    }
    for path, key in (("/api/users/me/profile", me), (f"/api/users/{me.public_hex}/profile", owner)):
        found = await rig.get(path, key=key)
        assert (found.status, found.json) == (200, expected)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("xyz", "invalid pubkey hex"),
        ("me", "invalid pubkey hex"),
        ("abc", "invalid pubkey hex"),
        ("search", "invalid pubkey hex"),
        ("g" * 64, "invalid pubkey hex"),
        ("%20" * 64, "invalid pubkey hex"),
        ("ab%20cd", "invalid pubkey hex"),
        ("%00", "invalid pubkey hex"),
        ("%C3%A4b", "invalid pubkey hex"),
        ("%D9%A1%D9%A1", "invalid pubkey hex"),  # digits, but not of hex
        ("npub1qqqq", "invalid pubkey hex"),
        ("ab", "pubkey must be 32 bytes"),
        ("ab" * 31, "pubkey must be 32 bytes"),
        ("AB" * 33, "pubkey must be 32 bytes"),
    ],
)
async def test_keys_in_the_path(rig: Rig, text: str, error: str) -> None:
    path = f"/api/users/{text}/profile"
    if text != "me":
        found = await rig.get(path, key=new_key())
        assert (found.status, found.json) == (400, {"error": error})
        assert (await rig.get(path)).status == 401  # who asks comes first
    for social in ("notes", "contact-list"):
        found = await rig.get(f"/api/users/{text}/{social}", key=new_key())
        assert (found.status, found.json) == (400, {"error": "invalid pubkey hex"})


async def test_a_profile_is_two_statements_with_the_sign_in(rig: Rig) -> None:
    them = [await known(rig) for _ in range(2)]
    me = new_key()
    for path in ("/api/users/me/profile", f"/api/users/{them[0].public_hex}/profile"):
        rig.statements.clear()
        assert (await rig.get(path, key=me)).status == 200
        assert len(rig.statements) <= 2, rig.statements


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/api/users/me/profile", "GET, HEAD"),
        ("GET", "/api/users/batch", "POST"),
        ("POST", "/api/users/search", "GET, HEAD"),
        ("GET", "/api/users/me/channel-add-policy", "PUT"),
        ("DELETE", f"/api/users/{'ab' * 32}/notes", "GET, HEAD"),
    ],
)
async def test_other_methods(rig: Rig, method: str, path: str, allow: str) -> None:
    found = await rig.request(method, path, key=new_key())
    assert (found.status, found.headers["allow"], found.body) == (405, allow, b"")


# -- many at once ------------------------------------------------------------------------------------------------------


async def test_batch(rig: Rig) -> None:
    me = new_key()
    ada, nameless = await known(rig, "Ada"), await known(rig)
    strangers = sorted(new_key().public_hex for _ in range(3))
    asked = [
        "zz",
        strangers[2].upper(),
        ada.public_hex.upper(),
        ada.public_hex,
        "",
        nameless.public_hex,
        strangers[0],
        "zz",
        strangers[1],
        strangers[0],
        "ab" * 31,
        "nul\0",
    ]
    found = await rig.post("/api/users/batch", key=me, json={"pubkeys": asked, "more": True})
    assert (found.status, found.json) == (
        200,
        {
            "profiles": {ada.public_hex: EMPTY | {"display_name": "Ada"}, nameless.public_hex: EMPTY},
            "missing": [*strangers, "zz", "", "zz", "ab" * 31, "nul\0"],
        },
    )


@pytest.mark.parametrize("count", [1, 20, 200])
async def test_a_batch_is_two_statements_with_the_sign_in(rig: Rig, count: int) -> None:
    keys = [(await known(rig, f"n{n}")).public_hex for n in range(count)]
    rig.statements.clear()
    found = await rig.post("/api/users/batch", key=new_key(), json={"pubkeys": keys})
    assert set(found.json["profiles"]) == set(keys)
    assert len(rig.statements) == 2, rig.statements


async def test_a_batch_without_a_key_asks_nothing(rig: Rig) -> None:
    for pubkeys in ([], ["x"] * 200):
        rig.statements.clear()
        found = await rig.post("/api/users/batch", key=new_key(), json={"pubkeys": pubkeys})
        assert (found.status, found.json) == (200, {"profiles": {}, "missing": pubkeys})
        assert len(rig.statements) == 1


async def test_a_batch_has_an_end(rig: Rig) -> None:
    found = await rig.post("/api/users/batch", key=new_key(), json={"pubkeys": ["x"] * 201})
    assert (found.status, found.json) == (400, {"error": "max 200 pubkeys per request"})


@pytest.mark.parametrize(
    ("headers", "body", "status", "text"),
    [
        ({}, b'{"pubkeys":[]}', 415, "Expected request with `Content-Type: application/json`"),
        (JSON, b"", 400, SYNTAX),
        (JSON, b'{"pubkeys":[]', 400, SYNTAX),
        (JSON, b"{}", 422, SHAPE + "missing field `pubkeys`"),
        (JSON, b"[]", 422, SHAPE + "invalid type: sequence"),
        (JSON, b'{"pubkeys":null}', 422, SHAPE + "pubkeys: invalid type: null, expected a sequence"),
        (JSON, b'{"pubkeys":[1]}', 422, SHAPE + "pubkeys[0]: invalid type: integer `1`, expected a string"),
    ],
)  # fmt: skip
async def test_a_batch_is_read_before_anybody_signs_in(
    rig: Rig, headers: dict[str, str], body: bytes, status: int, text: str
) -> None:
    found = await rig.post("/api/users/batch", headers=headers, data=body)
    assert found.status == status
    assert found.text.startswith(text)
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
