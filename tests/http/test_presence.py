"""/api/presence: who is there, saying so, and every no in the envelope."""

from __future__ import annotations

from functools import partial

import pytest

from relay.fanout.presence import Presence
from tests.support.http import Rig, new_key

SHAPE = "Failed to deserialize the JSON body into the target type: "
VARIANTS = "expected one of `online`, `away`, `offline`"


async def test_what_was_said_is_read(rig: Rig) -> None:
    me, other = new_key(), new_key()
    for status, seconds in (("online", 90), ("away", 90), ("offline", 0), ("online", 90)):
        found = await rig.request("PUT", "/api/presence", key=me, json={"status": status, "more": 1})
        assert (found.status, found.json) == (200, {"status": status, "ttl_seconds": seconds})
        found = await rig.get(f"/api/presence?pubkeys={me.public_hex},{other.public_hex}", key=other)
        assert (found.status, found.json) == (200, {me.public_hex: status, other.public_hex: "offline"})


async def test_what_a_socket_said_is_read_too(rig: Rig) -> None:
    me = new_key()
    rig.services.hub.presence.update(me.public_hex, '{"status":"in a meeting"}')
    found = await rig.get(f"/api/presence?pubkeys={me.public_hex}", key=me)
    assert found.json == {me.public_hex: "in a meeting"}


async def test_it_ends_by_itself(rig: Rig) -> None:
    me = new_key()
    now = 0.0
    rig.services.hub.presence = Presence(90, lambda: now)
    ask = partial(rig.get, f"/api/presence?pubkeys={me.public_hex}", key=me)
    assert (await rig.request("PUT", "/api/presence", key=me, json={"status": "away"})).status == 200
    now = 89.9
    assert (await ask()).json == {me.public_hex: "away"}
    now = 90.0
    assert (await ask()).json == {me.public_hex: "offline"}


@pytest.mark.parametrize(("setting", "said"), [(30.9, 30), (0.2, 1)])
async def test_the_setting_is_what_is_told(rig: Rig, setting: float, said: int) -> None:
    app = rig.with_settings(presence_seconds=setting)
    found = await rig.request("PUT", "/api/presence", key=new_key(), json={"status": "online"}, app=app)
    assert found.json["ttl_seconds"] == said


async def test_only_keys_are_asked_for(rig: Rig) -> None:
    one, two = new_key().public_hex, "ff" * 32  # the second is no point on the curve, which nobody asks here
    for text, expected in (
        ("", []),
        (",%20,", []),
        (f"%20{one.upper()}%20,,x,{two},{one},{one[:-1]},npub1", [one, two]),
    ):
        found = await rig.get(f"/api/presence?pubkeys={text}", key=new_key())
        assert (found.status, found.json) == (200, dict.fromkeys(expected, "offline"))
    assert (await rig.get("/api/presence", key=new_key())).json == {}


async def test_the_first_two_hundred(rig: Rig) -> None:
    keys = [f"{n:064x}" for n in range(210)]
    found = await rig.get(f"/api/presence?pubkeys=,,{','.join(keys)}", key=new_key())
    assert list(found.json) == keys[:200]
    # What is no key takes a place too, and a blank none.
    found = await rig.get(f"/api/presence?pubkeys={'x,,' * 195}{','.join(keys)}", key=new_key())
    assert list(found.json) == keys[:5]


async def test_nobody_hears_of_it_and_it_costs_one_statement(rig: Rig) -> None:
    me = new_key()
    token = await rig.mint(me, ["channels:read"])
    rig.statements.clear()
    assert (await rig.request("PUT", "/api/presence", token=token, json={"status": "online"})).status == 200
    assert (await rig.get(f"/api/presence?pubkeys={me.public_hex}", token=token)).json == {me.public_hex: "online"}
    assert len(rig.statements) == 2
    assert await rig.con.fetchval("SELECT count(*) FROM events") == 0


@pytest.mark.parametrize(
    ("body", "content_type", "status", "text"),
    [
        (b"{}", "application/json", 422, SHAPE + "missing field `status`"),
        (b'{"status":"invisible"}', "application/json", 422, f"{SHAPE}status: unknown variant `invisible`, {VARIANTS}"),
        (b'{"status":"Online"}', "application/json", 422, f"{SHAPE}status: unknown variant `Online`, {VARIANTS}"),
        (b'{"status":""}', "application/json", 422, f"{SHAPE}status: unknown variant ``, {VARIANTS}"),
        (b'{"status":1}', "application/json", 422, SHAPE + "status: invalid type: integer `1`, expected a string"),
        (b'{"status":null}', "application/json", 422, SHAPE + "status: invalid type: null, expected a string"),
        (b"[]", "application/json", 422, SHAPE + "invalid type: sequence, expected a map"),
        (b"{", "application/json", 400, "Failed to parse the request body as JSON: "),
        (b"", "application/json", 400, "Failed to parse the request body as JSON: "),
        (b'{"status":"away"}', "text/plain", 415, "Expected request with `Content-Type: application/json`"),
    ],
)
async def test_a_bad_body(rig: Rig, body: bytes, content_type: str, status: int, text: str) -> None:
    """Refused in the envelope, and before anybody looks at who sent it."""
    me = new_key()
    for key in (None, me):
        found = await rig.request("PUT", "/api/presence", key=key, data=body, headers={"Content-Type": content_type})
        assert (found.status, found.headers["content-type"]) == (status, "application/json")
        assert set(found.json) == {"error"}
        assert found.json["error"].startswith(text)
        assert status == 400 or found.json["error"] == text
    assert rig.services.hub.presence.status([me.public_hex]) == {}


async def test_needs_a_caller_and_the_right(rig: Rig) -> None:
    for method, options in (("GET", {}), ("PUT", {"json": {"status": "online"}})):
        found = await rig.request(method, "/api/presence", **options)
        assert (found.status, found.json) == (401, {"error": "authentication required"})
        token = await rig.mint(new_key(), ["messages:read"])
        found = await rig.request(method, "/api/presence", token=token, **options)
        assert (found.status, found.json["error"]) == (403, "insufficient_scope")


async def test_two_lists(rig: Rig) -> None:
    found = await rig.get("/api/presence?pubkeys=&pubkeys=")
    assert (found.status, found.text) == (400, "Failed to deserialize query string: duplicate field `pubkeys`")
