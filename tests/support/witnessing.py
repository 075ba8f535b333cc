"""A log that is nowhere kept, to be witnessed, and a witness's port that says what a test wants it to say."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from relay.audit import note, tree
from relay.audit.note import Checkpoint
from relay.audit.tree import Span, Walk, leaf_hash, root_of
from relay.audit.witness import Request, request_body
from relay.nostr.keys import SecretKey

LOG_KEY = SecretKey.from_bytes(bytes([7]) * 32)
WITNESS_KEY = SecretKey.from_bytes(bytes([8]) * 32)


class MemoryLog:
    """Entries `0 … size - 1`; from `fork_at` on they are others than those of a log with another `branch`."""

    def __init__(
        self, size: int = 40, *, key: SecretKey = LOG_KEY, generation: int = 1, fork_at: int = 0, branch: str = ""
    ) -> None:
        self.key = key
        self.origin = note.origin_of(key.public_hex, generation)
        self._leaves = [leaf_hash(_entry(number, branch if number >= fork_at else "")) for number in range(size)]

    def root(self, size: int) -> bytes:
        return root_of(self._leaves[:size])

    def checkpoint(self, size: int, key: SecretKey | None = None) -> Checkpoint:
        return note.sign(self.origin, size, self.root(size), key or self.key)

    def proof(self, old: int, new: int) -> tuple[bytes, ...]:
        return tuple(self._drive(tree.consistency(old, new)))

    def request(self, old: int, new: int) -> Request:
        return Request(old, self.proof(old, new), self.checkpoint(new))

    def body(self, old: int, new: int) -> bytes:
        wanted = self.request(old, new)
        return request_body(wanted.old, wanted.proof, wanted.checkpoint)

    def _drive(self, walk: Walk) -> list[bytes]:
        try:
            span: Span = next(walk)
            while True:
                span = walk.send(root_of(self._leaves[span.begin : span.end]))
        except StopIteration as end:
            found: list[bytes] = end.value
            return found


def _entry(number: int, branch: str) -> bytes:
    return hashlib.sha256(f"{number} {branch}".encode()).digest()


Reply = tuple[int, str, bytes]
"""Status, content type, body."""


@dataclass
class WitnessPort:
    """A real HTTP server on loopback; `answer` makes its replies, `bodies` and `paths` are what it was asked."""

    answer: Callable[[bytes], Awaitable[Reply]]
    port: int = 0
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._converse, listeners)

    async def _converse(self, stream: trio.SocketStream) -> None:
        received = b""
        async with stream:
            # Closing on a client that has had enough is its right.
            with suppress(trio.BrokenResourceError):
                while True:
                    while b"\r\n\r\n" not in received:
                        received += (more := await stream.receive_some())
                        if not more:
                            return
                    head, _, received = received.partition(b"\r\n\r\n")
                    lines = head.decode().split("\r\n")
                    length = next(int(line[15:]) for line in lines if line.lower().startswith("content-length:"))
                    while len(received) < length:
                        received += await stream.receive_some()
                    body, received = received[:length], received[length:]
                    self.paths.append(lines[0].split(" ")[1])
                    self.bodies.append(body)
                    status, kind, text = await self.answer(body)
                    start = f"HTTP/1.1 {status} So\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n\r\n"
                    await stream.send_all(start.encode() + text)
