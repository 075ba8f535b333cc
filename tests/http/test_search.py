"""GET /api/search: what a hit looks like, what is found, by whom, in which order, and what it costs."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from relay.access.identity import Caller
from relay.asyncpg_trio import Pool
from relay.errors import Refusal, RefusalClass, Refused, StoreBusy
from relay.http.app import create_app
from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from relay.store.events import insert_one
from tests.support.http import Rig, new_key, signed

NOW = int(time.time())
HIT = {"event_id", "content", "kind", "pubkey", "channel_id", "channel_name", "created_at", "score"}


async def say(
    rig: Rig, author: SecretKey, channel: str | None, content: str, at: int = 0, kind: int = 9, *tags: list[str]
) -> Event:
    """Stores an event as ingest does, whatever its kind."""
    own = [] if channel is None else [["h", channel]]
    event = signed(author, kind, [*own, *tags], content, NOW + at)
    await insert_one(rig.con, event, channel)
    return event


async def search(rig: Rig, key: SecretKey, text: str | None = None, query: str = "", **options: Any) -> list[str]:
    """Contents, in the order in which they come."""
    asked = query if text is None else f"q={quote(text)}&{query}"
    found = await rig.get(f"/api/search?{asked}", key=key, **options)
    assert found.status == 200, found.body
    assert set(found.json) == {"hits", "found"}
    assert found.json["found"] == len(found.json["hits"])
    return [hit["content"] for hit in found.json["hits"]]


async def test_a_hit_has_every_key(rig: Rig) -> None:
    me, author = new_key(), new_key()
    channel = await rig.channel(me, "general")
    event = await say(rig, author, channel, "hello world")
    note = await say(rig, author, None, "hello everybody", -1, 1)
    found = (await rig.get("/api/search?q=hello", key=me)).json
    in_channel, outside = found["hits"]
    assert set(in_channel) == HIT
    assert in_channel.pop("score") > 0
    assert in_channel == {
        "event_id": event.id,
        "content": "hello world",
        "kind": 9,
        "pubkey": author.public_hex,
        "channel_id": channel,
        "channel_name": "general",
        "created_at": NOW,
    }
    assert (outside["event_id"], outside["kind"]) == (note.id, 1)
    assert (outside["channel_id"], outside["channel_name"]) == (None, None)


@pytest.mark.parametrize("text", [None, "", "*", " * ", "  "])
async def test_no_words_give_the_newest(rig: Rig, text: str | None) -> None:
    me = new_key()
    channel = await rig.channel(me)
    for number in range(25):
        await say(rig, me, channel, f"message {number}", -number)
    assert await search(rig, me, text) == [f"message {number}" for number in range(20)]
    hits = (await rig.get("/api/search?limit=1", key=me)).json["hits"]
    assert [hit["score"] for hit in hits] == [0]


async def test_rank_chooses_and_time_orders(rig: Rig) -> None:
    me = new_key()
    channel = await rig.channel(me)
    await say(rig, me, channel, "one two three", -1000)
    for number in range(4):
        await say(rig, me, channel, f"two {number}", -number)
    assert await search(rig, me, "one two three", "limit=3") == ["two 0", "two 1", "one two three"]
    assert await search(rig, me, "one two three", "limit=1") == ["one two three"]
    scores = {hit["content"]: hit["score"] for hit in (await rig.get("/api/search?q=one%20two", key=me)).json["hits"]}
    assert max(scores, key=lambda content: scores[content]) == "one two three"


async def test_of_one_second_the_lowest_id_comes_first(rig: Rig) -> None:
    me = new_key()
    channel = await rig.channel(me)
    events = [await say(rig, me, channel, f"same {number}") for number in range(12)]
    in_order = [event.content for event in sorted(events, key=lambda event: event.id)]
    assert await search(rig, me, "same") == in_order
    assert await search(rig, me, "", "limit=5") == in_order[:5]


async def test_limits(rig: Rig) -> None:
    me = new_key()
    channel = await rig.channel(me)
    for number in range(110):
        await say(rig, me, channel, f"word {number}", -number)
    for query, expected in (("", 20), ("limit=0", 0), ("limit=1", 1), ("limit=100", 100), ("limit=4294967295", 100)):
        for text in ("word", ""):
            assert len(await search(rig, me, text, query)) == expected, (query, text)


@pytest.mark.parametrize(
    ("text", "found"),
    [("deploy", True), ("DEPLOY", True), ("depl", True), ("ploy", False), ("東京", True), ("東", True), ("京都", False),
     ("deploy nothing", True), ("release2024", False), ("9f3c-11ab", True), ("9f3c-11", True)],
)  # fmt: skip
async def test_words_and_their_beginnings(rig: Rig, text: str, found: bool) -> None:
    me = new_key()
    await say(rig, me, await rig.channel(me), "Deploy 新しい東京サーバー today 9f3c-11ab")
    assert bool(await search(rig, me, text)) is found


@pytest.mark.parametrize(
    "text", ["!!!", "a & | ! b", "x:*", "'", "\\", "%", "\0", "( (", "language:en", "x" * 5000, "🙂"]
)
async def test_nothing_that_one_can_type_is_an_error(rig: Rig, text: str) -> None:
    me = new_key()
    await say(rig, me, await rig.channel(me), "hello")
    assert await search(rig, me, text) == []


async def test_visible_with_the_answer_and_gone_with_the_deletion(rig: Rig) -> None:
    me = new_key()
    channel = str(uuid.uuid4())
    assert (await rig.submit(me, 9007, [["h", channel], ["name", "new"]])).status == 200
    token = f"{uuid.uuid4()}"
    sent = await rig.submit(me, 9, [["h", channel]], f"see {token}")
    assert await search(rig, me, token) == [f"see {token}"]
    assert (await rig.submit(me, 5, [["e", sent.json["event_id"]]])).status == 200
    assert await search(rig, me, token) == []


async def test_only_what_a_subscription_would_show(rig: Rig) -> None:
    me, other = new_key(), new_key()
    mine, open_one = await rig.channel(me, visibility="private"), await rig.channel(other)
    foreign, gone = await rig.channel(other, visibility="private"), await rig.channel(other)
    await rig.con.execute("UPDATE channels SET deleted_at = now() WHERE id = $1", gone)
    for name, channel in (("mine", mine), ("open", open_one), ("foreign", foreign), ("gone", gone), ("global", None)):
        await say(rig, other, channel, f"word {name}")
    for kind in (1059, 44100, 44101, 40099):
        await say(rig, other, None, f"word {kind}", 0, kind, ["p", other.public_hex])
        await say(rig, other, mine, f"word {kind}", 0, kind)
    await say(rig, other, mine, "word expired", 0, 9, ["expiration", str(NOW - 1)])
    for text in ("word", "", "*"):
        assert set(await search(rig, me, text)) == {"word mine", "word open", "word global"}


async def test_who_was_removed_finds_nothing_more(rig: Rig) -> None:
    owner, member = new_key(), new_key()
    channel = str(uuid.uuid4())
    tags = [["h", channel], ["name", "team"], ["visibility", "private"]]
    assert (await rig.submit(owner, 9007, tags)).status == 200
    assert (await rig.submit(owner, 9000, [["h", channel], ["p", member.public_hex]])).status == 200
    await say(rig, owner, channel, "secret word")
    assert await search(rig, member, "secret") == ["secret word"]
    assert (await rig.submit(owner, 9001, [["h", channel], ["p", member.public_hex]])).status == 200
    assert await search(rig, member, "secret") == []
    assert await search(rig, owner, "secret") == ["secret word"]


async def test_what_is_lost_while_the_store_searches_is_not_shown(rig: Rig) -> None:
    """The removal happens between the list of channels and the answer."""
    owner, member = new_key(), new_key()
    channel = await rig.channel(owner, visibility="private", others=(member.public_hex,))
    await say(rig, owner, channel, "secret word")

    @asynccontextmanager
    async def asking(caller: Caller, *, long: bool) -> AsyncIterator[None]:
        assert long
        yield
        removed = "UPDATE channel_members SET removed_at = now() WHERE pubkey = $1"
        await rig.con.execute(removed, bytes.fromhex(caller.pubkey))
        rig.services.directory.invalidate_membership(channel, caller.pubkey)

    app = create_app(replace(rig.services, asking=asking))
    assert await search(rig, member, "secret", app=app) == []


async def test_in_one_channel(rig: Rig) -> None:
    me = new_key()
    first, second = await rig.channel(me), await rig.channel(me)
    foreign = await rig.channel(new_key(), visibility="private")
    for name, channel in (("first", first), ("second", second), ("foreign", foreign), ("global", None)):
        await say(rig, me, channel, f"word {name}")
    for text in ("word", ""):
        assert await search(rig, me, text, f"channel_id={first}") == ["word first"]
        assert await search(rig, me, text, f"channel_id={second.upper()}") == ["word second"]
        for channel in (foreign, str(uuid.uuid4())):
            assert await search(rig, me, text, f"channel_id={channel}") == []


async def test_a_token_finds_in_its_channels_only(rig: Rig) -> None:
    me = new_key()
    first, second = await rig.channel(me), await rig.channel(me)
    foreign = await rig.channel(new_key(), visibility="private")
    for name, channel in (("first", first), ("second", second), ("foreign", foreign), ("global", None)):
        await say(rig, me, channel, f"word {name}")
    for channel_ids, expected in (
        (None, {"word first", "word second", "word global"}),
        ([second], {"word second"}),
        ([foreign], set()),
        ([], set()),
    ):
        token = await rig.mint(me, ["messages:read"], channel_ids)
        for text in ("word", ""):
            found = (await rig.get(f"/api/search?q={text}", token=token)).json
            assert {hit["content"] for hit in found["hits"]} == expected


async def test_refusals(rig: Rig) -> None:
    prefix = "Failed to deserialize query string: "
    for query, text in (
        ("limit=x", "limit: invalid digit found in string"),
        ("limit=4294967296", "limit: number too large to fit in target type"),
        ("q=a&q=b", "duplicate field `q`"),
    ):
        found = await rig.get(f"/api/search?{query}")
        assert (found.status, found.text) == (400, prefix + text)
    assert (await rig.get("/api/search?channel_id=x")).status == 401
    me = new_key()
    found = await rig.get("/api/search?channel_id=x", key=me)
    assert (found.status, found.json) == (400, {"error": "invalid channel UUID"})
    found = await rig.get("/api/search", token=await rig.mint(me, ["channels:read"]))
    assert (found.status, found.json) == (
        403,
        {"error": "insufficient_scope", "message": "token missing required scope: messages:read"},
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused(Refusal("rate-limited: slow down", RefusalClass.LIMITED)), 429),
        (StoreBusy("too many"), 503),
    ],
)
async def test_too_many_searches(rig: Rig, error: Exception, status: int) -> None:
    @asynccontextmanager
    async def asking(caller: Caller, *, long: bool) -> AsyncIterator[None]:
        if long and caller.has("messages:read"):
            raise error
        yield

    found = await rig.get("/api/search?q=x", key=new_key(), app=create_app(replace(rig.services, asking=asking)))
    assert found.status == status
    assert set(found.json) >= {"error"}


async def test_a_search_that_takes_too_long_is_no_empty_result(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    me = new_key()
    await say(rig, me, await rig.channel(me), "word")
    fetch = Pool.transaction

    @asynccontextmanager
    async def slow(self: Pool, *, readonly: bool = False, **options: Any) -> AsyncIterator[Any]:
        async with fetch(self, readonly=readonly, **options) as con:
            await con.execute("SELECT pg_sleep(30)")
            yield con

    monkeypatch.setattr(Pool, "transaction", slow)
    found = await rig.get("/api/search?q=word", key=me, app=rig.with_settings(statement_seconds=0.2))
    assert found.status == 503
    assert set(found.json) == {"error"}


@pytest.mark.parametrize("number", [1, 20, 200])
@pytest.mark.parametrize("text", ["word", "word other", "", "東京"])
async def test_the_statements_do_not_grow_with_the_rows(rig: Rig, number: int, text: str) -> None:
    me, author = new_key(), new_key()
    for each in range(number):
        await say(rig, author, await rig.channel(me, f"c{each}"), f"word {each} 東京", -each)
    token = await rig.mint(me, ["messages:read"])
    rig.services.directory.clear()
    rig.statements.clear()
    found = await rig.get(f"/api/search?limit=100&q={quote(text)}", token=token)
    assert found.json["found"] == min(number, 100)
    assert len([each for each in rig.statements if not each.startswith("SET")]) <= 3, rig.statements
