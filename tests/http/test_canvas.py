"""GET /api/channels/{id}/canvas: the newest one, by whom it is, and what is passed over."""

from __future__ import annotations

import time

from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from tests.support.http import Rig, new_key, signed


async def put(rig: Rig, channel_id: str, author: SecretKey, content: str, at: int, *tags: list[str]) -> Event:
    """A stored canvas with a time, an author and tags of its own choosing."""
    event = signed(author, 40100, [["h", channel_id], *tags], content, at)
    await rig.con.execute(
        "INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json) "
        "VALUES ($1, $2, $3, 40100, ($4::jsonb ->> 'tags')::jsonb, $5, $6, $7, $8)",
        bytes.fromhex(event.id), bytes.fromhex(event.pubkey), at, event.json.decode(), event.content,
        bytes.fromhex(event.sig), channel_id, event.json,
    )  # fmt: skip
    return event


async def canvas(rig: Rig, channel_id: str, key: SecretKey) -> object:
    found = await rig.get(f"/api/channels/{channel_id}/canvas", key=key)
    assert found.status == 200, found.body
    return found.json


async def test_none(rig: Rig) -> None:
    owner = new_key()
    channel_id = await rig.channel(owner)
    await rig.message(channel_id, owner, 1000)
    assert await canvas(rig, channel_id, owner) == {"content": None}


async def test_what_was_sent_is_read_back(rig: Rig) -> None:
    owner = new_key()
    channel_id = await rig.channel(owner)
    event = signed(owner, 40100, [["h", channel_id]], "# Plans\n\0…")
    sent = await rig.post("/api/events", key=owner, data=event.json)
    if not sent.json.get("accepted"):  # a text that PostgreSQL has no place for is refused, not changed
        event = signed(owner, 40100, [["h", channel_id]], "# Plans\n…")
        assert (await rig.post("/api/events", key=owner, data=event.json)).json["accepted"]
    assert await canvas(rig, channel_id, owner) == {
        "content": event.content,
        "updated_at": event.created_at,
        "author": owner.public_hex,
    }


async def test_the_newest_of_this_channel(rig: Rig) -> None:
    owner = new_key()
    here, there = await rig.channel(owner), await rig.channel(owner)
    await put(rig, here, owner, "old", 1000)
    await put(rig, here, owner, "new", 2000)
    await put(rig, there, owner, "elsewhere", 3000)
    assert await canvas(rig, here, owner) == {"content": "new", "updated_at": 2000, "author": owner.public_hex}


async def test_of_two_in_one_second_the_lower_id(rig: Rig) -> None:
    owner = new_key()
    channel_id = await rig.channel(owner)
    both = [await put(rig, channel_id, owner, text, 1000) for text in ("a", "b", "c")]
    found = await canvas(rig, channel_id, owner)
    assert found == {
        "content": min(both, key=lambda event: event.id).content,
        "updated_at": 1000,
        "author": owner.public_hex,
    }


async def test_deleted_and_expired_ones_are_passed_over(rig: Rig) -> None:
    owner = new_key()
    channel_id = await rig.channel(owner)
    now = int(time.time())
    kept, deleted, expired = [
        await put(rig, channel_id, owner, f"{at}", at) for at in (now - 300, now - 200, now - 100)
    ]
    await rig.con.execute("UPDATE events SET deleted_at = now() WHERE id = $1", bytes.fromhex(deleted.id))
    await rig.con.execute("UPDATE events SET expires_at = $2 WHERE id = $1", bytes.fromhex(expired.id), now - 1)
    await rig.con.execute("UPDATE events SET expires_at = $2 WHERE id = $1", bytes.fromhex(kept.id), now + 1000)
    assert await canvas(rig, channel_id, owner) == {
        "content": kept.content,
        "updated_at": now - 300,
        "author": owner.public_hex,
    }


async def test_whom_it_is_by(rig: Rig) -> None:
    """Its signer, whoever is named in it; the relay signs for the first whom it names."""
    owner, named, relay = new_key(), new_key(), rig.services.relay_key
    channel_id = await rig.channel(owner)
    tags = (["p", named.public_hex.upper(), "wss://example.org"], ["p", owner.public_hex])
    for at, (author, its_tags, expected) in enumerate(
        [
            (owner, tags, owner),
            (relay, tags, named),
            (relay, (), relay),
            (relay, (["p"], ["p", "x"], ["p", named.public_hex]), relay),
        ],
        start=1000,
    ):
        await put(rig, channel_id, author, "text", at, *its_tags)
        assert await canvas(rig, channel_id, owner) == {
            "content": "text",
            "updated_at": at,
            "author": expected.public_hex,
        }
