"""One server process, every kind of broken or hostile connection after the other: it lives and answers after each."""

from __future__ import annotations

import random
import socket
import struct

import pytest

from tests.websocket.process import END, HANDSHAKE, EchoServer, client_frame

CLOSE_1000 = client_frame(b"\x03\xe8", 8)


@pytest.fixture(scope="module")
def server():
    echo_server = EchoServer()
    yield echo_server
    statistics, errors, _ = echo_server.stop()
    assert errors == ""  # no traceback, no warning
    assert statistics["connections"] >= 2 * len(CASES)


def frames(*later: bytes, handshake: bytes = HANDSHAKE + END, reset: bool = False):
    """Shake hands, wait for the answer, then send each frame in a packet of its own."""

    def run(sock: socket.socket) -> None:
        sock.sendall(handshake)
        sock.recv(1024)
        for frame in later:
            sock.sendall(frame)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return run


def raw(data: bytes):
    return lambda sock: sock.sendall(data)


def get(extra: bytes = b"", line: bytes = b"GET / HTTP/1.1") -> bytes:
    return line + b"\r\nHost: x\r\n" + extra + END


def post(extra: bytes, body: bytes = b"") -> bytes:
    return get(extra, b"POST /ready HTTP/1.1") + body


def changed(old: bytes, new: bytes, behind: bytes = b"") -> bytes:
    assert old in HANDSHAKE
    return HANDSHAKE.replace(old, new) + END + behind


CASES = {
    "a well-behaved client": frames(client_frame(b"hi"), CLOSE_1000),
    "handshake and frame in one packet": frames(handshake=HANDSHAKE + END + client_frame(b"hi")),
    "data behind the close frame": frames(CLOSE_1000 + client_frame(b"hi")),
    "data after the close frame": frames(CLOSE_1000, client_frame(b"hi"), client_frame(b"hi")),
    "close of one byte": frames(client_frame(b"x", 8)),
    "close with a reserved code": frames(client_frame(struct.pack(">H", 1005), 8)),
    "unmasked frame": frames(client_frame(b"hi", masked=False)),
    "reserved bit": frames(client_frame(b"hi", reserved=0x40)),
    "unknown opcode": frames(client_frame(b"hi", 5)),
    "invalid UTF-8": frames(client_frame(b"\xff\xfe")),
    "invalid UTF-8 and more": frames(client_frame(b"\xff\xfe"), client_frame(b"hi")),
    "long control frame": frames(client_frame(b"a" * 126, 9)),
    "continuation of nothing": frames(client_frame(b"hi", 0)),
    "text continued as binary": frames(client_frame(b"hi", 1, final=False), client_frame(b"hi", 2)),
    "reset after the handshake": frames(client_frame(b"hi"), reset=True),
    "reset within a frame": frames(client_frame(b"hello")[:5], reset=True),
    "upgrade with a body": raw(HANDSHAKE + b"Content-Length: 5\r\n\r\nhello"),
    "bad version and more": raw(changed(b"13", b"12", b"XXXX")),
    "no key and more": raw(changed(b"Sec-WebSocket-Key", b"X-Key", b"more")),
    "upgrade in HTTP/1.0": raw(changed(b"HTTP/1.1", b"HTTP/1.0", b"zzz")),
    "connection without upgrade": raw(get(b"Connection: upgrade\r\n")),
    "h2c": raw(get(b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n")),
    "h2c without settings": raw(get(b"Connection: Upgrade\r\nUpgrade: h2c\r\n")),
    "h2c with bad settings": raw(get(b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: !!!\r\n")),
    "HTTP/2 preface and garbage": raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(50)),
    "garbage": raw(b"\x16\x03\x01\x02\x00" + random.Random(1).randbytes(200)),
    "bad content-length": raw(post(b"Content-Length: abc\r\n")),
    "huge header": raw(get(b"X: " + b"a" * 70_000 + b"\r\n")),
    "odd spacing and more": raw(changed(b"Upgrade: websocket", b"Upgrade:\t WebSocket ", client_frame(b"hi"))),
    "NIP-11 with an upgrade and more": raw(HANDSHAKE + b"Accept: application/nostr+json\r\n\r\n" + client_frame(b"hi")),
    "list of upgrades and more": raw(changed(b"Upgrade: websocket", b"Upgrade: foo, websocket", client_frame(b"hi"))),
    "no host": raw(b"GET /ready HTTP/1.1\r\n\r\n"),
    "absolute target": raw(get(line=b"GET http://x/ready HTTP/1.1")),
    "OPTIONS *": raw(get(line=b"OPTIONS * HTTP/1.1")),
    "percent junk": raw(get(line=b"GET /%ff%fe%00?%zz HTTP/1.1")),
    "three at once": raw(get(line=b"GET /ready HTTP/1.1") * 3),
    "cut-off chunk": raw(post(b"Transfer-Encoding: chunked\r\n", b"5\r\nab")),
    "bytes behind a request": raw(get(line=b"GET /ready HTTP/1.1") + b"XYZ\x00\x01"),
    "two lengths": raw(post(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\nzzz")),
    "expect 100": raw(post(b"Expect: 100-continue\r\nContent-Length: 3\r\n")),
    # beyond the forty that end or trouble an unprotected Hypercorn
    "upgrade on another path and more": raw(changed(b"GET / ", b"GET /other ", client_frame(b"hi"))),
    "later upgrade and more": raw(get(line=b"GET /ready HTTP/1.1") + HANDSHAKE + END + client_frame(b"hi")),
    "bare line feeds": raw((HANDSHAKE + END).replace(b"\r\n", b"\n")),
    "empty lines first": raw(b"\r\n\r\n" + HANDSHAKE + END),
    "folded upgrade": raw(changed(b"Upgrade: websocket", b"Upgrade:\r\n websocket", b"more")),
    "malformed host": raw(changed(b"Host: x", b"Host: xn--a", b"more")),
    "crashing app": raw(get(line=b"GET /crash HTTP/1.1")),
    "crashing handler": raw(changed(b"GET / ", b"GET /?crash ", client_frame(b"hi"))),
    "nothing": raw(b""),
    "random bytes": raw(random.Random(2).randbytes(30_000)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_server_answers_after(server, name):
    with server.connect() as sock:
        try:
            CASES[name](sock)
            sock.settimeout(0.05)
            sock.recv(4096)
        except OSError:  # the server may hang up on us, or wait for more
            pass
    assert server.process.poll() is None
    assert server.answers()
