"""RFC 6455 on the wire, behind the real listener: the cases of the Autobahn suite, as a table.

Each case is what a client sends after the handshake, and all that it gets before the server closes. The server echoes
text behind the peer's address, and binary messages as they are.
"""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from relay.nostr.messages import ws_frame
from tests.websocket.process import END, HANDSHAKE, EchoServer, read_all
from tests.websocket.test_frames import FIRST, NOT_UTF8, VIOLATIONS, close, frame

BYE = close(1000)


def echo(text: str) -> bytes:
    return ws_frame(f"127.0.0.1 {text}".encode())


def closing(code: int, reason: str = "") -> bytes:
    return ws_frame(code.to_bytes(2, "big") + reason.encode(), 8)


def ping(payload: bytes) -> bytes:
    return frame(payload, 9)


def pong(payload: bytes) -> bytes:
    return ws_frame(payload, 10)


# What is sent, and what comes back.
CASES: dict[str, tuple[bytes, bytes]] = {
    "1 empty text": (frame() + BYE, echo("") + closing(1000)),
    "1 text of 65535": (frame(b"*" * 65_535) + BYE, echo("*" * 65_535) + closing(1000)),
    "1 text of 65536": (frame(b"*" * 65_536) + BYE, echo("*" * 65_536) + closing(1000)),
    "1 empty binary": (frame(b"", 2) + BYE, ws_frame(b"", 2) + closing(1000)),
    "1 binary": (frame(b"\xfe" * 128, 2) + BYE, ws_frame(b"\xfe" * 128, 2) + closing(1000)),
    "2 ping": (ping(b"") + ping(b"Hello") + BYE, pong(b"") + pong(b"Hello") + closing(1000)),
    "2 ping of 125 bytes": (ping(b"\xfe" * 125) + BYE, pong(b"\xfe" * 125) + closing(1000)),
    "2 unsolicited pong": (frame(b"x", 10) + ping(b"y") + BYE, pong(b"y") + closing(1000)),
    "2 ten pings": (
        b"".join(ping(b"%d" % number) for number in range(10)) + BYE,
        b"".join(pong(b"%d" % number) for number in range(10)) + closing(1000),
    ),
    "3 reserved bits after a good message": (
        frame(b"good") + frame(b"bad", reserved=0x20) + frame(b"unread"),
        echo("good") + closing(1002, "Reserved bit set unexpectedly"),
    ),
    "5 two fragments": (FIRST + frame(b"b", 0) + BYE, echo("ab") + closing(1000)),
    "5 ping between fragments": (FIRST + ping(b"p") + frame(b"b", 0) + BYE, pong(b"p") + echo("ab") + closing(1000)),
    "5 empty fragments": (
        frame(final=False) + frame(b"x", 0, final=False) + frame(opcode=0) + BYE,
        echo("x") + closing(1000),
    ),
    "5 messages one after the other": (
        (FIRST + frame(b"b", 0)) * 2 + frame(b"c") + BYE,
        echo("ab") * 2 + echo("c") + closing(1000),
    ),
    "6 text": (frame("Hello-µ@ßöäüàá-UTF-8!!".encode()) + BYE, echo("Hello-µ@ßöäüàá-UTF-8!!") + closing(1000)),
    "6 the last characters": (frame("\U0010ffff\ufffe\0".encode()) + BYE, echo("\U0010ffff\ufffe\0") + closing(1000)),
    "7 Close twice": (BYE + BYE, closing(1000)),
    "7 text after the Close": (BYE + frame(b"late"), closing(1000)),
    "7 ping after the Close": (BYE + ping(b"late"), closing(1000)),
    "7 Close in the middle of a message": (FIRST + BYE, closing(1000)),
    "7 Close without a code": (frame(b"", 8), ws_frame(b"", 8)),
    "7 Close with a reason": (close(1000, b"Hello"), closing(1000, "Hello")),
    "7 Close with the longest reason": (close(1000, b"*" * 123), closing(1000, "*" * 123)),
    "7 Close with a code of the application": (close(4999), closing(4999)),
    "7 Close because of our message": (close(1009), closing(1009)),
    "7 Close with a code that is none": (close(1005), closing(1002, "CLOSE with invalid code")),
}
CASES |= {f"3 {name}": (data, closing(1002, reason)) for name, (data, reason) in VIOLATIONS.items()}


@pytest.fixture(scope="module")
def server():
    echo_server = EchoServer()
    yield echo_server
    _, errors, _ = echo_server.stop()
    assert errors == ""


def shake_hands(server: EchoServer, more: bytes = b"") -> socket.socket:
    sock = server.connect()
    sock.sendall(HANDSHAKE + END + more)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.split(b"\r\n")[0] == b"HTTP/1.1 101 Switching Protocols"
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
    return sock


def talk(server: EchoServer, sent: bytes, *, chunk: int = 1 << 20) -> bytes:
    with shake_hands(server) as sock:
        for start in range(0, len(sent), chunk):
            sock.sendall(sent[start : start + chunk])
        return read_until_close(sock)


def read_until_close(sock: socket.socket) -> bytes:
    """All that comes until the server ends its half; then we end ours, as a client does."""
    received = bytearray()
    while data := sock.recv(1 << 16):
        received += data
    return bytes(received)


@pytest.mark.parametrize("name", CASES)
def test_each_case(server, name):
    sent, expected = CASES[name]
    assert talk(server, sent) == expected


@pytest.mark.parametrize("name", [name for name, (sent, _) in CASES.items() if len(sent) < 300])
def test_each_case_byte_by_byte(server, name):
    sent, expected = CASES[name]
    with shake_hands(server) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):  # what stands behind the fault is not waited for
            for byte in sent:
                sock.sendall(bytes([byte]))
        assert read_all(sock) == expected


@pytest.mark.parametrize("payload", NOT_UTF8)
def test_text_that_is_none_is_a_1007(server, payload):
    answer = talk(server, frame(b"good") + frame(payload))
    assert answer.startswith(echo("good") + b"\x88")
    assert answer[len(echo("good")) + 2 :][:2] == (1007).to_bytes(2, "big")


def test_frames_in_the_packet_of_the_handshake_are_answered(server):
    with shake_hands(server, frame(b"early") + ping(b"p") + BYE) as sock:
        assert read_until_close(sock) == echo("early") + pong(b"p") + closing(1000)


def test_a_message_in_pieces_behind_the_handshake(server):
    whole = frame(b"early")
    with shake_hands(server, whole[:3]) as sock:
        sock.sendall(whole[3:] + BYE)
        assert read_until_close(sock) == echo("early") + closing(1000)


def test_a_client_that_sends_much_at_once_leaves_others_their_turn(server):
    """A megabyte of pongs, which have no answer, keeps nobody from being served."""
    flood = frame(b"", 10) * 200_000
    with shake_hands(server) as busy, shake_hands(server) as other:
        busy.setblocking(False)
        slowest, sent = 0.0, 0
        while sent < len(flood):
            with contextlib.suppress(BlockingIOError):
                sent += busy.send(flood[sent : sent + 500_000])
            began = time.monotonic()
            other.sendall(frame(b"x"))
            assert other.recv(100) == echo("x")
            slowest = max(slowest, time.monotonic() - began)
        busy.setblocking(True)
        busy.sendall(BYE)
        assert read_until_close(busy) == closing(1000)
    assert slowest < 0.5  # nothing like the whole flood
