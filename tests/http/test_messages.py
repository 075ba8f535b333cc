"""GET /api/channels/{id}/messages: rows, what a page shows, order, cursors, refusals, and what it costs."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
import trio

from relay.http.message_rows import written
from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from relay.store import message_list
from tests.support.http import Rig, new_key
from tests.support.timeline import answer, delete, put, react

NOW = int(time.time())
BAD_KINDS = "Invalid 'kinds' parameter — expected comma-separated integers (e.g. '45001' or '9,45001')"


async def listed(rig: Rig, channel: str, query: str = "", **options: object) -> list[str]:
    found = await rig.get(f"/api/channels/{channel}/messages{query}", **options)
    assert found.status == 200, found.text
    return [row["event_id"] for row in found.json["messages"]]


async def test_a_row_alone(rig: Rig) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    event = await put(rig.con, owner, channel, content="hello", at=NOW, tags=[["t", "x", "y"]])
    found = await rig.get(f"/api/channels/{channel}/messages", key=owner)
    assert found.headers["content-type"] == "application/json"
    assert found.json == {
        "messages": [
            {
                "event_id": event.id,
                "pubkey": owner.public_hex,
                "content": "hello",
                "kind": 9,
                "created_at": NOW,
                "channel_id": channel,
                "tags": [["h", channel], ["t", "x", "y"]],
            }
        ],
        "next_cursor": None,
    }
    # Any spelling of the channel names it.
    assert await listed(rig, channel.upper().replace("-", ""), key=owner) == [event.id]


async def test_a_row_with_a_thread_and_reactions(rig: Rig) -> None:
    owner, second, third = (new_key() for _ in range(3))
    channel = await rig.channel(owner)
    root = await put(rig.con, owner, channel, at=NOW - 100)
    first = await answer(rig.con, second, channel, root, at=NOW - 90)
    await answer(rig.con, third, channel, first, root, depth=2, at=NOW - 80)
    await answer(rig.con, second, channel, root, at=NOW - 70)
    gone = await answer(rig.con, owner, channel, root, at=NOW - 60)
    await delete(rig.con, gone)
    for key, emoji in [(owner, "🎉"), (second, "🎉"), (third, "+"), (owner, "z"), (owner, "Z")]:
        await react(rig.con, key, channel, root, emoji)
    over = await react(rig.con, second, channel, root, "over", until=NOW - 1)
    (row,) = (await rig.get(f"/api/channels/{channel}/messages?kinds=9&with_threads=true", key=owner)).json["messages"]
    assert row["reactions"] == [
        {"emoji": "+", "count": 1}, {"emoji": "Z", "count": 1}, {"emoji": "z", "count": 1}, {"emoji": "🎉", "count": 2},
    ]  # fmt: skip
    summary = row["thread_summary"]
    assert set(summary) == {"reply_count", "descendant_count", "last_reply_at", "participants"}
    assert (summary["reply_count"], summary["descendant_count"]) == (3, 4)  # `delete` leaves the counters alone
    assert abs(summary["last_reply_at"] - time.time()) < 60
    assert summary["participants"] == [second.public_hex, third.public_hex]
    assert over.kind == 7


async def test_at_most_ten_participants_the_latest_first(rig: Rig) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    root = await put(rig.con, owner, channel, at=NOW - 100)
    keys = [new_key() for _ in range(12)]
    for number, key in enumerate(keys):
        await answer(rig.con, key, channel, root, at=NOW - 50 + number)
    await answer(rig.con, keys[0], channel, root, at=NOW)
    (row,) = (await rig.get(f"/api/channels/{channel}/messages", key=owner)).json["messages"]
    expected = [keys[0], *reversed(keys[3:])]
    assert row["thread_summary"]["participants"] == [key.public_hex for key in expected]


async def test_answers_stand_in_the_channel_only_where_they_were_sent_to_it(rig: Rig) -> None:
    owner, other = new_key(), new_key()
    channel = await rig.channel(owner)
    root = await put(rig.con, owner, channel, at=NOW - 100)
    await answer(rig.con, owner, channel, root, at=NOW - 90)
    shown = await answer(rig.con, owner, channel, root, at=NOW - 80, broadcast=True)
    deep = await answer(rig.con, other, channel, shown, root, depth=2, at=NOW - 70, broadcast=True)
    rows = (await rig.get(f"/api/channels/{channel}/messages", key=owner)).json["messages"]
    assert [row["event_id"] for row in rows] == [shown.id, root.id]
    # The answer to an answer counts at the root and at what it answers.
    assert rows[0]["thread_summary"]["participants"] == [other.public_hex]
    assert rows[0]["thread_summary"]["reply_count"] == 1
    assert rows[1]["thread_summary"]["participants"] == [other.public_hex, owner.public_hex]
    assert deep.id not in [row["event_id"] for row in rows]


async def test_every_kind_but_what_is_for_one_reader(rig: Rig) -> None:
    """Without `kinds` everything that is filed under the channel; deleted and expired events never."""
    owner = new_key()
    channel = await rig.channel(owner)
    shown = [
        await put(rig.con, owner, channel, kind=kind, at=NOW - number)
        for number, kind in enumerate((9, 7, 40003, 40099, 39000, 9007, 45001))
    ]
    for kind in (1059, 44100, 44101):
        await put(rig.con, owner, channel, kind=kind)
    await put(rig.con, owner, None, kind=1)
    await delete(rig.con, await put(rig.con, owner, channel))
    await put(rig.con, owner, channel, tags=[["expiration", str(NOW - 1)]])
    still = await put(rig.con, owner, channel, tags=[["expiration", str(NOW + 3600)]], at=NOW - 50)
    ids = [event.id for event in shown]
    assert await listed(rig, channel, key=owner) == [*ids, still.id]
    assert await listed(rig, channel, "?kinds=7,%209%20,45001,9,4294967295", key=owner) == [
        ids[0],
        ids[1],
        ids[6],
        still.id,
    ]
    assert await listed(rig, channel, "?kinds=1059", key=owner) == []
    assert await listed(rig, channel, "?kinds=70000", key=owner) == []


async def test_what_the_relay_signed_for_somebody_is_shown_as_his(rig: Rig) -> None:
    owner, relay = new_key(), rig.services.relay_key
    channel = await rig.channel(owner)
    somebody = new_key().public_hex
    cases: list[tuple[int, list[list[str]], str]] = [
        (9, [["p", somebody]], somebody),
        (9, [["p", "xyz"], ["p", somebody]], somebody),
        (9, [], relay.public_hex),
        (40099, [], relay.public_hex),
        (39002, [["p", somebody]], relay.public_hex),  # the first member is not its author
    ]
    for number, (kind, tags, _) in enumerate(cases):
        await put(rig.con, relay, channel, kind=kind, tags=tags, at=NOW - number)
    rows = (await rig.get(f"/api/channels/{channel}/messages", key=owner)).json["messages"]
    assert [row["pubkey"] for row in rows] == [author for _, _, author in cases]
    user_signed = await put(rig.con, owner, channel, tags=[["p", somebody]], at=NOW + 1)
    rows = (await rig.get(f"/api/channels/{channel}/messages?limit=1", key=owner)).json["messages"]
    assert (rows[0]["event_id"], rows[0]["pubkey"]) == (user_signed.id, owner.public_hex)


async def test_before_and_since(rig: Rig) -> None:
    """Both exclude the second they name; `since` alone turns the order."""
    owner = new_key()
    channel = await rig.channel(owner)
    ids = [(await put(rig.con, owner, channel, at=NOW + number)).id for number in range(6)]
    for query, expected in [
        ("", ids[::-1]),
        (f"?before={NOW + 3}", [ids[2], ids[1], ids[0]]),
        (f"?since={NOW + 3}", [ids[4], ids[5]]),
        (f"?since={NOW}&before={NOW + 4}", [ids[3], ids[2], ids[1]]),
        (f"?since={NOW + 1}&limit=2", [ids[2], ids[3]]),
        (f"?since=-5&before=%2B{NOW + 1}", [ids[0]]),
        # No time and no cursor: as if they were not there.
        ("?before=9223372036854775807", ids[::-1]),
        ("?before=99999999999999", ids[::-1]),
        ("?since=9223372036854775807", ids[::-1]),
        ("?before=-9223372036854775808", ids[::-1]),
        (f"?before={NOW}", []),
        ("?limit=0", []),
    ]:
        assert await listed(rig, channel, query, key=owner) == expected, query


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("parameter", ["before", "since"])
async def test_pages_neither_skip_nor_repeat_within_a_second(rig: Rig, size: int, parameter: str) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    events = [await put(rig.con, owner, channel, at=NOW + number // 8) for number in range(20)]
    descending = parameter == "before"
    expected = sorted(events, key=lambda event: (-event.created_at if descending else event.created_at, event.id))
    # From the first event on in both directions: `since` alone is what asks for the oldest first.
    cursor: int | None = NOW + 100 if descending else NOW - 100
    seen: list[str] = []
    pages = 0
    while cursor is not None:
        page = (await rig.get(f"/api/channels/{channel}/messages?limit={size}&{parameter}={cursor}", key=owner)).json
        assert len(page["messages"]) == min(size, len(events) - len(seen))
        seen += [row["event_id"] for row in page["messages"]]
        cursor = page["next_cursor"]
        pages += 1
        assert pages <= len(events)
    assert seen == [event.id for event in expected]
    assert pages == -(-len(events) // size)


async def test_who_may_read(rig: Rig) -> None:
    owner, stranger = new_key(), new_key()
    public = await rig.channel(owner)
    private = await rig.channel(owner, visibility="private")
    gone = await rig.channel(owner)
    await rig.con.execute("UPDATE channels SET deleted_at = now() WHERE id = $1", gone)
    for channel in (public, private, gone):
        await put(rig.con, owner, channel)
    assert len(await listed(rig, public, key=stranger)) == 1
    assert len(await listed(rig, private, key=owner)) == 1
    for key, channel in [(stranger, private), (owner, gone), (owner, str(uuid.uuid4()))]:
        found = await rig.get(f"/api/channels/{channel}/messages", key=key)
        assert (found.status, found.json) == (403, {"error": "not a member of this channel"})
    # Removed a moment ago: at once.
    await rig.con.execute("UPDATE channel_members SET removed_at = now()")
    assert (await rig.get(f"/api/channels/{private}/messages", key=owner)).status == 403
    restricted = await rig.mint(owner, ["messages:read"], [private])
    found = await rig.get(f"/api/channels/{public}/messages", token=restricted)
    assert (found.status, found.json["error"]) == (403, "channel_not_permitted")


async def test_refusals_and_their_order(rig: Rig) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    path = f"/api/channels/{channel}/messages"
    prefix = "Failed to deserialize query string: "
    for query, detail in [
        ("limit=x", "limit: invalid digit found in string"),
        ("limit=-1", "limit: invalid digit found in string"),
        ("before=1.5", "before: invalid digit found in string"),
        ("since=9223372036854775808", "since: number too large to fit in target type"),
        ("before=-9223372036854775809", "before: number too small to fit in target type"),
        ("with_threads=1", "with_threads: provided string was not `true` or `false`"),
        ("kinds=9&kinds=9", "duplicate field `kinds`"),
    ]:
        found = await rig.get(f"{path}?{query}")
        assert (found.status, found.text) == (400, prefix + detail)
        assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert (await rig.get(path)).status == 401
    found = await rig.get("/api/channels/x/messages?kinds=x", key=owner)
    assert (found.status, found.json) == (400, {"error": "invalid channel UUID"})
    for kinds in ("", "x", "9,", "9,,9", "-1", "4294967296", "9;9", "%D9%A1"):
        found = await rig.get(f"{path}?kinds={kinds}", key=owner)
        assert (found.status, found.json) == (400, {"error": BAD_KINDS}), kinds
    token = await rig.mint(owner, ["channels:read"])
    found = await rig.get("/api/channels/x/messages", token=token)
    assert (found.status, found.json) == (
        403,
        {"error": "insufficient_scope", "message": "token missing required scope: messages:read"},
    )


async def test_what_comes_in_by_the_front_door(rig: Rig) -> None:
    """Messages, answers, reactions and deletions as signed events; nothing here is written past ingest."""
    owner, other = new_key(), new_key()
    channel = await rig.channel(owner, others=(other.public_hex,))

    async def submit(key: SecretKey, kind: int, tags: list[list[str]], content: str = "") -> str:
        found = (await rig.submit(key, kind, tags, content)).json
        assert found["accepted"], found
        event_id: str = found["event_id"]
        return event_id

    h = ["h", channel]
    root = await submit(owner, 9, [h], "root")
    reply = await submit(other, 9, [h, ["e", root, "", "reply"]], "reply")
    deep = await submit(owner, 9, [h, ["e", root, "", "root"], ["e", reply, "", "reply"]], "deep")
    reaction = await submit(other, 7, [["e", root]], "🎉")

    async def row() -> dict[str, Any]:
        found = await rig.get(f"/api/channels/{channel}/messages?kinds=9", key=owner)
        (only,) = found.json["messages"]
        assert only["event_id"] == root
        return dict(only)

    before = await row()
    assert (before["thread_summary"]["reply_count"], before["thread_summary"]["descendant_count"]) == (1, 2)
    assert set(before["thread_summary"]["participants"]) == {owner.public_hex, other.public_hex}
    assert before["reactions"] == [{"emoji": "🎉", "count": 1}]
    thread = (await rig.get(f"/api/channels/{channel}/threads/{root}", key=owner)).json
    assert [
        (each["event_id"], each["depth"]) for each in sorted(thread["replies"], key=lambda each: each["depth"])
    ] == [
        (reply, 1),
        (deep, 2),
    ]
    await submit(owner, 5, [["e", deep]])
    await submit(other, 5, [["e", reaction]])
    after = await row()
    assert (after["thread_summary"]["reply_count"], after["thread_summary"]["descendant_count"]) == (1, 1)
    assert after["thread_summary"]["participants"] == [other.public_hex]
    assert "reactions" not in after
    assert (await rig.get(f"/api/events/{deep}", key=owner)).status == 404


async def test_a_page_of_large_messages_lets_others_work(rig: Rig) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    for number in range(12):
        await put(rig.con, owner, channel, content="x" * 200_000, at=NOW - number)
    rows = await message_list.page(
        rig.services.pool, channel, owner.public_hex, now=NOW, limit=50, statement_seconds=5
    )  # fmt: skip
    assert rows is not None
    turns = 0
    done = False

    async def others() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        found = await written({"content": row.signed_json.decode()} for row in rows)
        done = True
    assert len(found) == 12
    assert turns >= 10


@pytest.mark.parametrize("parameter", ["before", "since"])
async def test_a_page_of_large_messages_is_shorter(rig: Rig, parameter: str) -> None:
    """As many as 8 MiB hold; the cursor goes on behind them, and nothing is skipped."""
    owner = new_key()
    channel = await rig.channel(owner)
    large = "x" * 1_000_000
    events = [
        await put(rig.con, owner, channel, content=f"{number} {large}", at=NOW + number // 8) for number in range(20)
    ]
    descending = parameter == "before"
    expected = sorted(events, key=lambda event: (-event.created_at if descending else event.created_at, event.id))
    cursor: int | None = NOW + 100 if descending else NOW - 100
    seen: list[str] = []
    while cursor is not None:
        found = await rig.get(f"/api/channels/{channel}/messages?limit=200&{parameter}={cursor}", key=owner)
        assert len(found.body) < 10 << 20
        seen += [row["event_id"] for row in found.json["messages"]]
        assert found.json["messages"]
        cursor = found.json["next_cursor"]
    assert seen == [event.id for event in expected]


async def busy_channel(rig: Rig, owner: SecretKey, rows: int) -> tuple[str, list[Event]]:
    """A channel of so many messages, each with two answers and two reactions."""
    channel = await rig.channel(owner)
    other = new_key()
    roots = [await put(rig.con, owner, channel, at=NOW - number) for number in range(rows)]
    async with rig.con.transaction():
        for root in roots:
            for key in (owner, other):
                await answer(rig.con, key, channel, root)
                await react(rig.con, key, channel, root, "+")
    return channel, roots


@pytest.mark.parametrize("rows", [1, 20, 200])
async def test_a_page_costs_two_statements(rig: Rig, rows: int) -> None:
    owner = new_key()
    channel, roots = await busy_channel(rig, owner, rows)
    await put(rig.con, owner, channel, at=NOW - 10_000)
    for sign_in in ({"key": owner}, {"token": await rig.mint(owner, ["messages:read"])}):
        rig.statements.clear()
        page = (await rig.get(f"/api/channels/{channel}/messages?limit=4294967295&kinds=9", **sign_in)).json
        # SET is no statement: nothing is asked of a table.
        assert len([text for text in rig.statements if not text.startswith("SET ")]) == 2
        rows_found = [row for row in page["messages"] if row["event_id"] in {root.id for root in roots}]
        assert len(rows_found) == rows
        assert len(page["messages"]) == min(rows + 1, 200)
        assert (page["next_cursor"] is None) == (rows < 200)
        for row in rows_found:
            assert row["reactions"] == [{"emoji": "+", "count": 2}]
            assert len(row["thread_summary"]["participants"]) == 2
