"""The load generator's WebSocket client: blocking for the handshake, epoll for the load.

Frames are masked with the key 0, which RFC 6455 allows and which leaves the payload as it is: masking in Python would
cost more than the relay's share of the work.
"""

from __future__ import annotations

import base64
import secrets
import select
import socket
import time
from collections.abc import Callable, Iterable

import orjson

from relay.nostr.event import Event, sign_event
from relay.nostr.keys import SecretKey


def masked(payload: bytes) -> bytes:
    """One text frame from a client."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, 0x80 | size)) + b"\0\0\0\0" + payload
    if size < 65536:
        return b"\x81\xfe" + size.to_bytes(2, "big") + b"\0\0\0\0" + payload
    return b"\x81\xff" + size.to_bytes(8, "big") + b"\0\0\0\0" + payload


def split_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """(payloads of the whole frames in `data`, what is left)."""
    frames, at, end = [], 0, len(data)
    while end - at >= 2:
        size, head = data[at + 1], 2
        if size == 126:
            if end - at < 4:
                break
            size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        elif size == 127:
            if end - at < 10:
                break
            size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
        if end - at < head + size:
            break
        if data[at] & 15 == 1:
            frames.append(data[at + head : at + head + size])
        at += head + size
    return frames, data[at:]


def key(number: int) -> SecretKey:
    """The key of client `number`; the same in every run."""
    return SecretKey.from_hex(f"{0xBE0000 + number:064x}")


def event(secret: SecretKey, kind: int, content: str = "", tags: list[list[str]] | None = None) -> Event:
    return sign_event(secret, created_at=int(time.time()), kind=kind, tags=tags or [], content=content)


class Client:
    """One logged-in connection."""

    def __init__(self, host: str, port: int, secret: SecretKey, *, login: bool = True) -> None:
        self.secret = secret
        self.rest = b""
        self.relay_url = f"ws://{host}:{port}"
        self.sock = socket.create_connection((host, port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(20)
        nonce = base64.b64encode(secrets.token_bytes(16)).decode()
        self.sock.sendall(
            f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {nonce}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        if login:
            self.answer_challenge()
            ok = self.read("OK")
            assert ok[2], ok

    def answer_challenge(self) -> None:
        """Reads the end of the handshake and the challenge, and sends the AUTH."""
        head = b""
        while b"\r\n\r\n" not in head:
            more = self.sock.recv(65536)
            assert more, head
            head += more
        assert b" 101 " in head.split(b"\r\n", 1)[0], head
        self.rest = head.split(b"\r\n\r\n", 1)[1]
        challenge = self.read("AUTH")[1]
        answer = event(self.secret, 22242, tags=[["relay", self.relay_url], ["challenge", str(challenge)]])
        self.send(b'["AUTH",' + answer.json + b"]")

    def send(self, payload: bytes) -> None:
        self.sock.sendall(masked(payload))

    def read(self, verb: str) -> list[object]:
        """The next message that begins with `verb`; others are passed over."""
        while True:
            frames, self.rest = split_frames(self.rest)
            for number, frame in enumerate(frames):
                message = orjson.loads(frame)
                if message[0] == verb:
                    left = b"".join(_frame(other) for other in frames[number + 1 :])
                    self.rest = left + self.rest
                    return message
            more = self.sock.recv(1 << 20)
            assert more, "the relay closed the connection"
            self.rest += more

    def publish(self, published: Event) -> str:
        """Sends one event and waits for its OK."""
        self.send(b'["EVENT",' + published.json + b"]")
        ok = self.read("OK")
        assert ok[2], ok
        return str(ok[3])

    def close(self) -> None:
        self.sock.close()


def connect(host: str, port: int, numbers: Iterable[int], *, at_once: int = 100) -> list[Client]:
    """Logged-in clients with the keys of these numbers, `at_once` of them on the way at a time."""
    wanted = list(numbers)
    clients: list[Client] = []
    for start in range(0, len(wanted), at_once):
        group = [Client(host, port, key(number), login=False) for number in wanted[start : start + at_once]]
        for client in group:
            client.answer_challenge()
        for client in group:
            ok = client.read("OK")
            assert ok[2], ok
        clients += group
    return clients


def _frame(payload: bytes) -> bytes:
    return b"\x81\x7f" + len(payload).to_bytes(8, "big") + payload


class Poller:
    """Reads from many clients and calls `on_data(client, bytes)`."""

    def __init__(self, clients: Iterable[Client], on_data: Callable[[Client, bytes], None]) -> None:
        self._epoll = select.epoll()
        self._by_fd = {}
        self._on_data = on_data
        for client in clients:
            client.sock.setblocking(False)
            self._by_fd[client.sock.fileno()] = client
            self._epoll.register(client.sock.fileno(), select.EPOLLIN)

    def run_until(self, done: Callable[[], bool], seconds: float) -> None:
        """Polls until `done()`; AssertionError after `seconds`."""
        deadline = time.perf_counter() + seconds
        while not done():
            assert time.perf_counter() < deadline, "the relay did not answer in time"
            for fd, _ in self._epoll.poll(0.1):
                client = self._by_fd[fd]
                try:
                    data = client.sock.recv(1 << 18)
                except BlockingIOError:
                    continue
                assert data, "the relay closed a connection"
                self._on_data(client, data)

    def close(self) -> None:
        self._epoll.close()
        for client in self._by_fd.values():
            client.sock.setblocking(True)
