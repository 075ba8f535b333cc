"""GET /api/events/{id}: the event as it was signed, or one and the same 404."""

from __future__ import annotations

import time

import orjson
import pytest

from tests.support.http import Rig, new_key
from tests.support.timeline import delete, put

NOW = int(time.time())
NOT_FOUND = (404, {"error": "event not found"})


async def test_the_event_as_it_was_signed(rig: Rig) -> None:
    owner, stranger = new_key(), new_key()
    channel = await rig.channel(owner)
    event = await put(rig.con, owner, channel, content='"\\\n\u2028é', tags=[["t", "x"]])
    for event_id in (event.id, event.id.upper()):
        found = await rig.get(f"/api/events/{event_id}", key=stranger)
        assert (found.status, found.headers["content-type"]) == (200, "application/json")
        assert found.body == event.json
    assert set(orjson.loads(found.body)) == {"id", "pubkey", "created_at", "kind", "tags", "content", "sig"}


async def test_events_of_a_channel(rig: Rig) -> None:
    owner, stranger = new_key(), new_key()
    private = await rig.channel(owner, visibility="private")
    event = await put(rig.con, owner, private)
    path = f"/api/events/{event.id}"
    assert (await rig.get(path, key=owner)).status == 200
    assert (await rig.get(path, token=await rig.mint(owner, ["messages:read"], [private]))).status == 200
    refused = [
        await rig.get(path, key=stranger),
        await rig.get(path, token=await rig.mint(owner, ["channels:read", "users:read"])),
        await rig.get(path, token=await rig.mint(owner, ["messages:read"], [])),
    ]
    await rig.con.execute("UPDATE channel_members SET removed_at = now()")
    refused.append(await rig.get(path, key=owner))
    await rig.con.execute("UPDATE channels SET visibility = 'open', deleted_at = now()")
    refused.append(await rig.get(path, key=owner))
    assert [(found.status, found.json) for found in refused] == [NOT_FOUND] * 5


@pytest.mark.parametrize(
    ("kind", "scope"),
    [(0, "users:read"), (3, "users:read"), (1, "messages:read"), (30023, "messages:read"), (1059, None), (44100, None),
     (5, None), (7, None), (30078, None)],
)  # fmt: skip
async def test_events_of_no_channel(rig: Rig, kind: int, scope: str | None) -> None:
    author, reader = new_key(), new_key()
    event = await put(rig.con, author, None, kind=kind, tags=[["p", reader.public_hex]])
    path = f"/api/events/{event.id}"
    both = await rig.get(path, key=reader)
    assert both.status == (404 if scope is None else 200)
    for granted in ("users:read", "messages:read"):
        found = await rig.get(path, token=await rig.mint(reader, [granted]))
        assert found.status == (200 if granted == scope else 404)


async def test_what_is_not_there(rig: Rig) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    gone = await put(rig.con, owner, channel)
    await delete(rig.con, gone)
    over = await put(rig.con, owner, channel, tags=[["expiration", str(NOW - 1)]])
    sealed = await put(rig.con, owner, channel, kind=1059)  # filed by nobody who knows the rules
    for event_id in (gone.id, over.id, sealed.id, "ab" * 32):
        found = await rig.get(f"/api/events/{event_id}", key=owner)
        assert (found.status, found.json) == NOT_FOUND
    for event_id in ("x", "abcd", "ab" * 33, "xy" * 32, "note1" + "q" * 59):
        found = await rig.get(f"/api/events/{event_id}", key=owner)
        assert (found.status, found.json) == (400, {"error": "invalid event ID"})
    # Who asks comes first, and there is no list of events.
    assert (await rig.get("/api/events/x")).status == 401
    assert (await rig.get("/api/events", key=owner)).status == 405


async def test_it_costs_two_statements_and_answers_head(rig: Rig) -> None:
    owner = new_key()
    event = await put(rig.con, owner, await rig.channel(owner))
    token = await rig.mint(owner, ["messages:read"])
    rig.statements.clear()
    assert (await rig.get(f"/api/events/{event.id}", token=token)).status == 200
    assert len(rig.statements) == 2
    head = await rig.request("HEAD", f"/api/events/{event.id}", token=token)
    assert (head.status, head.body) == (200, b"")
