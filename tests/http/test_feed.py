"""GET /api/feed: what comes into which category, in which order, for whom, and what it costs."""

from __future__ import annotations

import random
import time
import uuid
from typing import Any

import pytest

from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from relay.store.events import insert_one
from relay.store.feed import ACTION_KINDS, ACTIVITY_KINDS, AGENT_KINDS, MENTION_KINDS
from tests.support.http import Rig, new_key, signed

NOW = int(time.time())
CATEGORIES = ("mentions", "needs_action", "activity", "agent_activity")
ITEM = {
    "id", "kind", "pubkey", "content", "created_at", "channel_id", "channel_name", "channel_type", "tags", "category",
}  # fmt: skip


async def put(
    rig: Rig, author: SecretKey, channel: str | None, kind: int = 9, at: int = 0, tags: tuple[list[str], ...] = ()
) -> Event:
    """Stores an event `at` seconds from now as ingest does, whatever its kind."""
    own = [] if channel is None else [["h", channel]]
    event = signed(author, kind, [*own, *tags], f"{kind} at {at} {uuid.uuid4()}", NOW + at)
    await insert_one(rig.con, event, channel)
    return event


async def feed(rig: Rig, key: SecretKey, query: str = "", **options: Any) -> dict[str, list[str]]:
    """Ids by category."""
    found = await rig.get(f"/api/feed{query}", key=key, **options)
    assert found.status == 200, found.body
    assert tuple(found.json["feed"]) == CATEGORIES
    assert found.json["meta"]["total"] == sum(map(len, found.json["feed"].values()))
    return {category: [item["id"] for item in items] for category, items in found.json["feed"].items()}


def only(**found: list[Event]) -> dict[str, list[str]]:
    return {category: [event.id for event in found.get(category, [])] for category in CATEGORIES}


async def test_an_item_has_every_key(rig: Rig) -> None:
    me, author = new_key(), new_key()
    channel = await rig.channel(me, "general")
    event = await put(rig, author, channel, tags=(["p", me.public_hex],))
    before = int(time.time())
    found = (await rig.get("/api/feed", key=me)).json
    (mention,), (activity,) = found["feed"]["mentions"], found["feed"]["activity"]
    assert set(mention) == ITEM
    assert mention == {
        "id": event.id,
        "kind": 9,
        "pubkey": author.public_hex,
        "content": event.content,
        "created_at": NOW,
        "channel_id": channel,
        "channel_name": "general",
        "channel_type": "stream",
        "tags": [["h", channel], ["p", me.public_hex]],
        "category": "mention",
    }
    assert activity == mention | {"category": "activity"}
    assert set(found["meta"]) == {"since", "total", "generated_at"}
    assert before <= found["meta"]["generated_at"] <= time.time()
    assert found["meta"]["since"] == found["meta"]["generated_at"] - 7 * 86_400


async def test_nothing_to_tell(rig: Rig) -> None:
    found = await rig.get("/api/feed", key=new_key())
    assert found.json["feed"] == {category: [] for category in CATEGORIES}
    assert found.json["meta"]["total"] == 0


async def test_kinds_and_their_categories(rig: Rig) -> None:
    me = new_key()
    channel = await rig.channel(me)
    every = sorted({*MENTION_KINDS, *ACTION_KINDS, *ACTIVITY_KINDS, *AGENT_KINDS, 5, 7, 1059, 40003, 40099, 43002})
    mine = {kind: await put(rig, me, channel, kind, -kind, (["p", me.public_hex],)) for kind in every}
    assert await feed(rig, me, "?limit=50") == only(
        mentions=[mine[kind] for kind in (9, 40002, 45001, 45003)],
        needs_action=[mine[kind] for kind in (40007, 46010)],
        activity=[mine[kind] for kind in (9, 40002, 45001)],
        agent_activity=[mine[kind] for kind in (43001, 43003, 43004)],
    )
    one_each = await rig.get("/api/feed?limit=50", key=me)
    assert {item["category"] for items in one_each.json["feed"].values() for item in items} == {
        "mention", "needs_action", "activity", "agent_activity",
    }  # fmt: skip


async def test_newest_first_and_not_too_many(rig: Rig) -> None:
    me, author = new_key(), new_key()
    channels = [await rig.channel(me, f"c{number}") for number in range(4)]
    stored = [await put(rig, author, channels[number % 3], at=-number) for number in range(60)]
    # One very busy channel, and one where nothing was said lately.
    stored[:0] = [await put(rig, author, channels[0], at=number) for number in range(30, 0, -1)]
    await put(rig, author, channels[3], at=-8 * 86_400)
    assert (await feed(rig, me))["activity"] == [event.id for event in stored[:20]]
    for limit, expected in ((0, 0), (1, 1), (31, 31), (50, 50), (4_000_000_000, 50)):
        assert (await feed(rig, me, f"?limit={limit}"))["activity"] == [event.id for event in stored[:expected]]


async def test_of_one_second_the_lowest_id_comes_first(rig: Rig) -> None:
    me = new_key()
    channels = [await rig.channel(me) for _ in range(5)]
    stored = [await put(rig, me, channel, tags=(["p", me.public_hex],)) for channel in channels for _ in range(8)]
    lowest = sorted(event.id for event in stored)
    for limit in (1, 3, 7, 30):
        found = await feed(rig, me, f"?limit={limit}")
        assert found["activity"] == found["mentions"] == lowest[:limit]


@pytest.mark.parametrize("seed", range(3))
async def test_against_looking_at_everything(rig: Rig, seed: int) -> None:
    """Few seconds, many channels, things that may not be shown in between: the newest of each category, in order."""
    rng = random.Random(seed)
    me, author = new_key(), new_key()
    channels = [await rig.channel(me, visibility=rng.choice(["open", "private"])) for _ in range(12)]
    closed = [await rig.channel(author, visibility="private") for _ in range(3)]
    shown: dict[str, list[Event]] = {category: [] for category in CATEGORIES}
    for _ in range(200):
        channel, kind, at = (
            rng.choice([*channels, *closed]),
            rng.choice([9, 9, 45001, 7, 43001, 40007]),
            -rng.randrange(6),
        )
        tags = [["p", me.public_hex]] * (rng.random() < 0.3) + [["expiration", str(NOW - 1)]] * (rng.random() < 0.1)
        event = await put(rig, author, channel, kind, at, tuple(tags))
        if rng.random() < 0.1:
            await rig.con.execute("UPDATE events SET deleted_at = now() WHERE id = $1", bytes.fromhex(event.id))
        elif channel in channels and "expiration" not in dict(tags):
            mentioned = "p" in dict(tags)
            for category, holds in (
                ("mentions", mentioned and kind in MENTION_KINDS),
                ("needs_action", mentioned and kind in ACTION_KINDS),
                ("activity", kind in ACTIVITY_KINDS),
                ("agent_activity", kind in AGENT_KINDS),
            ):
                if holds:
                    shown[category].append(event)
    for events in shown.values():
        events.sort(key=lambda event: (-event.created_at, event.id))
    for limit in (1, 2, 5, 20, 50):
        expected = {category: events[:limit] for category, events in shown.items()}
        assert await feed(rig, me, f"?limit={limit}") == only(**expected)


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        ("", ()),
        ("nothing", ()),
        ("mentions", ("mentions",)),
        ("activity,unknown,needs_action", ("activity", "needs_action")),
        ("agent_activity, mentions,mentions", ("agent_activity", "mentions")),
        ("Mentions", ()),
    ],
)
async def test_types(rig: Rig, types: str, wanted: tuple[str, ...]) -> None:
    me = new_key()
    channel = await rig.channel(me)
    for kind in (9, 40007, 43001):
        await put(rig, me, channel, kind, tags=(["p", me.public_hex],))
    found = await feed(rig, me, f"?types={types}")
    assert {category for category, ids in found.items() if ids} == set(wanted)


async def test_since(rig: Rig) -> None:
    me = new_key()
    channel = await rig.channel(me)
    new, old, ancient = [
        await put(rig, me, channel, at=at, tags=(["p", me.public_hex],)) for at in (0, -6 * 86_400, -8 * 86_400)
    ]
    for query, expected in (
        ("", [new, old]),
        (f"?since={NOW}", [new]),
        (f"?since={NOW + 1}", []),
        (f"?since={NOW - 8 * 86_400}", [new, old, ancient]),
        ("?since=-5", [new, old, ancient]),
        # Beyond what a calendar holds: as if it were not there.
        (f"?since={2**62}", [new, old]),
        (f"?since={-(2**62)}", [new, old]),
    ):
        found = await feed(rig, me, query)
        assert found == only(mentions=expected, activity=expected), query
    assert (await rig.get("/api/feed?since=-5", key=me)).json["meta"]["since"] == -5


async def test_only_what_may_be_read(rig: Rig) -> None:
    """Open channels and one's own; not those of others, not deleted ones, no global events."""
    me, other = new_key(), new_key()
    mention = (["p", me.public_hex],)
    kinds = (9, 40007, 43001)
    foreign, gone, left = [await rig.channel(other, visibility="private") for _ in range(3)]
    own = await rig.channel(me, visibility="private")
    public = await rig.channel(other)
    await rig.channel(me)
    await rig.con.execute("UPDATE channels SET deleted_at = now() WHERE id = $1", gone)
    await rig.con.execute("UPDATE channels SET visibility = 'open' WHERE id = $1", gone)
    await rig.con.execute(
        "INSERT INTO channel_members (channel_id, pubkey, removed_at) VALUES ($1, $2, now())",
        left,
        bytes.fromhex(me.public_hex),
    )
    for channel in (foreign, gone, left, None):
        for kind in kinds:
            await put(rig, other, channel, kind, tags=mention)
    shown = [
        [await put(rig, other, channel, kind, -n, mention) for kind in kinds] for n, channel in enumerate((own, public))
    ]
    messages, reminders, jobs = map(list, zip(*shown, strict=True))
    assert await feed(rig, me) == only(
        mentions=messages, needs_action=reminders, activity=messages, agent_activity=jobs
    )
    # Somebody else's mentions are not mine.
    assert await feed(rig, new_key()) == only(activity=[messages[1]], agent_activity=[jobs[1]])
    assert (await feed(rig, other))["mentions"] == []


async def test_what_was_deleted_or_has_expired_is_not_there(rig: Rig) -> None:
    me = new_key()
    channel = await rig.channel(me)
    mention = ["p", me.public_hex]
    for kind in (9, 40007, 43001):
        gone = await put(rig, me, channel, kind, tags=(mention,))
        await rig.con.execute("UPDATE events SET deleted_at = now() WHERE id = $1", bytes.fromhex(gone.id))
        await put(rig, me, channel, kind, tags=(mention, ["expiration", str(NOW - 1)]))
    kept = await put(rig, me, channel, 9, tags=(mention, ["expiration", str(NOW + 1000)]))
    assert await feed(rig, me) == only(mentions=[kept], activity=[kept])


async def test_a_token_sees_its_channels(rig: Rig) -> None:
    me = new_key()
    first, second = await rig.channel(me), await rig.channel(me, visibility="private")
    mention = (["p", me.public_hex],)
    events = [await put(rig, me, channel, tags=mention) for channel in (first, second)]

    async def seen(channel_ids: list[str] | None) -> set[str]:
        token = await rig.mint(me, ["messages:read"], channel_ids)
        found = (await rig.get("/api/feed", token=token)).json["feed"]
        assert {item["id"] for item in found["mentions"]} == {item["id"] for item in found["activity"]}
        return {item["id"] for item in found["activity"]}

    assert await seen(None) == {event.id for event in events}
    assert await seen([second]) == {events[1].id}
    assert await seen([]) == set()
    # A restriction adds nothing: a channel that the key itself may not read stays closed.
    foreign = await rig.channel(new_key(), visibility="private")
    await put(rig, me, foreign, tags=mention)
    assert await seen([foreign]) == set()


async def test_refusals(rig: Rig) -> None:
    prefix = "Failed to deserialize query string: "
    for query, text in (
        ("limit=x", "limit: invalid digit found in string"),
        ("limit=-1", "limit: invalid digit found in string"),
        ("since=1.5", "since: invalid digit found in string"),
        ("since=99999999999999999999", "since: number too large to fit in target type"),
        ("types=a&types=b", "duplicate field `types`"),
    ):
        found = await rig.get(f"/api/feed?{query}")
        assert (found.status, found.text) == (400, prefix + text)
    assert (await rig.get("/api/feed")).status == 401
    me = new_key()
    found = await rig.get("/api/feed", token=await rig.mint(me, ["channels:read"]))
    assert (found.status, found.json) == (
        403,
        {"error": "insufficient_scope", "message": "token missing required scope: messages:read"},
    )


async def test_a_channel_opened_after_an_earlier_feed_is_in_the_next(rig: Rig) -> None:
    me, other = new_key(), new_key()
    assert (await feed(rig, me))["activity"] == []
    channel = str(uuid.uuid4())
    assert (await rig.submit(other, 9007, [["h", channel], ["name", "new"], ["visibility", "open"]])).status == 200
    sent = await rig.submit(other, 9, [["h", channel]], "first")
    assert sent.status == 200
    assert (await feed(rig, me))["activity"] == [sent.json["event_id"]]


@pytest.mark.parametrize("number", [1, 20, 200])
async def test_the_statements_do_not_grow_with_the_rows(rig: Rig, number: int) -> None:
    me, author = new_key(), new_key()
    channels = [await rig.channel(me, f"c{each}") for each in range(number)]
    for kind in (9, 40007, 43001):
        for channel in channels:
            await put(rig, author, channel, kind, tags=(["p", me.public_hex],))
    token = await rig.mint(me, ["messages:read"])
    rig.statements.clear()
    found = await rig.get("/api/feed?limit=50", token=token)
    assert found.json["meta"]["total"] == 4 * min(number, 50)
    assert len(rig.statements) <= 2, rig.statements
