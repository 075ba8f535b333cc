"""POST /api/events: the envelope, and that the same pipeline stands behind it as behind the socket."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import orjson
import pytest

from relay.errors import INTERNAL_ERROR, SHUTTING_DOWN, STORE_UNAVAILABLE, Refusal, RefusalClass
from relay.http.refusals import from_refusal
from tests.support.http import Rig, new_key, running, signed


async def open_channel(rig: Rig, owner: object) -> str:
    channel_id = str(uuid.uuid4())
    found = await rig.submit(owner, 9007, [["h", channel_id], ["name", "general"]])  # type: ignore[arg-type]
    assert (found.status, found.json["accepted"]) == (200, True), found.body
    return channel_id


async def test_an_event_is_stored_and_audited(rig: Rig) -> None:
    key = new_key()
    channel_id = await open_channel(rig, key)
    event = signed(key, 9, [["h", channel_id]], "hello")
    found = await rig.post("/api/events", key=key, data=event.json)
    assert (found.status, found.json) == (200, {"event_id": event.id, "accepted": True, "message": ""})
    assert await rig.con.fetchval("SELECT content FROM events WHERE id = $1", bytes.fromhex(event.id)) == "hello"
    entries = await rig.con.fetchval(
        "SELECT (SELECT count(*) FROM audit_outbox WHERE event_id = $1) + "
        "(SELECT count(*) FROM audit_log WHERE event_id = $1)",
        event.id,
    )
    assert entries == 1
    again = await rig.post("/api/events", key=key, data=event.json)
    assert (again.status, again.json) == (200, {"event_id": event.id, "accepted": True, "message": "duplicate:"})


async def test_what_is_accepted_as_false_is_a_200(rig: Rig) -> None:
    key = new_key()
    channel_id = await open_channel(rig, key)
    found = await rig.submit(key, 9007, [["h", channel_id], ["name", "again"]])
    assert found.status == 200
    assert (found.json["accepted"], found.json["message"]) == (False, "duplicate: channel already exists")


async def test_refusals_have_the_status_of_their_class(rig: Rig) -> None:
    key, other = new_key(), new_key()
    channel_id = await open_channel(rig, key)
    private = await rig.channel(other, "private", visibility="private")
    tags = [["h", channel_id]]
    cases = [
        (signed(other, 9, tags), 403, "invalid: event pubkey does not match authenticated identity"),
        (signed(key, 9, tags, created_at=int(time.time()) - 1000), 400,
         "invalid: event timestamp too far from server time"),
        (signed(key, 22242, []), 400, "invalid: AUTH events cannot be submitted"),
        (signed(key, 20001, []), 400, "invalid: kind 20001 is only accepted via WebSocket"),
        (signed(key, 31337, []), 400, "restricted: unknown event kind"),
        (signed(key, 9, []), 400, "invalid: channel-scoped events must include an h tag"),
        (signed(key, 9, [["h", private]]), 400, "restricted: not a channel member"),
    ]  # fmt: skip
    for event, status, text in cases:
        found = await rig.post("/api/events", key=key, data=event.json)
        assert (found.status, found.json) == (status, {"error": text}), text
        assert found.headers["content-type"] == "application/json"
    forged = orjson.loads(signed(key, 9, tags, "mine").json) | {"content": "forged"}
    found = await rig.post("/api/events", key=key, data=orjson.dumps(forged))
    assert found.status == 400
    assert found.json["error"].startswith("invalid: invalid event id: computed ")


async def test_scopes_and_channels_of_a_token(rig: Rig) -> None:
    key = new_key()
    first, second = await open_channel(rig, key), await open_channel(rig, key)
    reader = await rig.mint(key, ["messages:read"])
    event = signed(key, 9, [["h", first]])
    found = await rig.post("/api/events", token=reader, data=event.json)
    assert (found.status, found.json) == (403, {"error": "restricted: insufficient scope (need messages:write)"})
    writer = await rig.mint(key, ["messages:write"], [first])
    assert (await rig.post("/api/events", token=writer, data=event.json)).status == 200
    found = await rig.post("/api/events", token=writer, data=signed(key, 9, [["h", second]]).json)
    assert (found.status, found.json["error"]) == (403, "restricted: token does not have access to this channel")
    found = await rig.post("/api/events", token=writer, data=signed(key, 1, []).json)
    assert (found.status, found.json["error"]) == (
        403, "restricted: channel-scoped tokens cannot publish global events",
    )  # fmt: skip


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b'{"id":1}', b"\xff", b"[" * 2000])
async def test_what_is_no_event(rig: Rig, body: bytes) -> None:
    """Signing in comes first, the content type is not looked at."""
    assert (await rig.post("/api/events", data=body)).status == 401
    found = await rig.post("/api/events", key=new_key(), data=body, headers={"Content-Type": "text/plain"})
    assert found.status == 400
    assert found.json["error"].startswith("invalid event JSON: ")


async def test_the_end_of_the_relay(rig: Rig) -> None:
    """Also where only ingest knows it yet."""
    rig.services.ingest.close()
    found = await rig.submit(new_key(), 1, [])
    assert (found.status, found.json) == (503, {"error": "shutting down"})
    found = await rig.post("/api/dms", key=new_key(), json={"pubkeys": [new_key().public_hex]})
    assert (found.status, found.json) == (503, {"error": "shutting down"})


@pytest.mark.parametrize(
    ("refusal", "status", "text"),
    [
        (INTERNAL_ERROR, 500, "internal server error"),
        (Refusal("error: database error: secret", RefusalClass.ERROR), 500, "internal server error"),
        (SHUTTING_DOWN, 503, "shutting down"),
        (STORE_UNAVAILABLE, 503, "temporarily unavailable"),
        (Refusal.invalid("x"), 400, "invalid: x"),
        (Refusal.auth("restricted: y"), 403, "restricted: y"),
        (Refusal("rate-limited: z", RefusalClass.LIMITED), 429, "rate-limited: z"),
    ],
)
def test_every_class_of_refusal(refusal: Refusal, status: int, text: str) -> None:
    error = from_refusal(refusal)
    assert (error.status, error.error, error.message) == (status, text, None)


async def test_a_body_up_to_the_limit_is_read(rig: Rig) -> None:
    key = new_key()
    channel_id = await open_channel(rig, key)
    event = signed(key, 9, [["h", channel_id]], "x" * 262_144)
    assert (await rig.post("/api/events", key=key, data=event.json)).status == 200
    longer = signed(key, 9, [["h", channel_id]], "x" * 262_145)
    found = await rig.post("/api/events", key=key, data=longer.json)
    assert found.json == {"error": "invalid: content exceeds maximum size of 262144 bytes (got 262145)"}


async def test_a_key_that_sends_too_many(migrated_dsn: str) -> None:
    """The rate of a key is one for all doors."""
    async with running(migrated_dsn, rate_events=2) as rig:
        key = new_key()
        for number in range(2):
            assert (await rig.submit(key, 1, [], str(number))).status == 200
        found = await rig.submit(key, 1, [], "too many")
        assert (found.status, found.json) == (429, {"error": "rate-limited: too many events, slow down"})
        assert (await rig.submit(new_key(), 1, [])).status == 200


async def test_an_app_of_its_own(rig: Rig) -> None:
    """Several apps side by side share nothing but the parts they were given."""
    other = replace(rig.services, shutting_down=lambda: True, writes_refused=None)
    assert other.closed_to_writes
    assert not rig.services.closed_to_writes
