"""GET /api/channels/{id}/threads/{event_id}: root and answers, cursors, refusals in their order, the cost."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest

from relay.http.threads import PAGE_MAX
from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from tests.support.http import Answer, Rig, new_key
from tests.support.timeline import answer, delete, put, react

NOW = int(time.time())
NOT_MEMBER = {"error": "not a member of this channel"}


async def show(rig: Rig, channel: str, root: str, query: str = "", **options: Any) -> Answer:
    return await rig.get(f"/api/channels/{channel}/threads/{root}{query}", **options)


async def ids(rig: Rig, channel: str, root: Event, query: str = "", **options: Any) -> list[str]:
    found = await show(rig, channel, root.id, query, **options)
    assert found.status == 200, found.text
    return [reply["event_id"] for reply in found.json["replies"]]


async def test_a_thread(rig: Rig) -> None:
    owner, second = new_key(), new_key()
    channel = await rig.channel(owner)
    root = await put(rig.con, owner, channel, at=NOW - 100, content="root")
    first = await answer(rig.con, second, channel, root, at=NOW - 90, broadcast=True)
    deep = await answer(rig.con, owner, channel, first, root, depth=2, at=NOW - 80)
    await react(rig.con, owner, channel, first, "+")
    await react(rig.con, second, channel, root, "!")
    found = (await show(rig, channel.upper(), root.id.upper(), key=owner)).json
    last_reply_at = found["root"]["thread_summary"].pop("last_reply_at")
    assert abs(last_reply_at - time.time()) < 60
    assert found == {
        "root": {
            "event_id": root.id,
            "pubkey": owner.public_hex,
            "content": "root",
            "kind": 9,
            "tags": [["h", channel]],
            "created_at": NOW - 100,
            "channel_id": channel,
            "thread_summary": {
                "reply_count": 1,
                "descendant_count": 2,
                "participants": [owner.public_hex, second.public_hex],
            },
            "reactions": [{"emoji": "!", "count": 1}],
        },
        "replies": [
            {
                "event_id": first.id,
                "parent_event_id": root.id,
                "root_event_id": root.id,
                "channel_id": channel,
                "pubkey": second.public_hex,
                "content": first.content,
                "kind": 9,
                "depth": 1,
                "created_at": NOW - 90,
                "broadcast": True,
                "tags": [list(tag) for tag in first.tags],
                "reactions": [{"emoji": "+", "count": 1}],
            },
            {
                "event_id": deep.id,
                "parent_event_id": first.id,
                "root_event_id": root.id,
                "channel_id": channel,
                "pubkey": owner.public_hex,
                "content": deep.content,
                "kind": 9,
                "depth": 2,
                "created_at": NOW - 80,
                "broadcast": False,
                "tags": [list(tag) for tag in deep.tags],
            },
        ],
        "total_replies": 2,
        "next_cursor": None,
    }


async def test_a_message_that_nobody_answered(rig: Rig) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    root = await put(rig.con, owner, channel)
    found = (await show(rig, channel, root.id, key=owner)).json
    assert found["root"]["thread_summary"] is None
    assert "reactions" not in found["root"]
    assert (found["replies"], found["total_replies"], found["next_cursor"]) == ([], 0, None)


async def test_what_is_no_answer_any_more_is_left_out(rig: Rig) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    root = await put(rig.con, owner, channel, at=NOW - 100)
    kept = await answer(rig.con, owner, channel, root, at=NOW - 90)
    await delete(rig.con, await answer(rig.con, owner, channel, root, at=NOW - 80))
    await answer(rig.con, owner, channel, root, at=NOW - 70, tags=[["expiration", str(NOW - 1)]])
    assert await ids(rig, channel, root, key=owner) == [kept.id]
    await delete(rig.con, root)
    found = await show(rig, channel, root.id, key=owner)
    assert (found.status, found.json) == (404, {"error": "event not found"})


async def test_the_depth_can_be_limited(rig: Rig) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    parent = root = await put(rig.con, owner, channel, at=NOW - 100)
    chain = []
    for depth in range(1, 5):
        parent = await answer(rig.con, owner, channel, parent, root, depth=depth, at=NOW - 100 + depth)
        chain.append(parent.id)
    for limit in range(5):
        assert await ids(rig, channel, root, f"?depth_limit={limit}", key=owner) == chain[:limit]
    assert await ids(rig, channel, root, "?depth_limit=4294967295", key=owner) == chain


async def test_what_the_relay_signed_for_somebody_is_shown_as_his(rig: Rig) -> None:
    owner, relay, somebody = new_key(), rig.services.relay_key, new_key().public_hex
    channel = await rig.channel(owner)
    root = await put(rig.con, relay, channel, tags=[["p", somebody]])
    await answer(rig.con, relay, channel, root, tags=[["p", somebody]])
    found = (await show(rig, channel, root.id, key=owner)).json
    assert found["root"]["pubkey"] == found["replies"][0]["pubkey"] == somebody
    # Who signed is what the summary tells.
    assert found["root"]["thread_summary"]["participants"] == [relay.public_hex]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_pages_neither_skip_nor_repeat_within_a_second(rig: Rig, size: int) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    root = await put(rig.con, owner, channel, at=NOW - 100)
    replies = [await answer(rig.con, owner, channel, root, at=NOW + number // 8) for number in range(20)]
    expected = [event.id for event in sorted(replies, key=lambda event: (event.created_at, event.id))]
    seen: list[str] = []
    cursor = ""
    for _ in replies:
        page = (await show(rig, channel, root.id, f"?limit={size}{cursor}", key=owner)).json
        assert len(page["replies"]) == min(size, len(replies) - len(seen))
        seen += [reply["event_id"] for reply in page["replies"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == expected


async def test_cursors(rig: Rig) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    root = await put(rig.con, owner, channel, at=NOW - 100)
    first, second, third = [await answer(rig.con, owner, channel, root, at=NOW + number) for number in range(3)]
    page = (await show(rig, channel, root.id, "?limit=1", key=owner)).json
    # A page that ends with its second is named by the second alone.
    assert page["next_cursor"] == NOW.to_bytes(8, "big").hex()
    short = page["next_cursor"]
    assert await ids(rig, channel, root, f"?cursor={short.upper()}", key=owner) == [second.id, third.id]
    assert await ids(rig, channel, root, f"?cursor={short}{'00' * 32}", key=owner) == [first.id, second.id, third.id]
    assert await ids(rig, channel, root, f"?cursor={short}{first.id}", key=owner) == [second.id, third.id]
    before_1970 = (-5).to_bytes(8, "big", signed=True).hex()
    assert len(await ids(rig, channel, root, f"?cursor={before_1970}", key=owner)) == 3
    assert await ids(rig, channel, root, f"?cursor={'7f' + 'ff' * 7}", key=owner) == []
    empty = (await show(rig, channel, root.id, "?limit=0", key=owner)).json
    assert (empty["replies"], empty["next_cursor"]) == ([], None)


async def test_refusals_in_their_order(rig: Rig) -> None:
    owner, stranger = new_key(), new_key()
    channel = await rig.channel(owner, visibility="private")
    elsewhere = await rig.channel(owner)
    root = await put(rig.con, owner, channel)
    other = await put(rig.con, owner, elsewhere)
    unknown = "ab" * 32
    cases: list[tuple[SecretKey, str, str, str, int, dict[str, str]]] = [
        (owner, "x", "x", "?cursor=x", 400, {"error": "invalid channel UUID"}),
        (stranger, channel, "x", "?cursor=x", 403, NOT_MEMBER),
        (owner, str(uuid.uuid4()), "x", "?cursor=x", 403, NOT_MEMBER),
        (owner, channel, "x", "?cursor=x", 400, {"error": "invalid event_id hex"}),
        (owner, channel, "abc", "?cursor=x", 400, {"error": "invalid event_id hex"}),
        (owner, channel, "abcd", "?cursor=x", 404, {"error": "event not found"}),
        (owner, channel, unknown, "?cursor=x", 404, {"error": "event not found"}),
        (owner, channel, other.id, "?cursor=x", 400, {"error": "event belongs to a different channel"}),
        (owner, channel, root.id, "?cursor=x", 400, {"error": "invalid cursor hex"}),
        (owner, channel, root.id, "?cursor=", 400, {"error": "cursor must be 8 bytes (timestamp)"}),
        (owner, channel, root.id, "?cursor=" + "00" * 9, 400, {"error": "cursor must be 8 bytes (timestamp)"}),
    ]
    for key, where, what, query, status, body in cases:
        found = await show(rig, where, what, query, key=key)
        assert (found.status, found.json) == (status, body), (where, what, query)
    for query, detail in [
        ("limit=x", "limit: invalid digit found in string"),
        ("depth_limit=-1", "depth_limit: invalid digit found in string"),
        ("cursor=a&cursor=a", "duplicate field `cursor`"),
    ]:
        found = await show(rig, channel, root.id, f"?{query}")
        assert (found.status, found.text) == (400, f"Failed to deserialize query string: {detail}")
    assert (await show(rig, channel, root.id)).status == 401
    token = await rig.mint(owner, ["channels:read"])
    assert (await show(rig, channel, root.id, token=token)).json["error"] == "insufficient_scope"
    restricted = await rig.mint(owner, ["messages:read"], [elsewhere])
    assert (await show(rig, channel, root.id, token=restricted)).json["error"] == "channel_not_permitted"


async def test_that_an_event_exists_is_told_to_those_who_could_read_it(rig: Rig) -> None:
    owner, reader = new_key(), new_key()
    here = await rig.channel(reader)
    open_one, private = await rig.channel(owner), await rig.channel(owner, visibility="private")
    different = {"error": "event belongs to a different channel"}
    unknown = {"error": "event not found"}
    for channel, kind, expected in [
        (open_one, 9, different),
        (private, 9, unknown),
        (None, 1, different),
        (None, 1059, unknown),
        (None, 44100, unknown),
        (here, 1059, unknown),
    ]:
        event = await put(rig.con, owner, channel, kind=kind)
        found = await show(rig, here, event.id, key=reader)
        assert found.json == expected, (channel, kind)
        assert found.status == (400 if expected is different else 404)
    # A token that does not reach the other channel does not tell of it either.
    restricted = await rig.mint(reader, ["messages:read"], [here])
    event = await put(rig.con, owner, open_one)
    assert (await show(rig, here, event.id, token=restricted)).json == unknown


async def test_a_page_of_large_answers_is_shorter(rig: Rig) -> None:
    """As many as 8 MiB hold, however many were asked for; the cursor goes on behind them."""
    owner = new_key()
    channel = await rig.channel(owner)
    root = await put(rig.con, owner, channel, at=NOW - 100)
    replies = [await answer(rig.con, owner, channel, root, at=NOW - 90 + number // 12) for number in range(20)]
    await rig.con.execute(
        "UPDATE events SET signed_json = convert_to(replace(convert_from(signed_json, 'UTF8'), '\"content\":\"', "
        "'\"content\":\"' || repeat('x', 1000000)), 'UTF8') WHERE created_at > $1",
        NOW - 100,
    )
    seen: list[str] = []
    query = "?limit=500"
    while query:
        found = await show(rig, channel, root.id, query, key=owner)
        assert len(found.body) < 10 << 20
        assert found.json["replies"]
        seen += [reply["event_id"] for reply in found.json["replies"]]
        cursor = found.json["next_cursor"]
        query = f"?limit=500&cursor={cursor}" if cursor else ""
    assert seen == [reply.id for reply in sorted(replies, key=lambda each: (each.created_at, each.id))]


@pytest.mark.parametrize("rows", [1, 20, 200])
async def test_a_thread_costs_three_statements(rig: Rig, rows: int) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    root = await put(rig.con, owner, channel)
    async with rig.con.transaction():
        for number in range(rows):
            reply = await answer(rig.con, owner, channel, root, at=NOW + number)
            await react(rig.con, owner, channel, reply)
    token = await rig.mint(owner, ["messages:read"])
    rig.statements.clear()
    found = (await show(rig, channel, root.id, f"?limit={PAGE_MAX + 1}", token=token)).json
    assert len(rig.statements) == 3
    assert len(found["replies"]) == found["total_replies"] == rows
    assert all(reply["reactions"] == [{"emoji": "+", "count": 1}] for reply in found["replies"])
