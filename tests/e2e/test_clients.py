"""What people do all day, each thing with the libraries that real clients are made with: nostr-tools and rust-nostr.

One relay for the module, other people and other channels in each test. Whether somebody does *not* receive something is
asked with a marker: an event that they do receive, sent afterwards.
"""

from __future__ import annotations

import itertools
import time
import uuid
from typing import Any

import pytest

from tests.e2e.programs import Program, sdk_client, tools_client
from tests.support.core import Person
from tests.support.launching import Launched

pytestmark = pytest.mark.slow
LIBRARIES = {"nostr-tools": tools_client, "rust-nostr": sdk_client}
NOT_MEMBER = "restricted: not a channel member"
REVOKED = "restricted: channel access revoked"
_numbers = itertools.count(1000)


def people(count: int) -> list[Person]:
    """Somebody whom no other test knows."""
    return [Person.number(next(_numbers)) for _ in range(count)]


async def new_channel(owner: Program, *members: Person, visibility: str = "open", name: str = "a room") -> str:
    channel = str(uuid.uuid4())
    await owner.publish(9007, "", ["h", channel], ["name", name], ["visibility", visibility])
    for member in members:
        await owner.publish(9000, "", ["h", channel], ["p", member.pubkey])
    return channel


@pytest.mark.parametrize("mode", [[], ["reactive"]])
async def test_nostr_tools_logs_in(relay: Launched, mode: list[str]):
    (alice,) = people(1)
    async with tools_client(relay.url, alice, *mode) as client:
        assert await client.fetch(kinds=[1], authors=[alice.pubkey]) == []
        note = await client.publish(1, "here I am")
        assert await client.fetch(kinds=[1], authors=[alice.pubkey]) == [note]
        if mode:  # or it can be: the library asks at once, and the challenge is on its way
            assert {"received": ["NOTICE", "auth-required: authenticate before subscribing"]} in client.heard


async def test_rust_nostr_logs_in(relay: Launched):
    (alice,) = people(1)
    async with sdk_client(relay.url, alice) as client:
        note = await client.publish(1, "here I am")
        assert await client.fetch(kinds=[1], authors=[alice.pubkey]) == [note]


def as_listed(people: list[dict[str, Any]]) -> list[str]:
    return [person["pubkey"] for person in people]


async def test_a_group_from_its_creation_to_its_end(relay: Launched):
    """NIP-29 through the library's own templates and parsers."""
    alice, bob, carol, dave = people(4)
    group = str(uuid.uuid4())
    async with (
        tools_client(relay.url, alice) as owner,
        tools_client(relay.url, bob, "reactive") as member,
        tools_client(relay.url, carol) as stranger,
    ):
        await owner.group("CreateGroup", group, tags=[["name", "plans"], ["private"]])
        loaded = await owner.load_group(group)
        assert loaded["metadata"]["name"] == "plans"
        assert (loaded["metadata"]["isPrivate"], loaded["metadata"]["isClosed"]) == (True, True)
        assert (as_listed(loaded["admins"]), as_listed(loaded["members"])) == ([alice.pubkey], [alice.pubkey])
        # Not without kinds: the library drops what has no `h` of its own, as the relay's account of the group has none.
        await owner.subscribe(**{"kinds": [9, 40099], "#h": [group]})

        await owner.group("PutUser", group, bob.pubkey)
        await owner.group("PutUser", group, dave.pubkey, ["admin"])
        loaded = await member.load_group(group)
        assert as_listed(loaded["admins"]) == [alice.pubkey, dave.pubkey]
        assert as_listed(loaded["members"]) == [alice.pubkey, bob.pubkey, dave.pubkey]

        name = await member.subscribe(**{"kinds": [9], "#h": [group]})
        said = await member.publish(9, "may I?", ["h", group])
        assert (await owner.wait_event(said))["content"] == "may I?"
        assert await stranger.refused("fetch", {"kinds": [9], "#h": [group]}) == NOT_MEMBER
        assert await stranger.group_refused("GroupJoinRequest", group) == "restricted: channel is private"

        edited = {"metadata": {"id": group, "name": "better plans", "about": "what we do next"}}
        await owner.group("EditGroupMetadata", edited, tags=[["visibility", "open"]])
        metadata = (await stranger.load_group(group))["metadata"]
        assert (metadata["name"], metadata["about"]) == ("better plans", "what we do next")
        assert "isPrivate" not in metadata
        await stranger.group("GroupJoinRequest", group)
        assert carol.pubkey in as_listed((await stranger.load_group(group))["members"])
        await stranger.group("GroupLeaveRequest", group)
        assert carol.pubkey not in as_listed((await stranger.load_group(group))["members"])

        await owner.group("DeleteEvent", group, said)
        assert await member.fetch(**{"kinds": [9], "#h": [group]}) == []
        await owner.group("EditGroupMetadata", edited, tags=[["visibility", "private"]])
        await owner.group("RemoveUser", group, bob.pubkey)
        assert await member.wait_closed(name) == REVOKED
        assert await member.refusal(9, "and now?", ["h", group]) == NOT_MEMBER

        assert await stranger.group_refused("DeleteGroup", group) == NOT_MEMBER
        await owner.group("DeleteGroup", group)
        assert await owner.refusal(9, "anybody?", ["h", group]) == NOT_MEMBER
        assert await owner.refused("fetch", {"#h": [group]}) == NOT_MEMBER


@pytest.mark.parametrize("sender", LIBRARIES)
@pytest.mark.parametrize("recipient", LIBRARIES)
async def test_private_messages_reach_whom_they_are_for(relay: Launched, sender: str, recipient: str):
    """NIP-17: sealed, wrapped, signed by a key that nobody has seen, and dated back by up to two days."""
    alice, bob, carol = people(3)
    async with (
        LIBRARIES[sender](relay.url, alice) as one,
        LIBRARIES[recipient](relay.url, bob) as other,
        tools_client(relay.url, carol) as stranger,
    ):
        await other.subscribe(**{"kinds": [1059], "#p": [bob.pubkey]})
        texts = [f"for you only, {number}" for number in range(4)]
        wraps = [await one.whisper(bob, text) for text in texts]
        for wrap in wraps:
            await other.wait_event(wrap)
        told = await other.whispers()
        assert sorted(rumor["content"] for rumor in told) == texts
        assert {rumor["pubkey"] for rumor in told} == {alice.pubkey}
        assert alice.pubkey not in {rumor["wrap"]["pubkey"] for rumor in told}
        # All four within the quarter of an hour that other kinds have: less than once in a billion runs.
        assert min(rumor["wrap"]["created_at"] for rumor in told) < time.time() - 900

        for filter_ in ({"kinds": [1059], "#p": [bob.pubkey]}, {"kinds": [1059]}, {"#p": [bob.pubkey]}):
            reason = await stranger.refused("fetch", filter_)
            assert reason == "restricted: p-gated events require #p matching your pubkey", filter_
        assert await stranger.whispers() == []


@pytest.mark.parametrize("library", LIBRARIES)
async def test_long_form(relay: Launched, library: str):
    """NIP-23: the newest version of an address stands, until its author deletes the address."""
    alice, bob = people(2)
    now = int(time.time())
    address = {"kinds": [30023], "authors": [alice.pubkey], "#d": ["essay"]}
    async with LIBRARIES[library](relay.url, alice) as author, tools_client(relay.url, bob) as reader:
        await reader.subscribe(kinds=[30023], authors=[alice.pubkey])
        first = await author.publish(30023, "a draft", ["d", "essay"], ["title", "Relays"], created_at=now - 20)
        assert (await reader.wait_event(first))["content"] == "a draft"
        second = await author.publish(30023, "the essay", ["d", "essay"], ["title", "Relays"], created_at=now - 10)
        other = await author.publish(30023, "another", ["d", "other"], created_at=now - 10)
        await author.publish(30023, "late", ["d", "essay"], created_at=now - 15)
        assert await reader.fetch(**address) == [second]
        assert await author.fetch(ids=[first]) == []

        coordinate = f"30023:{alice.pubkey}:essay"
        assert (await reader.refusal(5, "not mine", ["a", coordinate])).startswith("invalid: ")
        await author.publish(5, "", ["a", coordinate], created_at=now - 5)
        assert await reader.fetch(**address) == []
        assert await reader.fetch(kinds=[30023], authors=[alice.pubkey]) == [other]
        again = {"kind": 30023, "content": "the essay", "tags": [["d", "essay"]], "created_at": now - 8}
        assert await author.refused("publish", again) == "invalid: event was deleted by its author"
        third = await author.publish(30023, "written anew", ["d", "essay"], created_at=now)
        assert await reader.fetch(**address) == [third]


@pytest.mark.parametrize("library", LIBRARIES)
async def test_deletion(relay: Launched, library: str):
    """NIP-09 with `e`: only the author, and whoever follows is told."""
    alice, bob = people(2)
    async with LIBRARIES[library](relay.url, alice) as author, tools_client(relay.url, bob) as reader:
        channel = await new_channel(author, bob)
        await reader.subscribe(**{"kinds": [5, 9], "#h": [channel]})
        note = await author.publish(1, "regrettable")
        message = await author.publish(9, "also regrettable", ["h", channel])
        for target in (note, message):
            assert await reader.refusal(5, "", ["e", target]) == "invalid: must be event author"
        await author.publish(5, "", ["e", note])
        deletion = await author.publish(5, "", ["e", message], ["h", channel])
        await reader.wait_event(deletion)
        assert await reader.fetch(ids=[note, message]) == []
        assert await reader.fetch(**{"kinds": [9], "#h": [channel]}) == []


@pytest.mark.parametrize("library", LIBRARIES)
async def test_search(relay: Launched, library: str):
    """NIP-50: found as soon as it was accepted, best match first, and only where the searcher may look."""
    alice, bob = people(2)
    now = int(time.time())
    async with tools_client(relay.url, alice) as author, LIBRARIES[library](relay.url, bob) as searcher:
        word = f"searchtoken_{uuid.uuid4().hex}"
        channel = await new_channel(author)
        secret = await new_channel(author, visibility="private")
        best = await author.publish(9, f"{word} purple elephants", ["h", channel], created_at=now - 60)
        good = await author.publish(9, f"{word} purple giraffes", ["h", channel], created_at=now)
        note = await author.publish(1, f"elsewhere: {word}")
        await author.publish(9, f"{word} purple elephants in secret", ["h", secret])
        assert set(await searcher.fetch(search=word, kinds=[1, 9])) == {best, good, note}
        assert set(await searcher.fetch(search=word, **{"#h": [channel]})) == {best, good}
        assert await searcher.fetch(search=word, kinds=[1]) == [note]
        assert await searcher.fetch(search=word, kinds=[9], until=now - 30) == [best]
        found = await author.fetch(search=f"{word} purple elephants", **{"#h": [channel]})
        assert found[0] == best, found
        await author.publish(5, "", ["e", best])
        assert set(await searcher.fetch(search=word, kinds=[1, 9])) == {good, note}


@pytest.mark.parametrize("library", LIBRARIES)
async def test_count(relay: Launched, library: str):
    """NIP-45 says what a REQ would find, and refuses what a REQ would refuse."""
    alice, bob = people(2)
    async with tools_client(relay.url, alice) as author, LIBRARIES[library](relay.url, bob) as reader:
        channel = await new_channel(author)
        secret = await new_channel(author, visibility="private")
        for number in range(3):
            await author.publish(9, f"{number}", ["h", channel], ["t", "even" if number % 2 == 0 else "odd"])
            await author.publish(9, f"{number}", ["h", secret])
        assert await reader.count(**{"kinds": [9], "#h": [channel]}) == 3
        assert await reader.count(**{"kinds": [9], "#h": [channel], "#t": ["even"]}) == 2
        assert await reader.count(kinds=[9], authors=[alice.pubkey]) == 3
        assert await author.count(kinds=[9], authors=[alice.pubkey]) == 6
        assert await reader.count(kinds=[1], authors=[bob.pubkey]) == 0
        gated = {"kinds": [1059], "#p": [bob.pubkey]}
        assert await author.refused("count", gated) == "restricted: p-gated kinds require #p tag matching your pubkey"
        assert await reader.count(**{"#h": [secret]}) == 0


async def test_reactions(relay: Launched):
    """Reactions carry the channel's `h` here, since both libraries judge for themselves what matches `#h`."""
    alice, bob = people(2)
    async with sdk_client(relay.url, alice) as author, tools_client(relay.url, bob) as reader:
        channel = await new_channel(author)
        message = await author.publish(9, "lunch?", ["h", channel])
        (event,) = await reader.events(ids=[message])
        await author.subscribe(**{"kinds": [7], "#e": [message], "#h": [channel]})
        reaction = await reader.react(event, "🍜", ["h", channel])
        assert (await author.wait_event(reaction))["content"] == "🍜"
        assert await author.fetch(kinds=[7], **{"#e": [message], "#h": [channel]}) == [reaction]
        again = {"to": event, "content": "🍜", "tags": [["h", channel], ["again"]]}
        assert await reader.refused("react", again) == "duplicate: reaction already exists"
        await reader.publish(5, "", ["e", reaction])
        assert await author.fetch(kinds=[7], **{"#e": [message]}) == []
        bare = await reader.react(event, "🍜")  # as the library makes it, without `h`
        assert await author.fetch(kinds=[7], **{"#e": [message]}) == [bare]


@pytest.mark.parametrize("library", LIBRARIES)
async def test_presence_and_typing(relay: Launched, library: str):
    """Seen by whoever looks at the moment, and by nobody afterwards."""
    alice, bob = people(2)
    async with LIBRARIES[library](relay.url, alice) as busy, tools_client(relay.url, bob) as watcher:
        channel = await new_channel(busy, bob, visibility="private")
        await watcher.subscribe(kinds=[20001], authors=[alice.pubkey])
        await watcher.subscribe(**{"kinds": [20002], "#h": [channel], "limit": 10})
        for status in ("online", "away", '{"status":"offline"}'):
            told = await busy.publish(20001, status)
            assert (await watcher.wait_event(told))["content"] == status
        typing = await busy.publish(20002, "", ["h", channel])
        await watcher.wait_event(typing)
        assert await watcher.fetch(kinds=[20001]) == []
        assert await watcher.fetch(**{"kinds": [20002], "#h": [channel]}) == []


@pytest.mark.parametrize("library", LIBRARIES)
async def test_threads(relay: Launched, library: str):
    """NIP-10 replies, told apart from what belongs to another thread or to none."""
    alice, bob = people(2)
    async with LIBRARIES[library](relay.url, alice) as one, tools_client(relay.url, bob) as other:
        channel = await new_channel(one)
        elsewhere = await new_channel(one)
        await other.subscribe(**{"kinds": [9], "#h": [channel]})
        root = await one.publish(9, "a question", ["h", channel])
        reply = await other.publish(9, "an answer", ["h", channel], ["e", root, "", "reply"])
        deeper = await one.publish(
            9, "thanks", ["h", channel], ["e", root, "", "root"], ["e", reply, "", "reply"], ["p", bob.pubkey]
        )
        assert (await other.wait_event(deeper))["tags"][1:3] == [["e", root, "", "root"], ["e", reply, "", "reply"]]
        assert set(await other.fetch(**{"kinds": [9], "#h": [channel], "#e": [root]})) == {reply, deeper}
        assert await one.refusal(9, "?", ["h", elsewhere], ["e", root, "", "reply"]) == (
            "invalid: parent event belongs to a different channel"
        )
        assert await one.refusal(9, "?", ["h", channel], ["e", "ab" * 32, "", "reply"]) == (
            "invalid: reply parent not found"
        )
        assert await one.refusal(9, "?", ["h", channel], ["e", reply, "", "root"], ["e", deeper, "", "reply"]) == (
            "invalid: root tag does not match thread ancestry"
        )
