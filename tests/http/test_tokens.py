"""`/api/tokens` beside the making: who sees which tokens, and how they end."""

from __future__ import annotations

from uuid import uuid4

import orjson
import pytest
import trio

from relay.store import tokens
from tests.support.http import Rig, new_key
from tests.support.minting import ask, ask_signed, authorization

TOKEN_ID = "0d4c9a5e-7c1f-4f0e-9a35-6f5e6b1d2c3a"
ELSEWHERE = {"error": "nip98_not_supported", "message": "NIP-98 auth is only supported for POST /api/tokens"}
UNKNOWN = {"error": "not_found", "message": "Token not found or not owned by caller"}
ALREADY = {"error": "already_revoked", "message": "Token is already revoked"}


async def audited(rig: Rig) -> list[tuple[str, str, dict[str, str]]]:
    """(action, actor, metadata) of every entry, wherever the audit worker has got to."""
    columns = "SELECT action, actor, metadata FROM"
    rows = await rig.con.fetch(f"{columns} audit_outbox UNION ALL {columns} audit_log")
    return [(row["action"], row["actor"], orjson.loads(row["metadata"])) for row in rows]


# -- the list --------------------------------------------------------------------------------------------------------


async def test_the_list_is_of_the_caller_and_newest_first(rig: Rig) -> None:
    key = new_key()
    channel = await rig.channel(key)
    first = (await ask_signed(rig, key, name="first", channel_ids=[channel])).json
    second = (await ask_signed(rig, key, name="second", expires_in_days=2)).json
    await ask_signed(rig, new_key())
    answer = await rig.get("/api/tokens", token=second["token"])
    assert answer.status == 200
    listed = answer.json["tokens"]
    assert [token["name"] for token in listed] == ["second", "first"]
    assert listed[1] == {
        "id": first["id"], "name": "first", "scopes": ["messages:read"], "channel_ids": [channel],
        "created_at": first["created_at"], "expires_at": None, "last_used_at": None, "revoked_at": None,
    }  # fmt: skip
    assert listed[0]["expires_at"] == second["expires_at"]
    assert listed[0]["last_used_at"] is not None  # the request itself
    for secret in (first["token"], tokens.digest(first["token"]).hex()):
        assert secret not in answer.text


async def test_ended_tokens_are_listed_and_any_token_may_ask(rig: Rig) -> None:
    key = new_key()
    made = [(await ask_signed(rig, key)).json for _ in range(3)]
    await tokens.revoke(rig.con, made[0]["id"])
    await rig.con.execute("UPDATE api_tokens SET expires_at = now() - interval '1 s' WHERE id = $1", made[1]["id"])
    token = await rig.mint(key, [])
    listed = (await rig.get("/api/tokens", token=token)).json["tokens"]
    assert [each["id"] for each in listed][1:] == [each["id"] for each in reversed(made)]
    assert [each["revoked_at"] is None for each in listed] == [True, True, True, False]
    assert listed[0]["scopes"] == []


@pytest.mark.parametrize("count", [1, 20, 200])
async def test_the_list_is_one_statement_beside_the_login(rig: Rig, count: int) -> None:
    key = new_key()
    for _ in range(count):
        token = await rig.mint(key, ["messages:read"])
    assert len((await rig.get("/api/tokens", token=token)).json["tokens"]) == count
    assert len(rig.statements) == 2


async def test_of_very_many_the_active_ones_are_there(rig: Rig) -> None:
    key = new_key()
    oldest = await rig.mint(key, [])
    for _ in range(5):
        await rig.mint(key, [])
    await rig.con.execute("UPDATE api_tokens SET revoked_at = now() WHERE token_hash <> $1", tokens.digest(oldest))
    found = await tokens.newest_of(rig.con, key.public_hex, limit=3)
    everything = await tokens.newest_of(rig.con, key.public_hex)
    assert found == [everything[0], everything[1], everything[5]]


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("DELETE", f"/{TOKEN_ID}")])
async def test_signatures_are_for_making_only(rig: Rig, method: str, path: str) -> None:
    header = {"Authorization": authorization(new_key(), b"", method=method)}
    answer = await rig.request(method, f"/api/tokens{path}", headers=header)
    assert (answer.status, answer.json) == (401, ELSEWHERE)
    answer = await rig.request(method, f"/api/tokens{path}")
    assert (answer.status, answer.json) == (401, {"error": "authentication required"})


# -- one -------------------------------------------------------------------------------------------------------------


async def test_ending_one(rig: Rig) -> None:
    key = new_key()
    one, two = [(await ask_signed(rig, key)).json for _ in range(2)]
    answer = await rig.request("DELETE", f"/api/tokens/{one['id'].upper()}", token=two["token"])
    assert (answer.status, answer.body) == (204, b"")
    answer = await rig.get("/api/tokens", token=one["token"])
    assert (answer.status, answer.json) == (401, {"error": "token_revoked"})
    answer = await rig.request("DELETE", f"/api/tokens/{one['id']}", token=two["token"])
    assert (answer.status, answer.json) == (409, ALREADY)
    revoked_by = "SELECT encode(revoked_by, 'hex') FROM api_tokens WHERE id = $1"
    assert await rig.con.fetchval(revoked_by, one["id"]) == key.public_hex
    entries = [entry for entry in await audited(rig) if entry[0] == "token_revoked"]
    assert entries == [("token_revoked", key.public_hex, {"by": "http", "token_id": one["id"]})]


async def test_a_token_ends_itself(rig: Rig) -> None:
    made = (await ask_signed(rig, new_key())).json
    assert (await rig.request("DELETE", f"/api/tokens/{made['id']}", token=made["token"])).status == 204
    answer = await rig.request("DELETE", f"/api/tokens/{made['id']}", token=made["token"])
    assert (answer.status, answer.json) == (401, {"error": "token_revoked"})


async def test_tokens_of_others_do_not_exist(rig: Rig) -> None:
    mine, other = (await ask_signed(rig, new_key())).json, (await ask_signed(rig, new_key())).json
    before = len(await audited(rig))
    for token_id in (other["id"], str(uuid4())):
        answer = await rig.request("DELETE", f"/api/tokens/{token_id}", token=mine["token"])
        assert (answer.status, answer.json) == (404, UNKNOWN)
    assert (await rig.get("/api/tokens", token=other["token"])).status == 200
    assert len(await audited(rig)) == before


async def test_an_id_that_is_none_comes_before_who_asks(rig: Rig) -> None:
    answer = await rig.request("DELETE", "/api/tokens/not%20one")
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith("Invalid URL: Cannot parse `id` with value `not one`: UUID parsing failed: ")


async def test_of_two_who_end_the_same_one_does(rig: Rig) -> None:
    key = new_key()
    one, two = [(await ask_signed(rig, key)).json for _ in range(2)]
    statuses: list[int] = []

    async def end() -> None:
        statuses.append((await rig.request("DELETE", f"/api/tokens/{one['id']}", token=two["token"])).status)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(end)
    assert sorted(statuses) == [204, 409, 409, 409, 409]
    assert [entry[0] for entry in await audited(rig)].count("token_revoked") == 1


# -- all -------------------------------------------------------------------------------------------------------------


async def test_ending_all(rig: Rig) -> None:
    key = new_key()
    made = [(await ask_signed(rig, key)).json for _ in range(3)]
    other = (await ask_signed(rig, new_key())).json
    await tokens.revoke(rig.con, made[0]["id"])
    answer = await rig.request("DELETE", "/api/tokens", token=made[1]["token"])
    assert (answer.status, answer.json) == (200, {"revoked_count": 2})
    for token in made:
        assert (await ask(rig, token=token["token"])).json == {"error": "token_revoked"}
    assert (await rig.get("/api/tokens", token=other["token"])).status == 200
    ended = {entry[2]["token_id"] for entry in await audited(rig) if entry[0] == "token_revoked"}
    assert ended == {made[1]["id"], made[2]["id"]}
    # By the key itself there is nothing left to end.
    answer = await rig.request("DELETE", "/api/tokens", key=key)
    assert (answer.status, answer.json) == (200, {"revoked_count": 0})


async def test_nothing_ends_while_the_relay_stops(rig: Rig) -> None:
    made = (await ask_signed(rig, new_key())).json
    rig.services.ingest.close()
    for path in (f"/api/tokens/{made['id']}", "/api/tokens"):
        assert (await rig.request("DELETE", path, token=made["token"])).status == 503
    assert await rig.con.fetchval("SELECT count(*) FROM api_tokens WHERE revoked_at IS NOT NULL") == 0
