"""The limits on the wire: each number of the relay's document at its edge, rates, and messages handled at once."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import trio

from relay import metrics
from relay.http import discovery
from relay.nostr.event import Event
from relay.store import tokens
from relay.websocket.limits import Limits
from tests.support.core import ALICE, BOB, Person
from tests.support.relay import Client, RelayUnderTest, fields, message, serving

TOO_MANY_MESSAGES = "rate-limited: too many messages, slow down"
TOO_MANY_EVENTS = "rate-limited: too many events, slow down"
TOO_MANY_REQUESTS = "rate-limited: too many requests, slow down"
TOO_MANY_AT_ONCE = "rate-limited: too many concurrent requests"


def limited(what: str) -> float:
    return metrics.REGISTRY.get_sample_value("sprout_rate_limited_total", {"what": what}) or 0.0


async def audited(relay: RelayUnderTest, count: int) -> list[dict[str, Any]]:
    """The entries about limits, once the relay has written down what it counted."""
    relay.core.ingest.finish()
    with trio.fail_after(10):
        while True:
            rows = await relay.core.pool.fetch(
                "SELECT actor, metadata FROM audit_log WHERE action = 'rate_limit_exceeded' UNION ALL"
                " SELECT actor, metadata FROM audit_outbox WHERE action = 'rate_limit_exceeded'"
            )
            if len(rows) >= count:
                return [{"actor": row["actor"], **orjson.loads(row["metadata"])} for row in rows]
            await trio.sleep(0.01)


async def proxy(relay: RelayUnderTest, person: Person) -> Client:
    """A connection that may submit for others."""
    text = "sprout_" + "ef" * 32
    await relay.core.pool.execute(
        "INSERT INTO users (pubkey) VALUES ($1) ON CONFLICT DO NOTHING", bytes.fromhex(person.pubkey)
    )
    await relay.core.pool.execute(
        "INSERT INTO api_tokens (token_hash, owner_pubkey, name, scopes) VALUES ($1, $2, 't', $3)",
        tokens.digest(text),
        bytes.fromhex(person.pubkey),
        ["messages:read", "messages:write", "proxy:submit"],
    )
    client = await relay.connect()
    assert (await client.log_in(person, tags=[["auth_token", text]]))[2:] == [True, ""]
    return client


async def ask(client: Client, sub_id: str) -> list[Any]:
    """A REQ that finds nothing: its EOSE or CLOSED."""
    await client.send("REQ", sub_id, {"kinds": [3], "limit": 0})
    return await client.receive()


async def count(client: Client, sub_id: str) -> list[Any]:
    await client.send("COUNT", sub_id, {"kinds": [1]})
    return await client.receive()


# -- messages of a connection ------------------------------------------------------------------------------------------


async def test_messages_over_the_rate_are_refused_in_their_own_form(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, rate_messages=4) as relay:
        client, other = await relay.connect(ALICE), await relay.connect(BOB)
        before = limited("messages")
        assert await ask(client, "live") == ["EOSE", "live"]
        await client.send("CLOSE", "whatever else")
        await client.send("EVENT")
        assert [frame[0] for frame in (await client.receive(), await client.receive())] == ["CLOSED", "NOTICE"]
        event = ALICE.sign(1, "x")
        assert await client.publish(event) == ["OK", event.id, False, TOO_MANY_MESSAGES]
        assert await count(client, "live") == ["CLOSED", "live", TOO_MANY_MESSAGES]
        assert relay.core.hub.statistics().subscriptions == 1, "a COUNT is no subscription"
        assert await ask(client, "live") == ["CLOSED", "live", TOO_MANY_MESSAGES]
        assert relay.core.hub.statistics().subscriptions == 0, "closed is closed"
        assert limited("messages") - before == 3
        assert (await other.publish(BOB.sign(1, "y")))[2] is True
        (entry,) = await audited(relay, 1)
        assert (entry["actor"], entry["reason"], entry["count"]) == (ALICE.pubkey, "messages", 3)


async def test_before_the_login_the_address_is_to_blame(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, rate_messages=1) as relay:
        client = await relay.connect()
        event = ALICE.sign(1, "x")
        assert (await client.publish(event))[3] == "auth-required: not authenticated"
        assert (await client.publish(event))[3] == TOO_MANY_MESSAGES
        assert await ask(client, "s") == ["CLOSED", "s", TOO_MANY_MESSAGES]
        (entry,) = await audited(relay, 1)
        assert (entry["actor"], entry["from"], entry["count"]) == (None, "127.0.0.1", 2)


async def test_what_is_no_text_counts_too(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, rate_messages=2) as relay:
        client = await relay.connect()
        for _ in range(2):
            await client.send_text(b"\xff")
        event = ALICE.sign(1, "x")
        assert (await client.publish(event))[3] == TOO_MANY_MESSAGES
        before = limited("messages")
        await client.send_text(b"\xff")  # waits: what is behind it is not read
        with trio.fail_after(10):
            while limited("messages") == before:
                await trio.sleep(0.005)


async def test_what_has_no_refusal_of_its_own_waits(migrated_dsn: str) -> None:
    """A CLOSE is obeyed and a mistake is told, later; and what comes behind them is not read meanwhile."""
    async with serving(migrated_dsn, rate_messages=240) as relay:
        started = trio.current_time()
        client = await relay.connect()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for number in range(240):
                    await client.send("CLOSE", str(number))
                await client.send("CLOSE", "late")
                await client.send_text("no message")
                await client.send("CLOSE", "last")

            nursery.start_soon(send)
            for number in range(240):
                assert await client.receive() == ["CLOSED", str(number), ""]
            assert await client.receive() == ["CLOSED", "late", ""]
            assert trio.current_time() - started >= 0.25
            assert (await client.receive())[0] == "NOTICE"
            assert trio.current_time() - started >= 0.5
            assert await client.receive() == ["CLOSED", "last", ""]
            assert trio.current_time() - started >= 0.75


async def test_who_waits_for_his_turn_can_still_be_told_to_go(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, rate_messages=1) as relay:
        client = await relay.connect()
        for name in ("a", "b"):
            await client.send("CLOSE", name)
        assert await client.receive() == ["CLOSED", "a", ""]
        with trio.fail_after(10):
            while not relay.core.ingest._notes._counts:  # the second is waiting: for a minute, as it believes
                await trio.sleep(0.005)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.endpoint.close_all, 1012, "restarting", 0.1, 2)
            assert await client.closed() == (1012, "restarting")
            await client.websocket.aclose()


# -- events and requests of a key --------------------------------------------------------------------------------------


async def test_events_of_a_key_whatever_its_connections(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, rate_events=3) as relay:
        first, second, other = await relay.connect(ALICE), await relay.connect(ALICE), await relay.connect(BOB)
        before = limited("events")
        events = [ALICE.sign(1, f"{number}") for number in range(5)]
        answers = [
            await client.publish(event)
            for client, event in zip((first, second, first, second, first), events, strict=True)
        ]
        assert [answer[2:] for answer in answers] == [[True, ""]] * 3 + [[False, TOO_MANY_EVENTS]] * 2
        assert limited("events") - before == 2
        assert await ask(first, "s") == ["EOSE", "s"]
        assert (await other.publish(BOB.sign(1, "y")))[2] is True
        (entry,) = await audited(relay, 1)
        assert (entry["actor"], entry["reason"], entry["count"]) == (ALICE.pubkey, "events", 2)


async def test_requests_of_a_key_are_reqs_and_counts(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, rate_requests=2) as relay:
        first, second = await relay.connect(ALICE), await relay.connect(ALICE)
        before = limited("requests")
        assert await ask(first, "s") == ["EOSE", "s"]
        assert (await count(second, "s"))[0] == "COUNT"
        assert await ask(second, "t") == ["CLOSED", "t", TOO_MANY_REQUESTS]
        assert await count(first, "s") == ["CLOSED", "s", TOO_MANY_REQUESTS]
        assert relay.core.hub.statistics().subscriptions == 1
        assert await ask(first, "s") == ["CLOSED", "s", TOO_MANY_REQUESTS]
        assert relay.core.hub.statistics().subscriptions == 0
        assert limited("requests") - before == 3
        assert (await first.publish(ALICE.sign(1, "x")))[2] is True


async def test_who_speaks_for_many_has_only_the_limit_of_the_connection(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, rate_events=1, rate_requests=1, rate_messages=9) as relay:
        client = await proxy(relay, ALICE)
        for number in range(4):
            assert (await client.publish(BOB.sign(1, f"{number}")))[2] is True
            assert await ask(client, "s") == ["EOSE", "s"]
        event = BOB.sign(1, "one more")
        assert await client.publish(event) == ["OK", event.id, False, TOO_MANY_MESSAGES]


async def test_refused_events_keep_the_order_of_the_oks(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, rate_events=20) as relay:
        client = await relay.connect(ALICE)
        events = [ALICE.sign(1, f"{number}") for number in range(40)]
        for event in events:
            await client.send("EVENT", fields(event))
        answers = [await client.expect("OK") for _ in events]
        assert [answer[1] for answer in answers] == [event.id for event in events]
        assert [answer[2] for answer in answers] == [True] * 20 + [False] * 20


async def test_zero_is_no_limit(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, rate_events=0, rate_requests=0, rate_messages=0) as relay:
        client = await relay.connect(ALICE)
        for number in range(30):
            assert await ask(client, f"{number}") == ["EOSE", f"{number}"]


# -- connections of an address -----------------------------------------------------------------------------------------


async def test_arrivals(relay: RelayUnderTest) -> None:
    before = limited("connections")
    settings = relay.core.settings.model_copy(update={"rate_connections": 2})
    noted: list[tuple[str, str]] = []
    limits = Limits(settings, lambda action, who, reason: noted.append((action.value, who)))
    assert [limits.arrival("192.0.2.1") for _ in range(2)] == [None, None]
    seconds = limits.arrival("192.0.2.1")
    assert seconds is not None
    assert 25 < seconds <= 30
    assert limits.arrival("192.0.2.2") is None
    assert {limits.arrival(peer) for peer in ("127.0.0.1", "::1", "unix") for _ in range(5)} == {None}
    assert noted == [("rate_limit_exceeded", "192.0.2.1")]
    assert limited("connections") - before == 1


# -- messages that are handled at once ---------------------------------------------------------------------------------


@pytest.fixture
async def narrow(migrated_dsn: str) -> AsyncIterator[RelayUnderTest]:
    """One message at a time, and the others do not wait long."""
    prepare = lambda stream: stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 10)  # noqa: E731
    settings = {"max_concurrent_handlers": 1, "handler_wait_seconds": 0.1, "send_stall_seconds": 60}
    async with serving(migrated_dsn, prepare=prepare, **settings) as relay:
        yield relay


async def wait_active(handlers: int) -> None:
    with trio.fail_after(10):
        while metrics.REGISTRY.get_sample_value("sprout_handlers_active") != handlers:
            await trio.sleep(0.005)


async def test_too_many_at_once_are_told_so(narrow: RelayUnderTest) -> None:
    """Nobody is left without an answer, and the one that is being handled gets his."""
    busy, other = await narrow.connect(ALICE), await narrow.connect(BOB)
    assert await ask(other, "live") == ["EOSE", "live"]
    before = limited("handlers")
    event = BOB.sign(1, "x")
    async with narrow.core.pool.transaction() as con:
        await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        await busy.send("REQ", "s", {"kinds": [1]})
        await wait_active(1)
        assert await other.publish(event) == ["OK", event.id, False, TOO_MANY_AT_ONCE]
        assert await count(other, "live") == ["CLOSED", "live", TOO_MANY_AT_ONCE]
        assert narrow.core.hub.statistics().subscriptions == 2
        assert await ask(other, "live") == ["CLOSED", "live", TOO_MANY_AT_ONCE]
        assert narrow.core.hub.statistics().subscriptions == 1
        await other.send("CLOSE", "live")
        assert await other.receive() == ["CLOSED", "live", ""]
    assert await busy.receive() == ["EOSE", "s"]
    await wait_active(0)
    assert await other.publish(event) == ["OK", event.id, True, ""]
    assert limited("handlers") - before == 3


async def test_who_waits_a_little_gets_his_turn(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, max_concurrent_handlers=1, handler_wait_seconds=30) as relay:
        clients = [await relay.connect(ALICE) for _ in range(4)]
        async with relay.core.pool.transaction() as con:
            await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            for client in clients:
                await client.send("REQ", "s", {"kinds": [1]})
            await wait_active(1)
        for client in clients:
            assert await client.receive() == ["EOSE", "s"]
        await wait_active(0)


async def test_events_that_wait_for_their_commit_take_nobodys_place(narrow: RelayUnderTest) -> None:
    channel = await narrow.channel(ALICE)
    busy, other = await narrow.connect(ALICE), await narrow.connect(BOB)
    events = [message(ALICE, channel, f"{number}") for number in range(5)]
    async with narrow.core.pool.transaction() as con:
        await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        for event in events:
            await busy.send("EVENT", fields(event))
        with trio.fail_after(10):
            while narrow.endpoint.statistics().pending_events < 5:
                await trio.sleep(0.005)
        assert (await other.publish(BOB.sign(20001, "online")))[2] is True
    assert [await busy.receive() for _ in events] == [["OK", event.id, True, ""] for event in events]


async def test_a_client_that_does_not_read_takes_nobodys_place(narrow: RelayUnderTest) -> None:
    """It has asked for more than its socket holds, and looks away."""
    writer = await narrow.connect(ALICE)
    for number in range(60):
        await writer.publish(ALICE.sign(1, "x" * 30_000 + str(number)))
    stuck = await narrow.connect(BOB, receive_buffer=4096)
    await stuck.send("REQ", "s", {"kinds": [1]})
    with trio.fail_after(10):
        while not any(each.outbound.statistics().waiting_puts for each in narrow.endpoint._sessions):
            await trio.sleep(0.005)
    await wait_active(0)
    assert await ask(writer, "t") == ["EOSE", "t"]
    assert len(await stuck.until("EOSE", "s")) == 60


async def test_a_client_that_leaves_gives_its_place_back(narrow: RelayUnderTest) -> None:
    gone, other = await narrow.connect(ALICE), await narrow.connect(BOB)
    async with narrow.core.pool.transaction() as con:
        await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        await gone.send("REQ", "s", {"kinds": [1]})
        await wait_active(1)
        await gone.stream.aclose()
    await wait_active(0)
    assert await ask(other, "s") == ["EOSE", "s"]


async def test_a_message_that_is_too_long_keeps_nobodys_place(migrated_dsn: str) -> None:
    """It is looked at when the message before it, which has the place, is answered; and then nobody has it."""
    too_long = "x" * 5000
    async with serving(
        migrated_dsn, max_concurrent_handlers=1, handler_wait_seconds=30, flush_seconds=10, max_frame_bytes=4096
    ) as relay:  # fmt: skip
        busy, other = await relay.connect(ALICE), await relay.connect(BOB)
        async with relay.core.pool.transaction() as con:
            await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            await busy.send("REQ", "s", {"kinds": [1]})
            await wait_active(1)
            await other.send("REQ", "t", {"kinds": [1]})
            with trio.fail_after(10):
                while not relay.endpoint.limits.gate.lot:
                    await trio.sleep(0.005)
            await busy.send_text(too_long)
        assert await other.receive() == ["EOSE", "t"]
        assert await busy.receive() == ["EOSE", "s"]
        assert (await busy.receive())[0] == "NOTICE"
        assert (await busy.closed())[0] == 1009
        await wait_active(0)
        assert await ask(other, "t") == ["EOSE", "t"]


# -- each number of the document, at its edge --------------------------------------------------------------------------

DRIFT = 100
SMALL = {
    "max_frame_bytes": 4096,
    "max_subscriptions": 3,
    "max_filters": 4,
    "max_limit": 6,
    "default_limit": 2,
    "max_content_bytes": 1000,
    "max_clock_drift_seconds": DRIFT,
}


@pytest.fixture
async def small(migrated_dsn: str) -> AsyncIterator[RelayUnderTest]:
    async with serving(migrated_dsn, **SMALL) as relay:
        yield relay


def limitation(relay: RelayUnderTest) -> dict[str, Any]:
    document = orjson.loads(discovery.document(relay.core.settings, relay.core.key.public_hex))
    found: dict[str, Any] = document["limitation"]
    return found


async def test_max_message_length(small: RelayUnderTest) -> None:
    most = limitation(small)["max_message_length"]
    client = await small.connect()
    for name in ("z" * (most - 12), "ü" * ((most - 12) // 2)):
        text = '["CLOSE","' + name + '"]'
        assert len(text.encode()) == most
        await client.send_text(text)
        assert (await client.receive())[0] == "CLOSED"
    await client.send_text('["CLOSE","' + "z" * (most - 11) + '"]')
    assert (await client.closed())[0] == 1009
    assert client.frames == [["NOTICE", f"invalid: message exceeds maximum size of {most} bytes"]]


async def test_max_subscriptions(small: RelayUnderTest) -> None:
    most = limitation(small)["max_subscriptions"]
    client = await small.connect(ALICE)
    for number in range(most):
        assert await ask(client, f"{number}") == ["EOSE", f"{number}"]
    assert await ask(client, "more") == ["CLOSED", "more", "error: too many subscriptions"]
    assert await ask(client, "0") == ["EOSE", "0"]


async def test_max_filters(small: RelayUnderTest) -> None:
    most = limitation(small)["max_filters"]
    client = await small.connect(ALICE)
    for verb in ("REQ", "COUNT"):
        await client.send(verb, "s", *[{"kinds": [1]}] * most)
        assert (await client.receive())[0] in ("EOSE", "COUNT")
        await client.send(verb, "s", *[{"kinds": [1]}] * (most + 1))
        detail = f"{verb} contains {most + 1} filters, maximum is {most}"
        assert await client.receive() == ["NOTICE", f"invalid message: Invalid message format: {detail}"]


async def test_max_subid_length(small: RelayUnderTest) -> None:
    most = limitation(small)["max_subid_length"]
    client = await small.connect(ALICE)
    for name in ("x" * most, "é" * (most // 2)):
        assert await ask(client, name) == ["EOSE", name]
    for name in ("x" * (most + 1), "é" * (most // 2) + "x"):
        detail = f"REQ sub_id exceeds maximum length of {most} bytes"
        assert await ask(client, name) == ["NOTICE", f"invalid message: Invalid message format: {detail}"]


async def test_max_limit_and_default_limit(small: RelayUnderTest) -> None:
    client = await small.connect(ALICE)
    numbers = limitation(small)
    for number in range(numbers["max_limit"] + 2):
        await client.publish(ALICE.sign(1, f"{number}"))
    most, usual = numbers["max_limit"], numbers["default_limit"]
    for wanted, got in ((most - 1, most - 1), (most, most), (most + 1, most), (None, usual)):
        found = await client.request("s", {"kinds": [1]} | ({} if wanted is None else {"limit": wanted}))
        assert len(found) == got, wanted


async def test_max_content_length_is_in_bytes(small: RelayUnderTest) -> None:
    most = limitation(small)["max_content_length"]
    client = await small.connect(ALICE)
    for content in ("x" * most, "é" * (most // 2)):
        assert (await client.publish(ALICE.sign(1, content)))[2:] == [True, ""]
    for content in ("x" * (most + 1), "é" * (most // 2) + "x"):
        text = f"invalid: content exceeds maximum size of {most} bytes (got {most + 1})"
        assert (await client.publish(ALICE.sign(1, content)))[2:] == [False, text]


async def test_created_at_limits(small: RelayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = limitation(small)
    lower, upper = numbers["created_at_lower_limit"], numbers["created_at_upper_limit"]
    assert (lower, upper) == (DRIFT, DRIFT)
    client = await small.connect(ALICE)
    now = time.time_ns() // 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now * 1_000_000_000)
    fits, too_far = [True, ""], [False, "invalid: event timestamp too far from server time"]

    async def answer(event: Event) -> list[Any]:
        return (await client.publish(event))[2:]

    for at, expected in ((-lower, fits), (-lower - 1, too_far), (upper, fits), (upper + 1, too_far)):
        assert await answer(ALICE.sign(1, f"{at}", at=now + at)) == expected, at
    assert numbers["created_at_lower_limit_exempt_kinds"] == [1059]
    wrap = [["p", BOB.pubkey]]
    for at, expected in ((-lower - 1, fits), (-10_000_000, fits), (upper, fits), (upper + 1, too_far)):
        assert await answer(ALICE.sign(1059, f"{at}", wrap, at=now + at)) == expected, at


async def test_auth_required(small: RelayUnderTest) -> None:
    assert limitation(small)["auth_required"] is True
    client = await small.connect()
    assert (await client.publish(ALICE.sign(1, "x")))[3].startswith("auth-required: ")


async def test_restricted_writes(small: RelayUnderTest) -> None:
    assert limitation(small)["restricted_writes"] is True
    channel = await small.channel(ALICE)
    stranger = await small.connect(BOB)
    assert (await stranger.publish(message(BOB, channel, "x")))[3].startswith("restricted: ")


async def test_a_text_of_64_kib_is_taken_with_the_limits_as_they_are_by_default(relay: RelayUnderTest) -> None:
    """Clients allow as much; and what the JSON around it and its escapes add must fit into a message, too."""
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    for content in ("x" * 65_536, '"' * 64_000, "é" * 32_768):
        assert (await client.publish(message(ALICE, channel, content)))[2:] == [True, ""]


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("rate_messages", "messages_per_connection"),
        ("rate_events", "events_per_key"),
        ("rate_requests", "requests_per_key"),
        ("rate_connections", "connections_per_address"),
    ],
)
async def test_rates_stand_in_the_document_as_they_are_set(relay: RelayUnderTest, setting: str, key: str) -> None:
    for value, told in ((7, 7), (0, None)):
        settings = relay.core.settings.model_copy(update={setting: value})
        assert orjson.loads(discovery.document(settings, "aa"))["rates_per_minute"][key] == told
