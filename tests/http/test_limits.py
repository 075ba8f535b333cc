"""Limits of heads and bodies on real sockets of the real relay, over HTTP/1.1 and HTTP/2: each is met and survived.

The relay runs in a process of its own, with short times; whatever a case does to its connection, the next is served.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio

from relay.http.edge import HEADER_LINES_MAX
from tests.support.launching import Launched, launched, reachable_dir

SECONDS = 10
BODY_SECONDS = 1.5
HEAD_SECONDS = 1.0
HEAD_BYTES = 16 << 10


@pytest.fixture
async def relay(postgres_server) -> AsyncIterator[Launched]:
    """One for all the cases of a test: a start takes two seconds."""
    name = postgres_server.create_database()
    with reachable_dir() as directory:
        settings = {
            "DATABASE_URL": postgres_server.dsn(name),
            "SPROUT_BODY_SECONDS": str(BODY_SECONDS),
            "SPROUT_HANDSHAKE_SECONDS": str(HEAD_SECONDS),
        }
        async with launched("relay serve", directory, **settings) as running:
            yield await running.ready()
    postgres_server.drop_database(name)


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join((line + " HTTP/1.1", "Host: x", *fields, "", "")).encode()


async def dial(relay: Launched) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", relay.port)


async def read_to_end(stream: trio.SocketStream) -> bytes:
    """All that comes until the relay closes the connection."""
    received = b""
    with trio.fail_after(SECONDS):
        try:
            while data := await stream.receive_some():
                received += data
        except trio.BrokenResourceError:  # it was reset: bytes of ours were unread
            pass
    return received


async def one_answer(stream: trio.SocketStream) -> tuple[int, bytes]:
    """Status and body of an answer with a length; the connection stays as it is."""
    received = b""
    with trio.fail_after(SECONDS):
        while b"\r\n\r\n" not in received:
            data = await stream.receive_some()
            assert data, received
            received += data
        start, _, body = received.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in start.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            body += await stream.receive_some()
    return int(start.split()[1]), body


async def status_of(relay: Launched, sent: bytes) -> tuple[int, bytes]:
    """Status and the whole answer to these bytes, where the relay ends the connection."""
    async with await dial(relay) as stream:
        with trio.fail_after(SECONDS):
            with suppress(trio.BrokenResourceError):
                await stream.send_all(sent)
        received = await read_to_end(stream)
    return int(received.split(b" ", 2)[1]) if received else 0, received


async def lives(relay: Launched) -> None:
    async with await dial(relay) as stream:
        await stream.send_all(head("GET /_liveness"))
        assert await one_answer(stream) == (200, b"ok")


async def test_heads_over_http_1(relay: Launched) -> None:
    """On the first request of a connection, and on a later one, which other eyes read."""
    too_large = {
        "one header": head("GET /info", "X: " + "x" * HEAD_BYTES),
        "request line": head("GET /" + "x" * HEAD_BYTES),
        "query": head("GET /info?" + "x" * HEAD_BYTES),
        "many headers": head("GET /info", *(f"X-{n}: {'x' * 90}" for n in range(HEAD_BYTES // 90))),
        "no end": b"GET /info HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (HEAD_BYTES + 10),
    }
    for name, sent in too_large.items():
        status, received = await status_of(relay, sent)
        assert status == 431, name
        assert b'"error"' in received
        if name == "no end":  # refused by the server itself, without a body, and the connection ended
            assert (await status_of_second(relay, sent))[0] == 431
        else:
            assert (await status_of_second_keep(relay, sent))[0] == 431, name
    many = head("GET /info", *(f"X{n}: " for n in range(HEADER_LINES_MAX)))  # and Host
    for send in (status_of_keep, status_of_second_keep):
        assert await send(relay, many) == (431, b'{"error":"too many request headers"}')
        enough = head("GET /_liveness", *(f"X{n}: " for n in range(HEADER_LINES_MAX - 1)))
        assert await send(relay, enough) == (200, b"ok")
    # As many as fit: they are parsed, and cost no more than their size.
    smallest = b"GET /info HTTP/1.1\r\n" + b"a:\r\n" * ((HEAD_BYTES - 40) // 4) + b"\r\n"
    started = trio.current_time()
    status, _ = await status_of(relay, smallest)
    assert status in (400, 431)
    assert trio.current_time() - started < 2
    await lives(relay)


async def status_of_keep(relay: Launched, sent: bytes) -> tuple[int, bytes]:
    async with await dial(relay) as stream:
        await stream.send_all(sent)
        return await one_answer(stream)


async def status_of_second_keep(relay: Launched, sent: bytes) -> tuple[int, bytes]:
    async with await dial(relay) as stream:
        await stream.send_all(head("GET /_liveness"))
        assert await one_answer(stream) == (200, b"ok")
        await stream.send_all(sent)
        return await one_answer(stream)


async def status_of_second(relay: Launched, sent: bytes) -> tuple[int, bytes]:
    async with await dial(relay) as stream:
        await stream.send_all(head("GET /_liveness"))
        assert await one_answer(stream) == (200, b"ok")
        with suppress(trio.BrokenResourceError):
            await stream.send_all(sent)
        received = await read_to_end(stream)
        return int(received.split(b" ", 2)[1]) if received else 0, received


async def test_slow_heads(relay: Launched) -> None:
    """A head that drips is cut after a time, whatever still comes; the second on a connection too."""
    for first in (False, True):
        async with await dial(relay) as stream:
            if not first:
                await stream.send_all(head("GET /_liveness"))
                assert await one_answer(stream) == (200, b"ok")
            started = trio.current_time()
            await drip(
                stream, itertools.chain(b"GET /info HTTP/1.1\r\nX: ", itertools.repeat(ord("x"))), HEAD_SECONDS * 5
            )
            assert trio.current_time() - started < HEAD_SECONDS * 4, first
    await lives(relay)


async def drip(stream: trio.SocketStream, data: Iterator[int], seconds: float, pause: float = 0.05) -> bytes:
    """A byte now and then until the relay ends the connection; returns what it said. Fails after `seconds`."""
    received = b""

    async def speak() -> None:
        try:
            for byte in data:
                await stream.send_all(bytes([byte]))
                await trio.sleep(pause)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            received = await read_to_end(stream)
            nursery.cancel_scope.cancel()
    return received


async def test_bodies_over_http_1(relay: Launched) -> None:
    limit = 1 << 20
    post = "POST /api/events"
    # Refused by its own word, before a byte of it is read, and the connection is not used again.
    status, received = await status_of(relay, head(post, f"Content-Length: {limit + 1}"))
    assert (status, received.endswith(b"\r\n\r\nlength limit exceeded")) == (413, True)
    # A body of the size of the limit is read (and then nobody is there).
    chunk = b"%x\r\n" % 65536 + b"x" * 65536 + b"\r\n"
    for fields, body in (
        (f"Content-Length: {limit}", b"x" * limit),
        ("Transfer-Encoding: chunked", chunk * 16 + b"0\r\n\r\n"),
    ):
        assert (await status_of_keep(relay, head(post, fields) + body))[0] == 401
    # One that grows beyond it is not.
    status, received = await status_of(relay, head(post, "Transfer-Encoding: chunked") + chunk * 17)
    assert status == 413
    assert received.endswith(b"Failed to buffer the request body: length limit exceeded")
    # Chunks of one byte are as long as their bytes.
    small = head(post, "Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n"
    assert (await status_of_keep(relay, small))[0] == 401
    await lives(relay)


async def test_slow_bodies(relay: Launched) -> None:
    """408, and the end of the connection; whether nothing comes or a byte now and then."""
    for fields in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
        for data in (b"", itertools.repeat(ord("x")) if "Length" in fields else itertools.cycle(b"1\r\nx\r\n")):
            async with await dial(relay) as stream:
                await stream.send_all(head("POST /api/events", fields))
                started = trio.current_time()
                received = await drip(stream, iter(data), BODY_SECONDS * 4)
                assert received.startswith(b"HTTP/1.1 408"), (fields, received)
                assert received.endswith(b'{"error":"request body did not arrive in time"}')
                assert trio.current_time() - started >= BODY_SECONDS - 0.1
    await lives(relay)


async def test_a_body_that_nobody_reads(relay: Launched) -> None:
    """The answer does not wait for it, and what is left of it is not taken for the next request: the connection ends,
    and the answer says so, for a client that would send its next request here."""
    sent = head("GET /info", "Content-Length: 40") + b"GET /_liveness HTTP/1.1"
    status, received = await status_of(relay, sent)
    assert (status, received.count(b"HTTP/1.1 ")) == (200, 1)
    for line in ("GET /info", "POST /info", "POST /nothing", "OPTIONS /info", "POST /api/dms", "POST /%2F"):
        for fields in ("Content-Length: 40", "Transfer-Encoding: chunked"):
            status, received = await status_of(relay, head(line, fields))
            assert status in (200, 404, 405, 415)
            assert b"\r\nconnection: close\r\n" in received.lower(), line
    # Where nothing is left, the connection goes on.
    for fields, body in (("Content-Length: 2", b"{}"), ("Content-Length: 0", b""), ("X: y", b"")):
        async with await dial(relay) as stream:
            await stream.send_all(head("POST /api/events", fields) + body)
            assert (await one_answer(stream))[0] == 401
            await stream.send_all(head("GET /_liveness"))
            assert await one_answer(stream) == (200, b"ok")


# -- HTTP/2 -----------------------------------------------------------------------------------------------------------


class Http2:
    """A client of HTTP/2 with prior knowledge, which does not keep to the server's limits."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
        self.events: list[h2.events.Event] = []

    async def start(self) -> None:
        self.connection.initiate_connection()
        await self.flush()
        await self.until(lambda event: isinstance(event, h2.events.RemoteSettingsChanged))
        # What the server has announced; our own library would refuse to send more.
        self.announced = self.connection.remote_settings.max_header_list_size

    async def flush(self) -> None:
        await self.stream.send_all(self.connection.data_to_send())

    async def until(self, wanted: Callable[[h2.events.Event], bool]) -> h2.events.Event | None:
        """The first event of this sort, new or old; None at the end of the connection."""
        with trio.fail_after(SECONDS):
            while True:
                for event in self.events:
                    if wanted(event):
                        self.events.remove(event)
                        return event
                try:
                    data = await self.stream.receive_some()
                except trio.BrokenResourceError:
                    data = b""
                if not data:
                    return None
                self.events += self.connection.receive_data(data)
                if data := self.connection.data_to_send():
                    try:
                        await self.stream.send_all(data)
                    except trio.BrokenResourceError:
                        return None

    async def request(self, method: str, path: str, *fields: tuple[str, str], end: bool = True) -> int:
        number = self.connection.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x")]
        self.connection.send_headers(number, [*pseudo, *fields], end_stream=end)
        await self.flush()
        return number

    async def status(self, number: int) -> int:
        """The status of the answer on this stream; 0 where it, or the connection, was ended without one."""

        def about(event: h2.events.Event) -> bool:
            kinds = (h2.events.ResponseReceived, h2.events.StreamReset)
            return isinstance(event, h2.events.ConnectionTerminated) or (
                isinstance(event, kinds) and event.stream_id == number
            )

        event = await self.until(about)
        if not isinstance(event, h2.events.ResponseReceived):
            return 0
        return int(dict(event.headers)[b":status"])


async def http2(relay: Launched) -> Http2:
    client = Http2(await dial(relay))
    await client.start()
    return client


async def test_heads_over_http_2(relay: Launched) -> None:
    client = await http2(relay)
    assert client.announced == HEAD_BYTES
    assert await client.status(await client.request("GET", "/_liveness")) == 200
    # Too many: refused in words, and the connection goes on.
    many = [(f"x{number}", "") for number in range(HEADER_LINES_MAX)]
    assert await client.status(await client.request("GET", "/_liveness", *many)) == 431
    assert await client.status(await client.request("GET", "/_liveness", *many[:90])) == 200
    await client.stream.aclose()
    for path, fields, size in (
        ("/_liveness", [("x", "y" * 1024)], HEAD_BYTES),  # small on the wire: compressed to an index each
        ("/", [("x", "y" * 1024)], 5 * HEAD_BYTES),
        ("/" + "x" * HEAD_BYTES, [], 0),
    ):
        client = await http2(relay)
        repeated = fields * (size // 1024)
        # Beyond what the parser reads at all: the end of the connection, as the table of compression is out of step.
        expected = 431 if size <= HEAD_BYTES else 0
        assert await client.status(await client.request("GET", path, *repeated)) == expected
        await client.stream.aclose()
    await lives(relay)


async def test_bodies_over_http_2(relay: Launched) -> None:
    client = await http2(relay)
    declared = await client.request("POST", "/api/events", ("content-length", str((1 << 20) + 1)), end=False)
    assert await client.status(declared) == 413
    slow = await client.request("POST", "/api/events", end=False)
    started = trio.current_time()
    assert await client.status(slow) == 408
    assert BODY_SECONDS - 0.1 <= trio.current_time() - started < BODY_SECONDS * 3
    assert await client.status(await client.request("GET", "/_liveness")) == 200
    await client.stream.aclose()
    await lives(relay)
