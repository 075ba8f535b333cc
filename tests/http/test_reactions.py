"""GET /api/messages/{event_id}/reactions: groups, people, cursors, refusals, and what it costs."""

from __future__ import annotations

import time
import uuid

import pytest

from relay.store import reaction_list
from tests.support.http import Rig, new_key
from tests.support.timeline import delete, name, put, react

NOW = int(time.time())
NOT_FOUND = {"error": "event not found"}


async def test_groups_by_emoji_and_people_by_time(rig: Rig) -> None:
    owner, second, third = (new_key() for _ in range(3))
    channel = await rig.channel(owner)
    message = await put(rig.con, owner, channel)
    await name(rig.con, second, "Ada")
    plus = [await react(rig.con, key, channel, message, "+") for key in (third, second, owner)]
    party = await react(rig.con, third, channel, message, "🎉")
    await react(rig.con, owner, channel, message, "over", until=NOW - 1)
    taken_back = await react(rig.con, second, channel, message, "gone")
    await rig.con.execute(
        "UPDATE reactions SET removed_at = now() WHERE reaction_event_id = $1", bytes.fromhex(taken_back.id)
    )
    # Imported ones do not know by which event they came.
    await rig.con.execute(
        "INSERT INTO reactions (event_id, pubkey, emoji) VALUES ($1, $2, 'Z')",
        bytes.fromhex(message.id), bytes.fromhex(second.public_hex),
    )  # fmt: skip

    def user(key: str, shown: str, reaction: str) -> dict[str, str]:
        return {"pubkey": key, "display_name": shown, "reaction_event_id": reaction}

    found = await rig.get(f"/api/messages/{message.id.upper()}/reactions", key=owner)
    assert found.status == 200
    assert found.json == {
        "reactions": [
            {
                "emoji": "+",
                "count": 3,
                "users": [
                    user(third.public_hex, third.public_hex[:8], plus[0].id),
                    user(second.public_hex, "Ada", plus[1].id),
                    user(owner.public_hex, owner.public_hex[:8], plus[2].id),
                ],
            },
            {"emoji": "Z", "count": 1, "users": [{"pubkey": second.public_hex, "display_name": "Ada"}]},
            {"emoji": "🎉", "count": 1, "users": [user(third.public_hex, third.public_hex[:8], party.id)]},
        ],
        "next_cursor": None,
    }


async def test_nothing(rig: Rig) -> None:
    owner = new_key()
    message = await put(rig.con, owner, await rig.channel(owner))
    for query in ("", "?limit=0", f"?cursor={b'ff'.hex()}"):
        found = await rig.get(f"/api/messages/{message.id}/reactions{query}", key=owner)
        assert found.json == {"reactions": [], "next_cursor": None}


@pytest.mark.parametrize("size", [1, 2, 3, 10])
async def test_pages(rig: Rig, size: int) -> None:
    owner, other = new_key(), new_key()
    channel = await rig.channel(owner)
    message = await put(rig.con, owner, channel)
    emojis = ["+", "-", "A", "a", "á", "é", "ﬂ", "🎉", "🎉🎉", "👍🏽"]
    for emoji in emojis:
        await react(rig.con, owner, channel, message, emoji)
        await react(rig.con, other, channel, message, emoji)
    seen: list[str] = []
    cursor = ""
    for _ in emojis:
        page = (await rig.get(f"/api/messages/{message.id}/reactions?limit={size}{cursor}", key=owner)).json
        assert len(page["reactions"]) == min(size, len(emojis) - len(seen))
        assert all(group["count"] == len(group["users"]) == 2 for group in page["reactions"])
        seen += [group["emoji"] for group in page["reactions"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == sorted(emojis, key=str.encode)


async def test_more_people_than_are_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = new_key()
    message = await put(rig.con, owner, await rig.channel(owner))
    number = reaction_list.USERS_MAX + 7
    await rig.con.execute(
        "INSERT INTO reactions (event_id, pubkey, emoji) "
        "SELECT $1, sha256(i::text::bytea), '+' FROM generate_series(1, $2) AS i",
        bytes.fromhex(message.id), number,
    )  # fmt: skip
    (group,) = (await rig.get(f"/api/messages/{message.id}/reactions", key=owner)).json["reactions"]
    assert (group["count"], len(group["users"])) == (number, reaction_list.USERS_MAX)


async def test_refusals(rig: Rig) -> None:
    owner, stranger = new_key(), new_key()
    private = await rig.channel(owner, visibility="private")
    message = await put(rig.con, owner, private)
    await react(rig.con, owner, private, message)
    gone = await put(rig.con, owner, private)
    await delete(rig.con, gone)
    over = await put(rig.con, owner, private, tags=[["expiration", str(NOW - 1)]])
    wrap = await put(rig.con, owner, None, kind=1059)
    filed_wrap = await put(rig.con, owner, private, kind=1059)
    for key, event_id, query, status, body in [
        (owner, "xy" * 32, "", 400, {"error": "invalid event_id: not valid hex"}),
        (owner, "abc", "", 400, {"error": "invalid event_id: not valid hex"}),
        (owner, "abcd", "", 400, {"error": "invalid event_id: must be 32 bytes (64 hex chars)"}),
        (owner, "ab" * 32, "", 404, NOT_FOUND),
        (owner, gone.id, "", 404, NOT_FOUND),
        (owner, over.id, "", 404, NOT_FOUND),
        (owner, wrap.id, "", 404, NOT_FOUND),
        (owner, filed_wrap.id, "", 404, NOT_FOUND),
        (stranger, message.id, "", 403, {"error": "not a member of this channel"}),
        (owner, message.id, "?cursor=x", 400, {"error": "invalid cursor"}),
        (owner, message.id, "?cursor=", 400, {"error": "invalid cursor"}),
        (owner, message.id, "?cursor=ff", 400, {"error": "invalid cursor"}),
        (owner, message.id, "?cursor=6100", 400, {"error": "invalid cursor"}),
    ]:
        found = await rig.get(f"/api/messages/{event_id}/reactions{query}", key=key)
        assert (found.status, found.json) == (status, body), (event_id, query)
    await rig.con.execute("UPDATE channels SET deleted_at = now()")
    found = await rig.get(f"/api/messages/{message.id}/reactions", key=owner)
    assert (found.status, found.json) == (403, {"error": "not a member of this channel"})
    found = await rig.get(f"/api/messages/{message.id}/reactions?limit=x")
    assert (found.status, found.text) == (
        400, "Failed to deserialize query string: limit: invalid digit found in string",
    )  # fmt: skip
    assert (await rig.get(f"/api/messages/{message.id}/reactions")).status == 401
    token = await rig.mint(owner, ["channels:read"])
    found = await rig.get("/api/messages/x/reactions", token=token)
    assert (found.status, found.json["error"]) == (403, "insufficient_scope")
    restricted = await rig.mint(owner, ["messages:read"], [str(uuid.uuid4())])
    found = await rig.get(f"/api/messages/{message.id}/reactions", token=restricted)
    assert (found.status, found.json["error"]) == (403, "channel_not_permitted")


async def test_a_note_of_no_channel(rig: Rig) -> None:
    owner, reader = new_key(), new_key()
    note = await put(rig.con, owner, None, kind=1)
    await react(rig.con, owner, None, note)
    found = (await rig.get(f"/api/messages/{note.id}/reactions", key=reader)).json
    assert [group["count"] for group in found["reactions"]] == [1]


@pytest.mark.parametrize("rows", [1, 20, 200])
async def test_a_page_costs_two_statements(rig: Rig, rows: int) -> None:
    owner = new_key()
    channel = await rig.channel(owner)
    message = await put(rig.con, owner, channel)
    async with rig.con.transaction():
        for number in range(rows):
            await react(rig.con, owner, channel, message, f"{number:03}")
    token = await rig.mint(owner, ["messages:read"])
    rig.statements.clear()
    found = (await rig.get(f"/api/messages/{message.id}/reactions?limit=4294967295", token=token)).json
    assert len(rig.statements) == 2
    assert len(found["reactions"]) == rows
    assert found["next_cursor"] is None
