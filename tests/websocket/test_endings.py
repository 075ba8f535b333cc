"""How connections end: by the relay's stop, by silence, by not reading; and that each ends alone."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import trio
from trio_websocket import ConnectionClosed

from relay import metrics
from relay.websocket.session import Session
from tests.support.core import ALICE, BOB
from tests.support.relay import Client, RelayUnderTest, fields, message, serving


def closes(label: str) -> float:
    return metrics.REGISTRY.get_sample_value("sprout_ws_closes_total", {"reason": label}) or 0.0


async def wait_until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


def session_of(relay: RelayUnderTest) -> Session:
    """The one session there is."""
    (session,) = relay.endpoint._sessions
    return session


# -- close_all ---------------------------------------------------------------------------------------------------------


async def test_everybody_is_told_why(relay: RelayUnderTest) -> None:
    clients = [await relay.connect(ALICE), await relay.connect(), await relay.connect(BOB)]
    before = closes("shutdown")
    told: list[tuple[int, str | None]] = []

    async def listen(client: Client) -> None:
        told.append(await client.closed())
        await client.websocket.aclose()

    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(listen, client)
        assert await relay.endpoint.close_all(1012, "restarting", 1, 2) == 3
    assert told == [(1012, "restarting")] * 3
    assert relay.endpoint.connections == 0
    assert closes("shutdown") - before == 3
    assert not relay.endpoint.admission()
    assert relay.core.hub.statistics().connections == 0


async def test_what_was_admitted_is_answered_before_the_close(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    event = message(ALICE, channel, "x")
    async with relay.core.pool.transaction() as con:
        await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        await client.send("EVENT", fields(event))
        await wait_until(lambda: relay.endpoint.statistics().pending_events)
        relay.endpoint.stop_reading()
        await client.send("CLOSE", "unread")
        await wait_until(lambda: session_of(relay)._receiving.cancel_called)
    assert await client.receive() == ["OK", event.id, True, ""]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.endpoint.close_all)
        assert await client.closed() == (1012, "restarting")
        assert client.frames == []
        await client.websocket.aclose()


async def test_an_ok_that_comes_during_the_close_is_flushed(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    event = message(ALICE, channel, "x")
    async with trio.open_nursery() as nursery:
        async with relay.core.pool.transaction() as con:
            await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            await client.send("EVENT", fields(event))
            await wait_until(lambda: relay.endpoint.statistics().pending_events)
            nursery.start_soon(relay.endpoint.close_all, 1012, "restarting", 5, 6)
            await wait_until(lambda: session_of(relay)._ending is not None)
        assert await client.closed() == (1012, "restarting")
        assert client.frames == [["OK", event.id, True, ""]]
        await client.websocket.aclose()


async def test_who_does_not_read_is_closed_in_time(migrated_dsn: str) -> None:
    """One client stopped reading in the middle of a replay, another will not answer the Close."""
    prepare = lambda stream: stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 10)  # noqa: E731
    async with serving(migrated_dsn, prepare=prepare, send_stall_seconds=60) as relay:
        writer = await relay.connect(ALICE)
        for number in range(60):
            await writer.publish(ALICE.sign(1, "x" * 30_000 + str(number)))
        stuck = await relay.connect(BOB, receive_buffer=4096)
        await stuck.send("REQ", "s", {"kinds": [1]})
        await wait_until(lambda: any(each.outbound.statistics().queued_bytes for each in relay.endpoint._sessions))
        started = trio.current_time()
        assert await relay.endpoint.close_all(1012, "restarting", 0.2, 0.5) == 2
        assert trio.current_time() - started < 1.5
        await wait_until(lambda: relay.endpoint.connections == 0)


# -- too many ----------------------------------------------------------------------------------------------------------


async def test_the_number_of_connections_is_bounded(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, max_connections=2) as relay:
        first, second = await relay.connect(), await relay.connect()
        assert not relay.endpoint.admission()
        await first.websocket.aclose()
        await wait_until(lambda: relay.endpoint.connections == 1)
        assert relay.endpoint.admission()
        await second.websocket.aclose()
        assert relay.endpoint.statistics().refused_total == 1


# -- pings -------------------------------------------------------------------------------------------------------------


async def test_the_third_unanswered_tick_ends_the_connection(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    session = session_of(relay)
    session._connection.heard = False
    before = closes("pings")
    for number in range(1, 5):
        # The client's library reads, and would answer; so its pongs are not looked at.
        session._connection.heard = False
        session.tick(trio.current_time() + number)
    assert session._ending is not None
    assert await client.closed() == (1001, "ping timeout")
    assert closes("pings") - before == 1


async def test_a_client_that_answers_stays(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, ping_seconds=0.05) as relay:
        client = await relay.connect(ALICE)
        relay.nursery.start_soon(relay.endpoint.run_heartbeat)
        session = session_of(relay)
        for _ in range(8):
            last = session._pulse.last_tick
            await wait_until(lambda last=last: session._pulse.last_tick != last)
        assert await client.request("s", {"kinds": [1]}) == []


async def test_a_silent_client_is_dropped_by_the_heartbeat(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, ping_seconds=0.05, auth_seconds=60) as relay:
        relay.nursery.start_soon(relay.endpoint.run_heartbeat)
        async with await trio.open_tcp_stream("127.0.0.1", relay.port) as stream:
            await stream.send_all(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            received = b""
            with trio.fail_after(10):
                while data := await stream.receive_some(65536):
                    received += data
        assert b"\x89\x00" in received
        assert received.endswith((1001).to_bytes(2, "big") + b"ping timeout")
        await wait_until(lambda: relay.endpoint.connections == 0)


async def test_silence_while_we_do_not_listen_is_ours(relay: RelayUnderTest) -> None:
    """The handler is stuck in the database: the client's pongs lie unread in the socket."""
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    session = session_of(relay)
    async with relay.core.pool.transaction() as con:
        await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        await client.send("REQ", "s", {"#h": [channel]})
        await wait_until(lambda: not session._connection.waiting)
        for number in range(1, 10):
            session._connection.heard = False
            session.tick(trio.current_time() + number)
        assert session._ending is None
    await client.until("EOSE", "s")


# -- slow consumers ----------------------------------------------------------------------------------------------------


async def test_a_subscriber_that_stops_reading_costs_only_itself(migrated_dsn: str) -> None:
    def prepare(stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 10)

    async with serving(migrated_dsn, prepare=prepare, send_buffer=50, close_seconds=30) as relay:
        channel = await relay.channel(ALICE, BOB)
        writer, healthy = await relay.connect(ALICE), await relay.connect(BOB)
        slow = await relay.connect(BOB, receive_buffer=4096)
        for client in (healthy, slow):
            await client.request("s", {"#h": [channel]})
        before, sessions = closes("slow"), relay.endpoint.connections
        got: list[str] = []

        async def read() -> None:
            while len(got) < 300:
                got.append((await healthy.expect("EVENT", "s"))[2]["id"])

        events = [message(ALICE, channel, "x" * 1000 + str(number)) for number in range(300)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for event in events:
                await writer.publish(event)
        assert got == [event.id for event in events]
        assert closes("slow") - before == 1
        code, reason = await slow.closed()
        assert (code, reason) == (1013, "too slow")
        seen = [frame[2]["id"] for frame in slow.frames]
        assert seen == got[: len(seen)], "no gap before the end"
        await wait_until(lambda: relay.endpoint.connections == sessions - 1)


async def test_a_sender_that_does_not_read_its_oks_is_held_back(migrated_dsn: str) -> None:
    def prepare(stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 10)

    async with serving(migrated_dsn, prepare=prepare, send_buffer=100, send_stall_seconds=60) as relay:
        client = await relay.connect(receive_buffer=4096)
        session = session_of(relay)
        refused = orjson.dumps(["EVENT", fields(ALICE.sign(1, "x"))]).decode()
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await client.send_text(refused)
                sent += 1

        def held_back() -> bool:
            return session.outbound.statistics().queued_frames > 50 and not session._connection.waiting

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_until(held_back)
            before = -1
            while before != sent:  # until what lies between us is full, too
                before = sent
                await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.cancel_scope.cancel()
        assert session._ending is None
        assert session.outbound.statistics().queued_frames <= 100
        answered = 0
        with trio.fail_after(20):
            while answered < sent:
                assert (await client.receive())[0] == "OK"
                answered += 1


async def test_a_socket_that_breaks_is_forgotten(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    client, writer = await relay.connect(ALICE), await relay.connect(ALICE)
    await client.request("s", {"#h": [channel]})
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a reset instead of an end
    client.stream.socket.close()
    await writer.publish(message(ALICE, channel, "x"))
    await wait_until(lambda: relay.endpoint.connections == 1)
    assert relay.core.hub.statistics().connections == 1
    assert relay.core.hub.statistics().subscriptions == 0


async def test_the_peer_may_close_first(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    with trio.fail_after(5):
        await client.websocket.aclose(1000, "bye")
    with pytest.raises(ConnectionClosed):
        await client.websocket.get_message()
    await wait_until(lambda: relay.endpoint.connections == 0)


async def test_the_gauge_follows(relay: RelayUnderTest) -> None:
    def active() -> float:
        return metrics.REGISTRY.get_sample_value("sprout_ws_connections_active") or 0.0

    before = active()
    clients = [await relay.connect() for _ in range(3)]
    assert active() - before == 3
    for client in clients:
        await client.websocket.aclose()
    await wait_until(lambda: active() == before)


# -- what the library lets pass ----------------------------------------------------------------------------------------

MASKED_EMPTY = b"\x80\0\0\0\0"  # length and mask of a client's frame without payload
FIRST_FRAGMENT, NEXT_FRAGMENT, LAST_FRAGMENT = b"\x01", b"\x00", b"\x80"


async def test_a_message_of_endless_empty_fragments(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    session = session_of(relay)
    await client.stream.send_all(FIRST_FRAGMENT + MASKED_EMPTY + (NEXT_FRAGMENT + MASKED_EMPTY) * 20_000)
    assert await client.closed() == (1008, "too many fragments")
    await wait_until(lambda: not relay.endpoint.connections)
    assert not session._connection._decoder._pieces


async def test_a_message_in_many_fragments_is_read(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    fragments = [NEXT_FRAGMENT + b"\x81\0\0\0\0" + bytes([byte]) for byte in b'["CLOSE","' + b"x" * 1000 + b'"]']
    await client.stream.send_all(FIRST_FRAGMENT + MASKED_EMPTY + b"".join(fragments) + LAST_FRAGMENT + MASKED_EMPTY)
    assert await client.receive() == ["CLOSED", "x" * 1000, ""]


async def test_a_peer_that_closes_because_of_our_size_is_not_told_off(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    before = closes("too_big")
    await client.stream.send_all(b"\x88\x82\0\0\0\0" + (1009).to_bytes(2, "big"))
    assert await client.closed() == (1009, None)
    assert client.frames == []
    await wait_until(lambda: not relay.endpoint.connections)
    assert closes("too_big") == before


async def test_a_ping_does_not_end_a_client_that_is_busy_reading(migrated_dsn: str) -> None:
    def prepare(stream: trio.SocketStream) -> None:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)

    async with serving(migrated_dsn, prepare=prepare, send_buffer_bytes=65536) as relay:
        client = await relay.connect(ALICE, receive_buffer=8192)
        session = session_of(relay)
        text = "x" * 1_000_000  # a put takes a message of any size
        await session.put(orjson.dumps(["NOTICE", text]))
        for _ in range(4):
            session.tick(trio.current_time())
        assert await client.receive() == ["NOTICE", text]
        await client.send("CLOSE", "s")
        assert await client.receive() == ["CLOSED", "s", ""]
