"""Stored events, EOSE, live events: each once, in whatever way they overlap; and who loses access meanwhile."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import trio

from relay.fanout.items import Batch, Left, SubscriptionState
from relay.store.events import Row
from tests.support.core import ALICE, BOB, CAROL
from tests.support.relay import Client, RelayUnderTest, fields, message, now, serving
from tests.support.storing import insert_batch
from tests.websocket.rights import remove


async def stock(relay: RelayUnderTest, channel: str | None, count: int, content: str = "stored") -> set[str]:
    """Events straight into the table, a minute old."""
    events = [
        ALICE.sign(9 if channel else 1, f"{content} {number}", [["h", channel]] if channel else [], now() - 60)
        for number in range(count)
    ]
    async with relay.core.pool.acquire() as con:
        for start in range(0, count, 500):
            await insert_batch(con, [Row(event, channel, None) for event in events[start : start + 500]])
    return {event.id for event in events}


@pytest.mark.parametrize("seed", range(6))
async def test_each_event_once_while_others_write(migrated_dsn: str, seed: int) -> None:
    """Writers go on from before the REQ until after its EOSE, in small pages, with pauses where races live."""
    rng = random.Random(seed)
    async with serving(migrated_dsn) as relay:
        channel = await relay.channel(ALICE, BOB)
        expected = await stock(relay, channel, rng.choice([0, 30, 700, 1600]))
        reader = await relay.connect(BOB)
        writers = [await relay.connect(ALICE) for _ in range(2)]
        events = [[message(ALICE, channel, f"{seed} {w} {number}") for number in range(60)] for w in range(2)]

        async def write(client: Client, mine: list[Any]) -> None:
            for event in mine:
                await client.send("EVENT", fields(event))
                if rng.random() < 0.3:
                    await trio.sleep(rng.random() * 0.004)
            for event in mine:
                await client.expect("OK", event.id, True)

        got: list[str] = []
        async with trio.open_nursery() as nursery:
            for client, mine in zip(writers, events, strict=True):
                nursery.start_soon(write, client, mine)
            await trio.sleep(rng.random() * 0.05)
            wanted = rng.choice(
                [
                    [{"#h": [channel], "limit": 5000}],
                    [{"#h": [channel], "limit": 5000}, {"#h": [channel], "kinds": [9]}],
                ]
            )
            await reader.send("REQ", "s", *wanted)
            got += [frame[2]["id"] for frame in await reader.until("EOSE", "s")]
        expected |= {event.id for mine in events for event in mine}
        last = message(ALICE, channel, "last")
        await writers[0].publish(last)
        while (frame := await reader.expect("EVENT", "s"))[2]["id"] != last.id:
            got.append(frame[2]["id"])
        assert len(got) == len(set(got)), "an event came twice"
        assert set(got) == expected


async def test_ten_thousand_rows_for_a_slow_reader_end_with_eose(migrated_dsn: str) -> None:
    async with serving(migrated_dsn) as relay:
        expected = await stock(relay, None, 10_000)
        reader, other = await relay.connect(ALICE, receive_buffer=16 << 10), await relay.connect(BOB)
        await reader.send("REQ", "s", {"kinds": [1], "limit": 10_000})
        session = next(iter(relay.endpoint._sessions))
        with trio.fail_after(10):  # nothing is read: the relay fills what it may and then waits
            while not session.outbound.statistics().waiting_puts:
                await trio.sleep(0.01)
        assert session.outbound.statistics().queued_bytes < (1 << 20) + (64 << 10)
        assert relay.core.pool.statistics().in_use == 0
        assert len(await other.request("one", {"kinds": [1], "limit": 1})) == 1
        await other.send("CLOSE", "one")
        assert await other.receive() == ["CLOSED", "one", ""]
        stored = await reader.until("EOSE", "s")
        assert {frame[2]["id"] for frame in stored} == expected
        live = BOB.sign(1, "live")
        await other.publish(live)
        assert (await reader.expect("EVENT", "s"))[2]["id"] == live.id


@pytest.fixture
async def slow(migrated_dsn: str) -> AsyncIterator[RelayUnderTest]:
    """A relay that can write hardly anything to a client that does not read."""
    async with serving(
        migrated_dsn,
        prepare=lambda stream: stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 10),
        send_buffer_bytes=65536,
        send_stall_seconds=60,
    ) as running:
        yield running


async def until_replay_waits(relay: RelayUnderTest) -> Any:
    while True:
        for session in relay.endpoint._sessions:
            if session.outbound.statistics().waiting_puts:
                return session
        await trio.sleep(0.005)


async def evict(relay: RelayUnderTest, channel: str, pubkey: str) -> None:
    """What a removal does to the fan-out, and its end."""
    passed = trio.Event()
    async with relay.core.hub.dispatcher() as dispatcher:
        await dispatcher.send(Batch([Left(channel, pubkey)], passed))
        await passed.wait()


async def test_eviction_ends_a_replay_of_the_channel(slow: RelayUnderTest) -> None:
    channel = await slow.channel(ALICE, BOB)
    await stock(slow, channel, 3000, "x" * 300)
    reader = await slow.connect(BOB, receive_buffer=4096)
    await reader.send("REQ", "s", {"#h": [channel], "limit": 3000})
    await until_replay_waits(slow)
    await evict(slow, channel, BOB.pubkey)
    await reader.send("CLOSE", "end")
    frames = await reader.until("CLOSED", "end", "")
    assert frames[-1] == ["CLOSED", "s", "restricted: channel access revoked"]
    assert all(frame[0] == "EVENT" for frame in frames[:-1])
    # What the kernels already had, and nothing of what waited.
    assert len(frames) < 1500


async def test_eviction_leaves_the_channel_out_of_a_global_replay(slow: RelayUnderTest) -> None:
    lost, kept = await slow.channel(ALICE, BOB), await slow.channel(ALICE, BOB)
    gone = await stock(slow, lost, 2000, "x" * 300)
    stays = await stock(slow, kept, 2000, "y" * 300)
    reader = await slow.connect(BOB, receive_buffer=4096)
    await reader.send("REQ", "s", {"kinds": [9], "limit": 5000})
    await until_replay_waits(slow)
    await evict(slow, lost, BOB.pubkey)
    found = {frame[2]["id"] for frame in await reader.until("EOSE", "s")}
    assert stays <= found
    assert len(found & gone) < 1000


async def test_an_eviction_before_the_replay_counts(relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of readable channels was fetched, then the caller lost one: nothing told the replay but the list."""
    channel = await relay.channel(ALICE, BOB)
    await stock(relay, channel, 3)
    reader, owner = await relay.connect(BOB), await relay.connect(ALICE)
    original = relay.core.directory.accessible
    calls = 0

    async def accessible(pubkey: str) -> frozenset[str]:
        nonlocal calls
        found = await original(pubkey)
        calls += 1
        if calls == 1:
            await remove(owner, ALICE, channel, BOB)
        return found

    monkeypatch.setattr(relay.core.directory, "accessible", accessible)
    assert await reader.request("s", {"kinds": [9]}) == []
    assert calls == 2


async def test_a_removed_member_gets_nothing_more(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE, BOB)
    reader, owner = await relay.connect(BOB), await relay.connect(ALICE)
    await reader.request("s", {"#h": [channel]})
    await remove(owner, ALICE, channel, BOB)
    await owner.publish(message(ALICE, channel, "secret"))
    await reader.send("CLOSE", "end")
    frames = await reader.until("CLOSED", "end", "")
    assert ["CLOSED", "s", "restricted: channel access revoked"] in frames
    assert "secret" not in orjson.dumps(frames).decode()
    await reader.send("REQ", "s", {"#h": [channel]})
    assert await reader.receive() == ["CLOSED", "s", "restricted: not a channel member"]


async def test_live_events_that_overtake_the_stored_ones_end_the_connection(slow: RelayUnderTest) -> None:
    """A thousand live events held back: the replay will never catch up, and leaving some out would go unseen."""
    channel = await slow.channel(ALICE, BOB)
    await stock(slow, channel, 1000, "x" * 300)
    reader, writer, other = (
        await slow.connect(BOB, receive_buffer=4096),
        await slow.connect(ALICE),
        await slow.connect(CAROL),
    )
    await reader.send("REQ", "s", {"#h": [channel], "limit": 1000})
    session = await until_replay_waits(slow)
    events = [message(ALICE, channel, f"{number}") for number in range(1001)]
    for event in events:
        await writer.send("EVENT", fields(event))
    for event in events:
        await writer.expect("OK", event.id, True)
    code, reason = await reader.closed()
    assert (code, reason) == (1013, "live events overtook the stored ones")
    with trio.fail_after(5):
        while session in slow.endpoint._sessions:
            await trio.sleep(0.005)
    assert await other.request("s", {"kinds": [1]}) == []


async def test_closed_subscriptions_hold_nothing(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    await client.request("s", {"kinds": [1]})
    session = next(iter(relay.endpoint._sessions))
    subscription = relay.core.hub.index.get(session, "s")
    assert subscription.state is SubscriptionState.LIVE
    await client.websocket.aclose()
    with trio.fail_after(5):
        while relay.endpoint.connections:
            await trio.sleep(0.005)
    assert subscription.state is SubscriptionState.CLOSED
    assert relay.core.hub.statistics().subscriptions == 0
