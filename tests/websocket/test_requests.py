"""REQ and CLOSE: who may subscribe to what, in which words it is refused, and what stays afterwards."""

from __future__ import annotations

import pytest
import trio

from relay.store.events import Row
from relay.websocket import requests
from tests.support.core import ALICE, BOB
from tests.support.relay import Client, RelayUnderTest, fields, message, serving
from tests.support.storing import insert_batch
from tests.websocket.rights import limit

NOWHERE = "00000009-0000-4000-8000-00000000abcd"
P_GATED = "restricted: p-gated events require #p matching your pubkey"


async def refused(client: Client, *filters: dict) -> str:
    await client.send("REQ", "r", *filters)
    return (await client.expect("CLOSED", "r"))[2]


async def test_refusals(relay: RelayUnderTest) -> None:
    private = await relay.channel(ALICE)
    client = await relay.connect(BOB)
    assert await refused(client, {"#h": [private]}) == "restricted: not a channel member"
    assert await refused(client, {"#h": [NOWHERE]}) == "restricted: not a channel member"
    assert await refused(client, {}) == P_GATED
    assert await refused(client, {"authors": [BOB.pubkey]}) == P_GATED
    assert await refused(client, {"kinds": [1]}, {"kinds": [1059], "#p": [ALICE.pubkey]}) == P_GATED
    assert await refused(client, {"kinds": [44100], "#p": [BOB.pubkey, ALICE.pubkey]}) == P_GATED
    assert relay.core.hub.subscription_count(next(iter(relay.endpoint._sessions))) == 0


async def test_what_passes_the_gate(relay: RelayUnderTest) -> None:
    client = await relay.connect(BOB)
    for wanted in (
        {"kinds": []},
        {"kinds": [1, 9]},
        {"kinds": [1059], "#p": [BOB.pubkey]},
        {"ids": ["ab" * 32]},
        {"kinds": [1], "limit": 0},
        {"kinds": [1], "since": 2**64 - 1},
        {"kinds": [1], "until": 2**64 - 1},
        {"kinds": [1], "#e": ["nul\0"]},
    ):
        assert await client.request("s", wanted) == []
    assert await client.request("none") == []


async def test_it_needs_the_right_to_read(relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty list of scopes is no scope. (Original: it may read, and write nothing.)"""
    client = await relay.connect(BOB)
    await client.request("s", {"kinds": [1]})
    for scopes in (frozenset({"messages:write"}), frozenset()):
        limit(relay, BOB, monkeypatch, scopes=scopes)
        await client.send("REQ", "s", {"kinds": [1]})
        assert await client.receive() == ["NOTICE", "restricted: insufficient scope"]
        assert await client.receive() == ["CLOSED", "s", "restricted: insufficient scope"]
    assert relay.core.hub.statistics().subscriptions == 0


async def test_however_many_channels_there_are(relay: RelayUnderTest) -> None:
    """Original: of more than a thousand, which ones could be read was chance."""
    rows = await relay.core.pool.fetch(
        "INSERT INTO channels (name, visibility, created_by) SELECT 'c', 'open', $1 FROM generate_series(1, 1500)"
        " RETURNING id::text",
        bytes.fromhex(ALICE.pubkey),
    )
    channels = [row[0] for row in rows]
    async with relay.core.pool.acquire() as con:
        await insert_batch(con, [Row(message(ALICE, channel, channel), channel, None) for channel in channels])
    client = await relay.connect(BOB)
    found = await client.request("s", {"kinds": [9], "limit": 5000})
    assert {each["content"] for each in found} == set(channels)


async def test_newest_first_of_equals_the_lowest_id(relay: RelayUnderTest) -> None:
    events = [ALICE.sign(1, f"{number}", at=1_700_000_000 + number // 3) for number in range(30)]
    async with relay.core.pool.acquire() as con:
        await insert_batch(con, [Row(event, None, None) for event in events])
    client = await relay.connect(BOB)
    ordered = [event.id for event in sorted(events, key=lambda event: (-event.created_at, event.id))]
    assert [each["id"] for each in await client.request("s", {"kinds": [1]})] == ordered
    assert [each["id"] for each in await client.request("s", {"kinds": [1], "limit": 7})] == ordered[:7]


async def test_a_channel_in_h_is_no_way_around_the_gate(relay: RelayUnderTest) -> None:
    """A global event may name a channel too; a filter about the channel must not find it, junk or not."""
    channel = await relay.channel(ALICE, BOB)
    told = ALICE.sign(44100, tags=[["h", channel], ["p", ALICE.pubkey]])
    async with relay.core.pool.acquire() as con:
        await insert_batch(con, [Row(told, None, None)])
    client, addressee = await relay.connect(BOB), await relay.connect(ALICE)
    for values in ([channel], [channel, "junk"]):
        assert await client.request("s", {"kinds": [44100], "#h": values}) == []
    assert len(await addressee.request("s", {"kinds": [44100], "#p": [ALICE.pubkey]})) == 1


async def test_an_open_channel_needs_no_membership(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE, visibility="open")
    alice, bob = await relay.connect(ALICE), await relay.connect(BOB)
    event = message(ALICE, channel, "x")
    await alice.publish(event)
    assert [each["id"] for each in await bob.request("s", {"#h": [channel]})] == [event.id]


async def test_a_refused_request_ends_the_older_one_of_its_name(relay: RelayUnderTest) -> None:
    channel, private = await relay.channel(BOB), await relay.channel(ALICE)
    client = await relay.connect(BOB)
    await client.request("s", {"#h": [channel]})
    await client.send("REQ", "s", {"#h": [private]})
    await client.expect("CLOSED", "s")
    event = message(BOB, channel, "unseen")
    assert await client.publish(event) == ["OK", event.id, True, ""]
    await client.send("CLOSE", "s")
    assert await client.receive() == ["CLOSED", "s", ""]


async def test_a_request_replaces_the_older_one_of_its_name(relay: RelayUnderTest) -> None:
    channel = await relay.channel(BOB)
    client = await relay.connect(BOB)
    await client.request("s", {"#h": [channel], "kinds": [9]})
    await client.request("s", {"kinds": [1]})
    event, wanted = message(BOB, channel, "unseen"), BOB.sign(1, "seen")
    await client.publish(event)
    await client.send("EVENT", fields(wanted))
    frames = [await client.receive(), await client.receive()]
    assert ["EVENT", "s"] in [frame[:2] for frame in frames]


@pytest.mark.parametrize("sub_id", ['quo"te', "back\\slash", "new\nline", "ünï", "x" * 256])
async def test_any_sub_id_comes_back_as_it_was(relay: RelayUnderTest, sub_id: str) -> None:
    channel = await relay.channel(ALICE)
    reader, writer = await relay.connect(ALICE), await relay.connect(ALICE)
    stored, live = message(ALICE, channel, "stored"), message(ALICE, channel, "live")
    await writer.publish(stored)
    assert [each["id"] for each in await reader.request(sub_id, {"#h": [channel]})] == [stored.id]
    await writer.publish(live)
    assert (await reader.expect("EVENT", sub_id))[2]["id"] == live.id
    await reader.send("CLOSE", sub_id)
    assert await reader.receive() == ["CLOSED", sub_id, ""]


async def test_the_number_of_subscriptions_is_bounded(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, max_subscriptions=3) as relay:
        client = await relay.connect(ALICE)
        for name in "abc":
            await client.request(name, {"kinds": [1]})
        await client.send("REQ", "d", {"kinds": [1]})
        assert await client.receive() == ["CLOSED", "d", "error: too many subscriptions"]
        assert await client.request("b", {"kinds": [9]}) == []
        await client.send("CLOSE", "a")
        await client.receive()
        assert await client.request("d", {"kinds": [1]}) == []


async def test_the_number_of_filters_is_a_setting(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, max_filters=12) as relay:
        client = await relay.connect(ALICE)
        assert await client.request("a", *[{"kinds": [1]}] * 12) == []
        await client.send("REQ", "a", *[{"kinds": [1]}] * 13)
        detail = "REQ contains 13 filters, maximum is 12"
        assert await client.receive() == ["NOTICE", f"invalid message: Invalid message format: {detail}"]


async def test_the_memory_of_subscriptions_is_bounded(relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await relay.connect(ALICE)
    few, many = {"kinds": [1], "#t": [str(number) for number in range(40)]}, [str(number) for number in range(100)]
    await client.request("a", few)
    session = next(iter(relay.endpoint._sessions))
    monkeypatch.setattr(requests, "COST_MAX", relay.core.hub.index.cost(session) * 9 // 4)
    await client.request("b", few)
    await client.send("REQ", "c", few)
    assert await client.receive() == ["CLOSED", "c", "error: too many subscriptions"]
    await client.request("a", few)  # what it replaces does not count
    await client.send("CLOSE", "a")
    await client.receive()
    await client.request("c", few)
    await client.send("REQ", "c", {"kinds": [1], "#t": many})
    assert await client.receive() == ["CLOSED", "c", "error: too many subscriptions"]
    await client.request("a", few)


async def test_a_subscription_about_several_channels_is_live_in_each(relay: RelayUnderTest) -> None:
    first, second, private = await relay.channel(BOB), await relay.channel(BOB), await relay.channel(ALICE)
    reader, writer, alice = await relay.connect(BOB), await relay.connect(BOB), await relay.connect(ALICE)
    secret = message(ALICE, private, "secret")
    await alice.publish(secret)
    assert await reader.request("s", {"#h": [first, private]}, {"#h": [second], "kinds": [9]}) == []
    for channel in (first, second):
        event = message(BOB, channel, "x")
        await writer.publish(event)
        assert (await reader.expect("EVENT", "s"))[2]["id"] == event.id
    await alice.publish(message(ALICE, private, "secret too"))
    await reader.send("CLOSE", "s")
    assert await reader.receive() == ["CLOSED", "s", ""]


async def test_global_and_channel_events_do_not_mix_live(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    reader, writer = await relay.connect(ALICE), await relay.connect(ALICE)
    await reader.request("global", {"kinds": [1, 9]})
    await reader.request("channel", {"#h": [channel]})
    await writer.publish(message(ALICE, channel, "x"))
    assert (await reader.receive())[1] == "channel"
    await writer.publish(ALICE.sign(1, "x"))
    assert (await reader.receive())[1] == "global"


async def test_each_stored_event_once_whatever_filters_find_it(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    events = [ALICE.sign(1, f"{number}") for number in range(5)]
    for event in events:
        await client.publish(event)
    found = await client.request("s", {"kinds": [1], "limit": 3}, {"kinds": [1]}, {"ids": [events[0].id]})
    assert sorted(each["id"] for each in found) == sorted(event.id for event in events)
    assert found[0].keys() == {"id", "pubkey", "created_at", "kind", "tags", "content", "sig"}


async def test_a_store_that_does_not_answer_is_told(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    await relay.core.pool.execute("ALTER TABLE events RENAME TO away")
    await client.send("REQ", "s", {"kinds": [1]})
    assert await client.receive() == ["CLOSED", "s", "error: database error"]
    await relay.core.pool.execute("ALTER TABLE away RENAME TO events")
    session = next(iter(relay.endpoint._sessions))
    assert relay.core.hub.subscription_count(session) == 0
    assert await client.request("s", {"kinds": [1]}) == []


async def test_a_busy_store_is_told(migrated_dsn: str) -> None:
    """No free connection is a reason to come again, not a fault of the database. What was registered is gone."""
    async with serving(migrated_dsn, pool_size_max=1, pool_size_min=1) as relay:
        client = await relay.connect(ALICE)
        assert await client.request("s", {"kinds": [1]}) == []
        relay.core.pool._acquire_seconds = 0.05
        async with relay.core.pool.acquire():
            await client.send("REQ", "s", {"kinds": [1]})
            assert await client.receive() == ["CLOSED", "s", "rate-limited: too many concurrent requests"]
        assert relay.core.hub.statistics().subscriptions == 0
        assert await client.request("s", {"kinds": [1]}) == []


async def test_a_busy_store_that_is_asked_for_members_is_told(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, pool_size_max=1, pool_size_min=1) as relay:
        channel = await relay.channel(ALICE)
        client = await relay.connect(ALICE)
        await relay.core.directory.accessible(ALICE.pubkey)  # known, so that the members are what is waited for
        relay.core.pool._acquire_seconds = 0.05
        async with relay.core.pool.acquire():
            await client.send("REQ", "s", {"#h": [channel]})
            assert await client.receive() == ["CLOSED", "s", "rate-limited: too many concurrent requests"]
        assert await client.request("s", {"#h": [channel]}) == []


async def test_a_statement_that_takes_too_long_is_told(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, statement_seconds=0.2) as relay:
        client = await relay.connect(ALICE)
        async with relay.core.pool.transaction() as con:
            await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            await client.send("REQ", "s", {"kinds": [1]})
            assert await client.receive() == ["CLOSED", "s", "error: database error"]
        with trio.fail_after(5):
            assert await client.request("s", {"kinds": [1]}) == []
