"""The original's desktop application on the relay: the filters it sends, what it waits for, and in what order.

It loads a history page by page with `until`, follows a channel live from the EOSE on, shows who is typing or present,
and after a lost connection asks again from five seconds before the last event that it saw.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from typing import Any

import pytest
import trio

from tests.e2e.people import Desk, desk
from tests.support.core import Person
from tests.support.launching import Launched

pytestmark = pytest.mark.slow
LOGIN_SECONDS = ANSWER_SECONDS = 8
CHANNEL_KINDS = [5, 7, 9, 40001, 40003, 40008, 40099]
MENTION_KINDS = [9, 40002, 45001, 45003]
HUDDLE_KINDS = [48100, 48101, 48102, 48103]
PAGE = 50
_numbers = itertools.count(2000)


def people(count: int) -> list[Person]:
    return [Person.number(next(_numbers)) for _ in range(count)]


class Desktop:
    """One window: a connection, the channel it shows, and the events of its timeline by id."""

    def __init__(self, at: Desk, channel: str) -> None:
        self.at = at
        self.channel = channel
        self.timeline: dict[str, dict[str, Any]] = {}
        self._requests = itertools.count()

    async def history(self, **filter_: Any) -> list[dict[str, Any]]:
        """A request that is closed when it has been answered; the CLOSED to that is not waited for."""
        name = f"hist-{next(self._requests)}"
        with trio.fail_after(ANSWER_SECONDS):
            await self.at.subscribe(name, **filter_)
        await self.at.send("CLOSE", name)
        return [frame[2] for frame in self.at.seen if frame[:2] == ["EVENT", name]]

    async def page(self, before: int | None = None) -> int:
        """How many events of the next older page were new."""
        until = {} if before is None else {"until": before}
        found = await self.history(**{"kinds": CHANNEL_KINDS, "#h": [self.channel], "limit": PAGE}, **until)
        assert len(found) <= PAGE
        fresh = {event["id"]: event for event in found if event["id"] not in self.timeline}
        self.timeline |= fresh
        return len(fresh)

    def oldest(self) -> int:
        return min(event["created_at"] for event in self.timeline.values())

    def texts(self) -> list[str]:
        messages = [event for event in self.timeline.values() if event["kind"] == 9]
        return [event["content"] for event in sorted(messages, key=lambda event: event["created_at"])]

    async def follow(self, name: str, **filter_: Any) -> None:
        """Live when EOSE has come."""
        with trio.fail_after(ANSWER_SECONDS):
            await self.at.subscribe(name, **filter_)

    async def follow_channel(self, **since: int) -> None:
        await self.follow("live", **{"kinds": CHANNEL_KINDS, "#h": [self.channel], "limit": PAGE}, **since)


async def new_channel(owner: Desk, *members: Person) -> str:
    channel = str(uuid.uuid4())
    await owner.publish(9007, "", ["h", channel], ["name", "desk"], ["visibility", "private"])
    for member in members:
        await owner.publish(9000, "", ["h", channel], ["p", member.pubkey])
    return channel


async def test_it_scrolls_back_to_the_first_message(relay: Launched):
    alice, bob = people(2)
    began = int(time.time()) - 300
    async with desk(relay.url, alice) as writer:
        channel = await new_channel(writer, bob)
        texts = [f"message {number}" for number in range(120)]
        for number, text in enumerate(texts):
            await writer.publish(9, text, ["h", channel], at=began + 2 * number)
        with trio.fail_after(LOGIN_SECONDS):
            async with desk(relay.url, bob) as reader:
                window = Desktop(reader, channel)
                await window.page()
                assert window.texts() == texts[-len(window.texts()) :], "the newest come first"
                while await window.page(window.oldest()):
                    pass
                assert window.texts() == texts
                kinds = {
                    json.loads(event["content"])["type"] for event in window.timeline.values() if event["kind"] == 40099
                }
                assert kinds == {"channel_created", "member_joined"}


async def test_what_happens_in_a_channel_shows_at_once(relay: Launched):
    """Every kind of the timeline, live, in the order of its OKs, to both windows and to no third one."""
    alice, bob, carol = people(3)
    async with (
        desk(relay.url, alice) as writer,
        desk(relay.url, bob) as reader,
        desk(relay.url, carol) as stranger,
    ):
        channel = await new_channel(writer, bob)
        await stranger.subscribe("everywhere", kinds=CHANNEL_KINDS, limit=PAGE)
        windows = [Desktop(at, channel) for at in (writer, reader)]
        for window in windows:
            await window.follow_channel()
        h = ["h", channel]
        said = await writer.publish(9, "first draft", h)
        edited = await writer.publish(40003, "final", h, ["e", said])
        changed = await reader.publish(
            40008, "@@ -1 +1 @@", h, ["repo", "https://example.org/r"], ["commit", "abcdef1"]
        )
        liked = await reader.publish(7, "+", ["e", said])
        topic = await writer.publish(9002, "", h, ["topic", "what to do"])
        gone = await writer.publish(5, "", ["e", said])
        for window in windows:
            for id_ in (said, edited, changed, liked, gone):
                await window.at.wait_event("live", id_)
            live = [frame[2] for frame in window.at.seen if frame[:2] == ["EVENT", "live"]]
            shown = [event["id"] for event in live if event["id"] in (said, edited, changed, liked, gone)]
            assert shown == [said, edited, changed, liked, gone]
            assert topic not in {event["id"] for event in live}, "9002 itself is no row of the timeline"
            rows = [json.loads(event["content"]) for event in live if event["kind"] == 40099]
            assert {"type": "topic_changed", "actor": alice.pubkey, "topic": "what to do"} in rows
        marker = await stranger.publish(1, "marker")
        assert marker in await stranger.stored(ids=[marker])
        assert not stranger.events() & {said, edited, changed, liked, gone}


async def test_presence_typing_mentions_and_huddles(relay: Launched):
    alice, bob = people(2)
    async with desk(relay.url, alice) as writer, desk(relay.url, bob) as reader:
        channel = await new_channel(writer, bob)
        window, now = Desktop(reader, channel), int(time.time())
        scope = {"#h": [channel]}
        await window.follow("typing", kinds=[20002], limit=10, **scope)
        await window.follow("presence", kinds=[20001])
        await window.follow("mentions", **{"kinds": MENTION_KINDS, "#p": [bob.pubkey], "since": now - 5}, **scope)
        await window.follow("huddle", kinds=HUDDLE_KINDS, limit=100, **scope)
        await window.follow("speech", kinds=[9], limit=1000, since=now - 5, **scope)

        for status in ("online", "away", "offline"):  # each waits for its OK, as the application does
            id_ = await writer.publish(20001, status)
            assert (await reader.wait_event("presence", id_))["content"] == status
        typing = await writer.publish(20002, "", ["h", channel])
        await reader.wait_event("typing", typing)
        unrelated = await writer.publish(9, "nothing for you", ["h", channel])
        mention = await writer.publish(45001, "for you", ["h", channel], ["p", bob.pubkey])
        await reader.wait_event("mentions", mention)
        await reader.wait_event("speech", unrelated)
        started = json.dumps({"ephemeral_channel_id": str(uuid.uuid4()), "livekit_room": "room"})
        huddle = await writer.publish(48100, started, ["h", channel])
        await reader.wait_event("huddle", huddle)
        mentions = [frame[2]["id"] for frame in reader.seen if frame[:2] == ["EVENT", "mentions"]]
        assert mentions == [mention]


async def test_it_comes_back_where_it_left_off(relay: Launched):
    """What was said while it was away comes with the next subscription, and then the live events."""
    alice, bob = people(2)
    async with desk(relay.url, alice) as writer:
        channel = await new_channel(writer, bob)
        async with desk(relay.url, bob) as reader:
            window = Desktop(reader, channel)
            await window.follow_channel()
            said = [await writer.publish(9, "while it was there", ["h", channel])]
            last_seen = (await reader.wait_event("live", said[0]))["created_at"]
        said += [await writer.publish(9, f"{number} while it was away", ["h", channel]) for number in range(10)]
        async with desk(relay.url, bob) as reader:
            window = Desktop(reader, channel)
            await window.follow_channel(since=last_seen - 5)
            missed = {frame[2]["id"] for frame in reader.seen if frame[:2] == ["EVENT", "live"]}
            assert set(said) <= missed
            again = await writer.publish(9, "welcome back", ["h", channel])
            await reader.wait_event("live", again)
