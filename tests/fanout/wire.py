"""Two ends of a real connection: `Outbound` on the relay's, a plain stream and a frame parser on the client's."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from relay.fanout.outbound import CloseReason, Outbound, OutboundLimits
from relay.nostr.messages import ws_frame

CLOSE = ws_frame((1012).to_bytes(2, "big") + b"restarting", 8)
SMALL_BUFFER = 4096


def pong(payload: bytes) -> bytes:
    return ws_frame(payload, 10)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return self.now


@dataclass
class Pair:
    outbound: Outbound
    client: trio.SocketStream
    nursery: trio.Nursery
    reasons: list[CloseReason]
    closed: trio.Event
    clock: Clock | None
    received: bytearray = field(default_factory=bytearray)

    def fill(self, size: int = 1000, channel: str | None = None) -> int:
        """Offer frames of zeros until the kernel takes no more; how many were accepted, the queued one included."""
        frame, accepted = ws_frame(bytes(size)), 0
        while not self.outbound.statistics().queued_bytes:
            assert self.outbound.offer(frame, channel)
            accepted += 1
        return accepted

    async def read_frames(self, count: int) -> list[tuple[int, bytes]]:
        """The next `count` whole frames as (opcode, payload)."""
        frames: list[tuple[int, bytes]] = []
        while len(frames) < count:
            frames += take_frames(self.received, count - len(frames))
            if len(frames) < count:
                data = await self.client.receive_some(65536)
                assert data, f"the connection ended after {len(frames)} of {count} frames"
                self.received += data
        return frames

    async def read_until_close(self) -> list[tuple[int, bytes]]:
        frames: list[tuple[int, bytes]] = []
        while not frames or frames[-1][0] != 8:
            frames += await self.read_frames(1)
        return frames

    async def read_to_end(self) -> list[tuple[int, bytes]]:
        while data := await self.client.receive_some(65536):
            self.received += data
        frames = take_frames(self.received, 1 << 30)
        assert not self.received, "a frame was cut off"
        return frames


def take_frames(buffer: bytearray, count: int) -> list[tuple[int, bytes]]:
    """Take whole frames from the front of `buffer`; unmasked and unfragmented, as a relay sends them."""
    frames: list[tuple[int, bytes]] = []
    while len(frames) < count and len(buffer) >= 2:
        assert buffer[0] & 0xF0 == 0x80, f"no frame begins with {bytes(buffer[:4])!r}"
        start, size = 2, buffer[1]
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < max(start, start + size):
            break
        frames.append((buffer[0] & 15, bytes(buffer[start : start + size])))
        del buffer[: start + size]
    return frames


@asynccontextmanager
async def pair(
    *, limits: OutboundLimits | None = None, clock: Clock | None = None, buffer: int = SMALL_BUFFER, tcp: bool = False
) -> AsyncIterator[Pair]:
    """A connected pair with a small send buffer. At the end the nursery must be empty after the socket is closed."""
    near, far = await _tcp_pair() if tcp else trio.socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    reasons: list[CloseReason] = []
    closed = trio.Event()

    def on_close(reason: CloseReason) -> None:
        reasons.append(reason)
        closed.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, trio.SocketStream(far) as client:
            clocked = {"clock": clock} if clock is not None else {}
            outbound = Outbound(trio.SocketStream(near), nursery, limits=limits, on_close=on_close, **clocked)
            try:
                yield Pair(outbound, client, nursery, reasons, closed, clock)
            finally:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await outbound.aclose()
        # Leaving the nursery without cancelling it: a flush task that outlived its socket would hang here.


async def _tcp_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        far = trio.socket.socket()
        await far.connect(listener.getsockname())
        near, _ = await listener.accept()
    return near, far
