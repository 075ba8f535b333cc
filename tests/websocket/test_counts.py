"""COUNT: who may count what, in which words it is refused, and that nothing else changes by it."""

from __future__ import annotations

from typing import Any

import pytest

from relay.access.directory import Directory
from relay.asyncpg_trio.errors import PoolTimeout
from relay.errors import StoreBusy
from relay.nostr.kinds import GIFT_WRAP, MEMBER_ADDED_NOTIFICATION
from relay.query.count import count
from relay.store.events import Row
from relay.websocket import counts
from tests.support.core import ALICE, BOB
from tests.support.relay import Client, RelayUnderTest, fields, message, now, serving
from tests.support.storing import insert_batch
from tests.websocket.rights import limit, remove

P_GATED = "restricted: p-gated kinds require #p tag matching your pubkey"


async def counted(client: Client, *filters: dict[str, Any], sub_id: str = "c") -> int:
    await client.send("COUNT", sub_id, *filters)
    answer = await client.expect("COUNT", sub_id)
    assert list(answer[2]) == ["count"]
    assert len(answer) == 3
    number: int = answer[2]["count"]
    return number


async def refused(client: Client, *filters: dict[str, Any]) -> str:
    await client.send("COUNT", "c", *filters)
    text: str = (await client.expect("CLOSED", "c"))[2]
    return text


# -- may it ------------------------------------------------------------------------------------------------------------


async def test_before_the_login(relay: RelayUnderTest) -> None:
    """CLOSED and nothing else: a NOTICE would be one frame too many for who waits for one answer."""
    client = await relay.connect()
    for _ in range(2):
        await client.send("COUNT", "c", {"kinds": [1]})
        assert await client.receive() == ["CLOSED", "c", "auth-required: not authenticated"]
    await client.log_in(ALICE)
    assert await counted(client, {"kinds": [1]}) == 0


@pytest.mark.parametrize(
    ("elements", "detail"),
    [
        ([], "COUNT requires sub_id"),
        ([1], "COUNT sub_id must be a string"),
        ([""], "COUNT sub_id must not be empty"),
        (["x" * 257], "COUNT sub_id exceeds maximum length of 256 bytes"),
        (["c", *[{}] * 11], "COUNT contains 11 filters, maximum is 10"),
        (["c", {"kinds": "1"}], "invalid filter: kinds must be an array of integers"),
    ],
)
async def test_malformed(relay: RelayUnderTest, elements: list[Any], detail: str) -> None:
    client = await relay.connect()
    await client.send("COUNT", *elements)
    assert await client.receive() == ["NOTICE", f"invalid message: Invalid message format: {detail}"]


async def test_it_needs_the_right_to_read(relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await relay.connect(ALICE)
    for scopes in (frozenset({"messages:write"}), frozenset()):
        limit(relay, ALICE, monkeypatch, scopes=scopes)
        assert await refused(client, {"kinds": [1]}) == "restricted: insufficient scope"


async def test_what_is_for_one_reader_only(relay: RelayUnderTest) -> None:
    async with relay.core.pool.acquire() as con:
        wraps = [ALICE.sign(GIFT_WRAP, f"{n}", [["p", who.pubkey]]) for n, who in enumerate((ALICE, BOB, BOB))]
        await insert_batch(con, [Row(wrap, None, None) for wrap in wraps])
    client = await relay.connect(BOB)
    for filters in (
        [{}],
        [{"authors": [BOB.pubkey]}],
        [{"kinds": [1]}, {"kinds": [GIFT_WRAP], "#p": [ALICE.pubkey]}],
        [{"kinds": [MEMBER_ADDED_NOTIFICATION], "#p": [BOB.pubkey, ALICE.pubkey]}],
        [{"search": "x"}],
    ):
        assert await refused(client, *filters) == P_GATED
    assert await counted(client, {"kinds": [GIFT_WRAP], "#p": [BOB.pubkey]}) == 2
    assert await counted(client, {"ids": [wraps[0].id]}) == 1


# -- what is counted ---------------------------------------------------------------------------------------------------


async def test_channels_that_the_caller_may_not_read_count_nothing(relay: RelayUnderTest) -> None:
    mine, secret = await relay.channel(BOB), await relay.channel(ALICE)
    alice, bob = await relay.connect(ALICE), await relay.connect(BOB)
    await alice.publish(message(ALICE, secret, "x"))
    await bob.publish(message(BOB, mine, "x"))
    await bob.publish(BOB.sign(1, "x"))
    assert await counted(bob, {"#h": [secret]}) == 0
    assert await counted(bob, {"#h": [secret]}, {"#h": [mine]}) == 1
    assert await counted(bob, {"kinds": [9]}) == 1
    assert await counted(alice, {"#h": [secret]}) == 1
    assert await counted(bob, {"kinds": [1, 9]}) == 2
    assert await counted(bob) == 0


async def test_it_follows_what_happens(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE, BOB)
    alice, bob = await relay.connect(ALICE), await relay.connect(BOB)
    first = message(ALICE, channel, "first")
    for event in (first, message(ALICE, channel, "second")):
        await alice.publish(event)
    assert await counted(bob, {"#h": [channel], "kinds": [9], "limit": 1}) == 2
    assert (await alice.publish(ALICE.sign(5, tags=[["e", first.id]])))[2:] == [True, ""]
    assert await counted(bob, {"#h": [channel], "kinds": [9]}) == 1
    await remove(alice, ALICE, channel, BOB)
    assert await counted(bob, {"#h": [channel], "kinds": [9]}) == 0


async def test_what_has_expired_does_not_count(relay: RelayUnderTest) -> None:
    ends = [now() - 1, now() + 3600]
    async with relay.core.pool.acquire() as con:
        events = [ALICE.sign(1, f"{end}", [["expiration", str(end)]], now() - 60) for end in ends]
        await insert_batch(con, [Row(event, None, None) for event in events])
    client = await relay.connect(BOB)
    assert await counted(client, {"kinds": [1]}) == 1
    assert [each["id"] for each in await client.request("s", {"kinds": [1]})] == [events[1].id]


async def test_a_token_for_channels(relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts global events, as it reads them; only a search is for the channels alone."""
    first, second = await relay.channel(ALICE), await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    for event in (message(ALICE, first, "word"), message(ALICE, second, "word"), ALICE.sign(1, "word")):
        await client.publish(event)
    limit(relay, ALICE, monkeypatch, channel_ids=frozenset({first}))
    assert await counted(client, {"kinds": [1, 9]}) == 2
    assert await counted(client, {"kinds": [1, 9], "search": "word"}) == 1
    assert await counted(client, {"#h": [second]}) == 0


# -- and nothing else --------------------------------------------------------------------------------------------------


async def test_a_live_subscription_of_the_same_id_goes_on(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    reader, writer = await relay.connect(ALICE), await relay.connect(ALICE)
    await reader.request("same", {"#h": [channel]})
    assert await counted(reader, {"kinds": [9]}, sub_id="same") == 0
    await reader.send("COUNT", "same", {})
    assert await reader.receive() == ["CLOSED", "same", P_GATED]
    event = message(ALICE, channel, "x")
    await writer.publish(event)
    assert (await reader.expect("EVENT", "same"))[2]["id"] == event.id
    assert relay.core.hub.statistics().subscriptions == 1


async def test_the_number_of_subscriptions_does_not_matter(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, max_subscriptions=1) as relay:
        client = await relay.connect(ALICE)
        await client.request("s", {"kinds": [1]})
        for _ in range(3):
            assert await counted(client, {"kinds": [1]}) == 0


async def test_it_waits_for_the_events_before_it(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    for number in range(5):
        await client.send("EVENT", fields(message(ALICE, channel, f"{number}")))
    await client.send("COUNT", "c", {"#h": [channel]})
    assert (await client.until("COUNT", "c", {"count": 5}))[-1][0] == "OK"


async def test_a_relay_that_stops_counts_no_more(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    relay.endpoint.drain()
    assert await refused(client, {"kinds": [1]}) == "error: shutting down"


# -- when the store does not answer ------------------------------------------------------------------------------------


async def test_a_store_that_does_not_answer_is_told(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    await relay.core.pool.execute("ALTER TABLE events RENAME TO away")
    assert await refused(client, {"kinds": [1]}) == "error: database error"
    await relay.core.pool.execute("ALTER TABLE away RENAME TO events")
    assert await counted(client, {"kinds": [1]}) == 0


@pytest.mark.parametrize("error", [StoreBusy("full"), PoolTimeout("full")])
async def test_a_busy_store_is_told(relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    client = await relay.connect(ALICE)

    async def accessible(self: Directory, pubkey: str) -> frozenset[str]:
        raise error

    monkeypatch.setattr(Directory, "accessible", accessible)
    assert await refused(client, {"kinds": [1]}) == "rate-limited: too many concurrent requests"


async def test_a_pool_without_a_free_connection_is_told(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, pool_size_max=1, pool_size_min=1) as relay:
        client = await relay.connect(ALICE)
        relay.core.pool._acquire_seconds = 0.05
        async with relay.core.pool.acquire():
            assert await refused(client, {"kinds": [1]}) == "rate-limited: too many concurrent requests"
        assert await counted(client, {"kinds": [1]}) == 0


async def test_access_lost_while_the_store_counts_is_in_the_answer(
    relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count may have waited long for a free connection."""
    channel = await relay.channel(ALICE, BOB)
    reader, owner = await relay.connect(BOB), await relay.connect(ALICE)
    await owner.publish(message(ALICE, channel, "secret"))
    assert await counted(reader, {"kinds": [9]}) == 1
    removed = False

    async def removal_then_count(*arguments: Any, **options: Any) -> int:
        nonlocal removed
        if not removed:
            removed = True
            await remove(owner, ALICE, channel, BOB)
        return await count(*arguments, **options)

    monkeypatch.setattr(counts, "count", removal_then_count)
    assert await counted(reader, {"kinds": [9]}) == 0
