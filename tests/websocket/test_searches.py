"""REQ with `search`: what it finds over the wire, what it is refused for, and that it leaves no subscription."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from relay.asyncpg_trio.errors import PoolTimeout
from relay.query import search
from relay.store import members
from relay.websocket import searches
from tests.support.core import ALICE, BOB
from tests.support.relay import Client, RelayUnderTest, message, now, serving
from tests.websocket.rights import limit, remove

MIXED = "error: mixed search and non-search filters not supported"
P_GATED = "restricted: p-gated events require #p matching your pubkey"


async def found(client: Client, *filters: dict[str, Any]) -> list[str]:
    """Contents, in the order in which they come."""
    return [each["content"] for each in await client.request("s", *filters)]


async def test_exact_matches_rank_above_newer_partial_ones(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    one, two, three = (secrets.token_hex(4) for _ in range(3))
    exact = message(ALICE, channel, f"{one} {two} {three}", at=now() - 600)
    partial = message(ALICE, channel, f"{one} {two} something else", at=now())
    await client.publish(exact)
    await client.publish(partial)
    wanted = {"kinds": [9], "search": f"{one} {two} {three}"}
    assert await found(client, wanted) == [exact.content, partial.content]
    assert await found(client, wanted | {"#h": [channel]}) == [exact.content, partial.content]
    assert await found(client, wanted | {"limit": 1}) == [exact.content]


async def test_visible_with_the_ok_and_gone_with_the_deletion(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    token = f"searchtoken_{secrets.token_hex(16)}"
    wanted = {"#h": [channel], "search": token}
    assert await found(client, wanted) == []
    event = message(ALICE, channel, f"see {token}.")
    assert (await client.publish(event))[2:] == [True, ""]
    assert await found(client, wanted) == [event.content]
    assert (await client.publish(ALICE.sign(5, tags=[["e", event.id]])))[2:] == [True, ""]
    assert await found(client, wanted) == []


async def test_what_was_replaced_is_not_found(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    for at, name in enumerate(("oldname", "newname")):
        profile = ALICE.sign(0, f'{{"name":"{name} both"}}', at=now() - 10 + at)
        assert (await client.publish(profile))[2:] == [True, ""]
    assert await found(client, {"kinds": [0], "search": "oldname"}) == []
    assert await found(client, {"kinds": [0], "search": "both"}) == ['{"name":"newname both"}']


async def test_nothing_stays_and_an_older_subscription_of_the_name_ends(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    reader, writer = await relay.connect(ALICE), await relay.connect(ALICE)
    await reader.request("s", {"#h": [channel]})
    assert relay.core.hub.statistics().subscriptions == 1
    assert await found(reader, {"#h": [channel], "search": "word"}) == []
    assert relay.core.hub.statistics().subscriptions == 0
    await writer.publish(message(ALICE, channel, "word"))
    await reader.send("CLOSE", "s")
    assert await reader.receive() == ["CLOSED", "s", ""]


async def test_refusals(relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await relay.connect(BOB)

    async def refused(*filters: dict[str, Any]) -> list[Any]:
        await client.send("REQ", "s", *filters)
        return await client.expect("CLOSED", "s")

    assert (await refused({"kinds": [1], "search": "x"}, {"kinds": [1]}))[2] == MIXED
    assert (await refused({"kinds": [1]}, {"kinds": [9], "search": "x"}))[2] == MIXED
    # The gate stands before the search.
    assert (await refused({"search": "x"}))[2] == P_GATED
    assert (await refused({"search": "x", "kinds": [1059]}))[2] == P_GATED
    assert (await refused({"search": "x"}, {"kinds": [1]}))[2] == P_GATED
    limit(relay, BOB, monkeypatch, scopes=frozenset({"messages:write"}))
    await client.send("REQ", "s", {"kinds": [1], "search": "x"})
    assert await client.receive() == ["NOTICE", "restricted: insufficient scope"]
    assert await client.receive() == ["CLOSED", "s", "restricted: insufficient scope"]


async def test_a_refused_search_ends_the_older_subscription_of_its_name(relay: RelayUnderTest) -> None:
    client = await relay.connect(BOB)
    await client.request("s", {"kinds": [1]})
    await client.send("REQ", "s", {"kinds": [1], "search": "x"}, {"kinds": [1]})
    await client.expect("CLOSED", "s", MIXED)
    assert relay.core.hub.statistics().subscriptions == 0


async def test_filters_that_find_nothing_are_skipped(relay: RelayUnderTest) -> None:
    secret = await relay.channel(ALICE)
    alice, bob = await relay.connect(ALICE), await relay.connect(BOB)
    await alice.publish(message(ALICE, secret, "word in secret"))
    await bob.publish(BOB.sign(1, "word in public"))
    public = {"kinds": [1], "search": "word"}
    for nothing in (
        {"kinds": [1], "search": ""},
        {"kinds": [1], "search": " \t "},
        {"kinds": [1], "search": "!?"},
        {"kinds": [1], "search": "language:en"},
        {"kinds": [1], "search": "word", "limit": 0},
        {"kinds": [], "search": "word"},
        {"kinds": [9], "search": "word", "#h": [secret]},
        {"kinds": [1, 9], "search": "word", "#h": ["junk"]},
    ):
        assert await found(bob, nothing) == []
        assert await found(bob, nothing, public) == ["word in public"]


async def test_each_event_once_whatever_filters_find_it(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    for text in ("alpha", "beta", "alpha beta"):
        await client.publish(ALICE.sign(1, text))
    both = await found(client, {"kinds": [1], "search": "alpha"}, {"kinds": [1], "search": "beta"})
    assert sorted(both) == ["alpha", "alpha beta", "beta"]


async def test_a_token_for_channels_finds_no_global_events(
    relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await relay.channel(ALICE), await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    for event in (message(ALICE, first, "word one"), message(ALICE, second, "word two"), ALICE.sign(1, "word three")):
        await client.publish(event)
    wanted = {"kinds": [1, 9], "search": "word"}
    assert len(await found(client, wanted)) == 3
    limit(relay, ALICE, monkeypatch, channel_ids=frozenset({first}))
    assert await found(client, wanted) == ["word one"]
    limit(relay, ALICE, monkeypatch, channel_ids=frozenset())
    assert await found(client, wanted) == []


async def secret_and_public(relay: RelayUnderTest) -> tuple[str, Client, Client]:
    """A channel of two, Bob who reads and Alice who owns; a word that stands in the channel and outside of it."""
    channel = await relay.channel(ALICE, BOB)
    reader, owner = await relay.connect(BOB), await relay.connect(ALICE)
    await owner.publish(message(ALICE, channel, "word secret"))
    await owner.publish(ALICE.sign(1, "word public"))
    return channel, reader, owner


async def test_access_lost_while_the_store_is_searching_counts(
    relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, reader, owner = await secret_and_public(relay)

    async def hits_then_removal(*arguments: Any, **options: Any) -> Any:
        rows = await search.hits(*arguments, **options)
        await remove(owner, ALICE, channel, BOB)
        return rows

    assert len(await found(reader, {"kinds": [1, 9], "search": "word"})) == 2
    monkeypatch.setattr(searches, "hits", hits_then_removal)
    assert await found(reader, {"kinds": [1, 9], "search": "word"}) == ["word public"]


async def test_access_lost_while_the_store_is_asked_who_may_read_counts(
    relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was right when it was given; when it arrives, the removal has its OK."""
    channel, reader, owner = await secret_and_public(relay)
    ask, armed = members.accessible_channel_ids, False

    async def answer_then_removal(db: Any, pubkey: str) -> Any:
        nonlocal armed
        answer = await ask(db, pubkey)
        if armed:
            armed = False
            await remove(owner, ALICE, channel, BOB)
        return answer

    async def hits_then_forgotten(*arguments: Any, **options: Any) -> Any:
        nonlocal armed
        rows = await search.hits(*arguments, **options)
        relay.core.directory.invalidate_accessible_all()  # an open channel came somewhere
        armed = True
        return rows

    monkeypatch.setattr(members, "accessible_channel_ids", answer_then_removal)
    monkeypatch.setattr(searches, "hits", hits_then_forgotten)
    assert await found(reader, {"kinds": [1, 9], "search": "word"}) == ["word public"]


async def test_hundreds_of_hits_for_a_slow_reader_end_with_eose(migrated_dsn: str) -> None:
    async with serving(migrated_dsn) as relay:
        channel = await relay.channel(ALICE)
        await relay.core.pool.execute(
            "INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json) "
            "SELECT sha256(n::text::bytea), sha256(''), n, 9, '[]', 'word', decode(repeat('00', 64), 'hex'), $1::uuid, "
            "convert_to('{\"content\":\"' || repeat('x', 5000) || '\"}', 'UTF8') FROM generate_series(1, 600) AS n",
            channel,
        )
        client = await relay.connect(ALICE, receive_buffer=16 << 10)
        assert len(await found(client, {"#h": [channel], "search": "word", "limit": 10_000})) == 500


async def test_a_store_that_does_not_answer_is_told(relay: RelayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await relay.connect(ALICE)
    await relay.core.pool.execute("ALTER TABLE events RENAME TO away")
    await client.send("REQ", "s", {"kinds": [1], "search": "x"})
    assert await client.receive() == ["CLOSED", "s", "error: database error"]
    await relay.core.pool.execute("ALTER TABLE away RENAME TO events")

    async def hits(*arguments: Any, **options: Any) -> Any:
        raise PoolTimeout("full")

    monkeypatch.setattr(searches, "hits", hits)
    await client.send("REQ", "s", {"kinds": [1], "search": "x"})
    assert await client.receive() == ["CLOSED", "s", "rate-limited: too many concurrent requests"]
