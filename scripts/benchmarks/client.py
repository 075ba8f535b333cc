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
    """One connection, logged in unless `login` is off."""

    def __init__(
        self, host: str, port: int, secret: SecretKey, *, login: bool = True, path: str = "/", buffer_bytes: int = 0
    ) -> None:
        """`buffer_bytes` bounds what the kernel takes in for a client that does not read; 0 leaves it to the kernel."""
        self.secret = secret
        self.rest = b""
        self.relay_url = f"ws://{host}:{port}{path.rstrip('/')}"
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        try:
            self.sock.connect((host, port))
        except OSError:
            self.sock.close()
            raise
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(20)
        nonce = base64.b64encode(secrets.token_bytes(16)).decode()
        self.sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {nonce}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        if login:
            self.answer_challenge()
            ok = self.read("OK")
            assert ok[2], ok

    def finish_upgrade(self) -> None:
        """Reads the end of the handshake."""
        head = b""
        while b"\r\n\r\n" not in head:
            more = self.sock.recv(65536)
            assert more, head
            head += more
        assert b" 101 " in head.split(b"\r\n", 1)[0], head
        self.rest = head.split(b"\r\n\r\n", 1)[1]

    def answer_challenge(self) -> None:
        """Reads the end of the handshake and the challenge, and sends the AUTH."""
        self.finish_upgrade()
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
                message: list[object] = orjson.loads(frame)
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


def connect(
    host: str,
    port: int,
    keys: Iterable[int | SecretKey],
    *,
    at_once: int = 100,
    path: str = "/",
    login: bool = True,
) -> list[Client]:
    """Clients with these keys, or those of these numbers, `at_once` of them on the way at a time."""
    wanted = [each if isinstance(each, SecretKey) else key(each) for each in keys]
    clients: list[Client] = []
    for start in range(0, len(wanted), at_once):
        group = [Client(host, port, secret, login=False, path=path) for secret in wanted[start : start + at_once]]
        for client in group:
            client.answer_challenge() if login else client.finish_upgrade()
        for client in group if login else ():
            ok = client.read("OK")
            assert ok[2], ok
        clients += group
    return clients


def _frame(payload: bytes) -> bytes:
    return b"\x81\x7f" + len(payload).to_bytes(8, "big") + payload


class Poller:
    """Reads from many clients: `on_data(client, bytes)`, and of those that are only counted `on_size(client, size)`."""

    def __init__(
        self,
        clients: Iterable[Client],
        on_data: Callable[[Client, bytes], None],
        *,
        counted: Iterable[Client] = (),
        on_size: Callable[[Client, int], None] = lambda _client, _size: None,
    ) -> None:
        self._epoll = select.epoll()
        self._by_fd: dict[int, Client] = {}
        self._counted: dict[int, Client] = {}
        self._on_data = on_data
        self._on_size = on_size
        # One buffer for all that is only counted: a fresh one of this size for each read costs more than the read.
        self._buffer = bytearray(1 << 18)
        for by_fd, group in ((self._by_fd, clients), (self._counted, counted)):
            for client in group:
                client.sock.setblocking(False)
                by_fd[client.sock.fileno()] = client
                self._epoll.register(client.sock.fileno(), select.EPOLLIN)

    def run_until(self, done: Callable[[], bool], seconds: float) -> None:
        """Polls until `done()`; AssertionError after `seconds`."""
        deadline = time.perf_counter() + seconds
        while not done():
            assert time.perf_counter() < deadline, "the relay did not answer in time"
            self.poll(0.1)

    def poll(self, seconds: float) -> None:
        """One look at all sockets, waiting at most `seconds` for the first."""
        counted, buffer = self._counted, self._buffer
        for fd, _ in self._epoll.poll(seconds):
            client = counted.get(fd)
            try:
                if client is not None:
                    size = client.sock.recv_into(buffer)
                    assert size, "the relay closed a connection"
                    self._on_size(client, size)
                    continue
                client = self._by_fd[fd]
                data = client.sock.recv(1 << 16)
            except BlockingIOError:
                continue
            assert data, "the relay closed a connection"
            self._on_data(client, data)

    def close(self) -> None:
        self._epoll.close()
        for client in (*self._by_fd.values(), *self._counted.values()):
            client.sock.setblocking(True)
