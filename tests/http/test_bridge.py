"""POST /query, /count and /events: what a REQ, a COUNT and an EVENT of the same caller would show, count and store."""

from __future__ import annotations

import random
import uuid
from dataclasses import replace
from typing import Any

import orjson
import pytest

from relay.http.app import create_app
from relay.query.gather import Answers
from tests.support.bridge import NOW, bounded, count, is_problem, query, say, store
from tests.support.http import Rig, new_key, signed

# -- /query ------------------------------------------------------------------------------------------------------------


async def test_events_as_they_were_signed_newest_first_each_once(rig: Rig) -> None:
    key, other = new_key(), new_key()
    channel = await rig.channel(key, others=(other.public_hex,))
    first = await say(rig, key, channel, NOW - 10, 'ünï "quoted" \\ {} \u2028')
    same = sorted([await say(rig, key, channel, NOW - 5) for _ in range(3)], key=lambda each: each.id)
    last = await say(rig, other, channel, NOW)
    newest = [last.id, *[each.id for each in same], first.id]
    assert await query(rig, key, {"kinds": [9]}) == newest
    assert await query(rig, key, {"kinds": [9], "limit": 3}) == newest[:3]
    assert await query(rig, key, {"kinds": [9], "limit": 0}) == []
    # Filter by filter, and what an earlier one found does not come again.
    by_key = {"kinds": [9], "authors": [key.public_hex], "limit": 2}
    assert await query(rig, key, by_key, {"kinds": [9]}) == [newest[1], newest[2], newest[0], *newest[3:]]
    answer = await rig.post("/query", key=key, json=[{"ids": [first.id]}])
    assert answer.body == b"[" + first.json + b"]"
    assert answer.headers["content-type"] == "application/json"
    assert await query(rig, key) == []


async def test_what_may_be_read(rig: Rig) -> None:
    key, other = new_key(), new_key()
    ours = await say(rig, key, await rig.channel(key, visibility="private"), NOW - 1)
    opened = await say(rig, other, await rig.channel(other), NOW - 2)
    hidden_in = await rig.channel(other, visibility="private")
    hidden = await say(rig, other, hidden_in, NOW - 3)
    note = await store(rig, signed(other, 1, [], "to all", NOW - 4))
    assert await query(rig, key, {"kinds": [1, 9]}) == [ours.id, opened.id, note.id]
    assert await count(rig, key, {"kinds": [1, 9]}) == 3
    assert await query(rig, other, {"kinds": [1, 9]}) == [opened.id, hidden.id, note.id]
    # Neither by its id nor by its channel: it is just not there. Other filters find what they find.
    assert await query(rig, key, {"ids": [hidden.id]}) == []
    assert await query(rig, key, {"#h": [hidden_in]}) == []
    assert await count(rig, key, {"#h": [hidden_in], "kinds": [9]}, {"ids": [hidden.id]}) == 0
    assert await query(rig, key, {"#h": [hidden_in], "kinds": [9]}, {"ids": [ours.id]}) == [ours.id]
    # All about channels: nothing global, whatever else would match.
    assert await query(rig, key, {"#h": [hidden_in]}, {"#h": [str(uuid.uuid4())], "kinds": [1]}) == []


async def test_a_token_for_some_channels(rig: Rig) -> None:
    key = new_key()
    first, second = await rig.channel(key), await rig.channel(key)
    inside, outside = await say(rig, key, first, NOW - 1, "word"), await say(rig, key, second, NOW - 2, "word")
    note = await store(rig, signed(key, 1, [], "word", NOW - 3))
    token = await rig.mint(key, ["messages:read"], [first])
    found = await rig.post("/query", token=token, json=[{"kinds": [1, 9]}])
    assert [each["id"] for each in found.json] == [inside.id, note.id], "as a REQ: the gate is membership"
    found = await rig.post("/query", token=token, json=[{"search": "word", "kinds": [1, 9]}])
    assert [each["id"] for each in found.json] == [inside.id], "a search finds nothing outside of them"
    for wanted, number in ({"ids": [outside.id]}, 0), ({"search": "word", "kinds": [1, 9]}, 1), ({"kinds": [1, 9]}, 2):
        assert (await rig.post("/count", token=token, json=[wanted])).json == {"count": number}
    nothing = await rig.mint(key, ["messages:read"], [])
    assert (await rig.post("/query", token=nothing, json=[{"kinds": [9]}])).json == []


async def test_what_was_sent_to_somebody(rig: Rig) -> None:
    key, other = new_key(), new_key()
    mine = await store(rig, signed(other, 1059, [["p", key.public_hex]], "sealed", NOW))
    await store(rig, signed(key, 1059, [["p", other.public_hex]], "sealed", NOW))
    to_me = {"kinds": [1059, 44100], "#p": [key.public_hex]}
    assert await query(rig, key, to_me) == [mine.id]
    assert await count(rig, key, to_me) == 1
    refused: list[dict[str, Any]] = [
        {},
        {"kinds": [1059]},
        {"kinds": [9, 44101]},
        {"kinds": [1059], "#p": [other.public_hex]},
        {"kinds": [1059], "#p": [key.public_hex, other.public_hex]},
        {"search": "sealed"},
    ]
    for wanted in refused:
        for path in ("/query", "/count"):
            found = await rig.post(path, key=key, json=[{"kinds": [9]}, wanted] if "search" not in wanted else [wanted])
            is_problem(found, 403, "restricted: p-gated kinds require #p tag matching your pubkey")
            assert found.json["title"] == "Forbidden"


async def test_what_is_gone(rig: Rig) -> None:
    key = new_key()
    channel = await rig.channel(key)
    deleted = await say(rig, key, channel, NOW - 1, "word")
    await rig.con.execute("UPDATE events SET deleted_at = now() WHERE id = $1", bytes.fromhex(deleted.id))
    await say(rig, key, channel, NOW - 2, "word", tags=[["expiration", str(NOW - 1)]])
    there = await say(rig, key, channel, NOW - 3, "word", tags=[["expiration", str(NOW + 600)]])
    for wanted in {"kinds": [9]}, {"search": "word", "kinds": [9]}, {"#h": [channel]}:
        assert await query(rig, key, wanted) == [there.id]
        assert await count(rig, key, wanted) == 1


async def test_a_search(rig: Rig) -> None:
    key = new_key()
    channel = await rig.channel(key)
    once = await say(rig, key, channel, NOW - 1, "apple and much else of which nobody asks")
    both = await say(rig, key, channel, NOW - 2, "apple pie")
    assert await query(rig, key, {"search": "apple pie", "kinds": [9]}) == [both.id, once.id]
    assert await query(rig, key, {"search": "apple pie", "kinds": [9], "limit": 1}) == [both.id]
    pie, apple = {"search": "pie", "kinds": [9]}, {"search": "apple", "#h": [channel], "kinds": [9]}
    assert await query(rig, key, pie, apple) == [both.id, once.id]
    assert await count(rig, key, pie, apple) == 2
    assert await query(rig, key, {"search": "", "kinds": [9]}) == []
    found = await rig.post("/query", key=key, json=[{"search": "pie", "kinds": [9]}, {"kinds": [9]}])
    is_problem(found, 400, "mixed search and non-search filters not supported")
    assert await count(rig, key, {"search": "pie", "kinds": [9]}, {"ids": [once.id]}) == 2


async def test_pages_by_until_and_before_id_are_the_whole(rig: Rig) -> None:
    """Many share a second; nothing is skipped, nothing comes twice, and it ends."""
    rng = random.Random(4)
    key = new_key()
    channel = await rig.channel(key)
    sent = [await say(rig, key, channel, NOW - rng.randrange(5)) for _ in range(60)]
    whole = [each.id for each in sorted(sent, key=lambda each: (-each.created_at, each.id))]
    times = {each.id: each.created_at for each in sent}
    for wanted in ({"kinds": [9]}, {"#h": [channel]}):
        found: list[str] = []
        place: dict[str, Any] = {}
        while True:
            limit = rng.randrange(1, 20)
            page = await query(rig, key, {**wanted, **place, "limit": limit})
            found += page
            if len(page) < limit:
                break
            place = {"until": times[page[-1]], "before_id": page[-1]}
        assert found == whole


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"kinds": [9], "before_id": "a" * 64}, "before_id requires until to be set"),
        ({"kinds": [9], "until": 5, "before_id": "a" * 63}, "before_id must be 64 hex characters"),
        ({"kinds": [9], "until": 5, "before_id": "z" * 64}, "before_id must be 64 hex characters"),
        ({"kinds": [9], "until": 5, "before_id": 5}, "before_id must be 64 hex characters"),
        ({"kinds": [9], "until": 5, "search": "a", "before_id": "a" * 64}, "before_id cannot continue a search"),
    ],
)
async def test_places_that_are_none(rig: Rig, wanted: dict[str, Any], error: str) -> None:
    key = new_key()
    is_problem(await rig.post("/query", key=key, json=[wanted]), 400, error)
    # A count has no pages.
    assert await count(rig, key, wanted) == 0


async def test_the_highest_until(rig: Rig) -> None:
    key = new_key()
    event = await say(rig, key, await rig.channel(key), NOW)
    place = {"kinds": [9], "until": 2**64 - 1, "before_id": "0" * 64}
    assert await query(rig, key, place) == [event.id]


@pytest.mark.parametrize("rows", [1, 20, 200])
async def test_statements_do_not_grow_with_the_rows(rig: Rig, rows: int) -> None:
    """Signing in, the list of readable channels, the page."""
    key = new_key()
    channel = await rig.channel(key)
    for _ in range(rows):
        await say(rig, key, channel, NOW, "word")
    rig.statements.clear()
    assert len(await query(rig, key, {"#h": [channel], "limit": 200})) == rows
    assert len(rig.statements) == 3
    for wanted in ({"#h": [channel]}, {"kinds": [9]}):
        rig.statements.clear()
        assert await count(rig, key, wanted) == rows
        assert len([each for each in rig.statements if "events" in each]) == 1


@pytest.mark.parametrize("path", ["/query", "/count"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{}", b"null", b'"x"', b"5", b"[5]", b"[null]", b"[[]]", b'[{"kinds":"9"}]', b'[{"ids":["x"]}]',
     b'[{"limit":-1}]', b'[{"since":1.5}]', b'[{"#h":5}]', b'[{"search":5}]', b"\xff", b"[" * 2000, b"[{}] []",
     b"[" + b"{}," * 10 + b"{}]"],
)  # fmt: skip
async def test_what_are_no_filters(rig: Rig, path: str, body: bytes) -> None:
    found = await rig.post(path, key=new_key(), data=body, headers={"Content-Type": "text/plain"})
    assert found.status == 400
    assert found.json["error"].startswith("invalid filters: ")
    is_problem(found, 400, found.json["error"])


async def test_filters_are_as_large_as_a_message_may_be(rig: Rig) -> None:
    key = new_key()
    app = bounded(rig, max_frame_bytes=1024)
    body = orjson.dumps([{"kinds": [9], "x": ""}])
    body = body.replace(b'""', b'"' + b"y" * (1024 - len(body)) + b'"')
    assert len(body) == 1024
    for path in ("/query", "/count"):
        assert (await rig.post(path, key=key, data=body, app=app)).status == 200
        is_problem(
            await rig.post(path, key=key, data=body + b" ", app=app), 413, "filters exceed maximum size of 1024 bytes"
        )


async def test_an_answer_that_is_too_large_is_not_cut(rig: Rig) -> None:
    app = create_app(replace(rig.services, answers=Answers(each_max=1000)))
    key = new_key()
    channel = await rig.channel(key)
    for _ in range(3):
        await say(rig, key, channel, NOW, "x" * 100)
    found = await rig.post("/query", key=key, json=[{"kinds": [9]}], app=app)
    is_problem(found, 400, "answer too large")
    assert "`before_id`" in found.json["detail"]
    assert len(await query(rig, key, {"kinds": [9], "limit": 1}, app=app)) == 1


# -- /events -----------------------------------------------------------------------------------------------------------


async def test_an_event_is_stored_and_its_reply_is_that_of_the_older_route(rig: Rig) -> None:
    key = new_key()
    channel = str(uuid.uuid4())
    created = signed(key, 9007, [["h", channel], ["name", "general"]])
    event = signed(key, 9, [["h", channel]], "hello")
    for sent in (created, event):
        found = await rig.post("/events", key=key, data=sent.json)
        assert (found.status, found.json) == (200, {"event_id": sent.id, "accepted": True, "message": ""})
    assert await query(rig, key, {"#h": [channel], "kinds": [9]}) == [event.id]
    again = {"event_id": event.id, "accepted": True, "message": "duplicate:"}
    assert (await rig.post("/events", key=key, data=event.json)).json == again
    assert (await rig.post("/api/events", key=key, data=event.json)).json == again
    found = await rig.post("/events", key=key, data=signed(key, 9007, [["h", channel], ["name", "again"]]).json)
    assert (found.status, found.json["accepted"]) == (200, False)


async def test_refused_events(rig: Rig) -> None:
    key, other = new_key(), new_key()
    cases = [
        (signed(other, 1, []), 403, "invalid: event pubkey does not match authenticated identity"),
        (signed(key, 22242, []), 400, "invalid: AUTH events cannot be submitted"),
        (signed(key, 1059, [["p", other.public_hex]]), 400, "invalid: kind 1059 is only accepted via WebSocket"),
        (signed(key, 9, []), 400, "invalid: channel-scoped events must include an h tag"),
    ]
    for event, status, error in cases:
        is_problem(await rig.post("/events", key=key, data=event.json), status, error)
    for body in (b"", b"{", b"[]", b"null", b"{}"):
        found = await rig.post("/events", key=key, data=body)
        assert found.status == 400
        assert found.json["error"].startswith("invalid event JSON: ")
