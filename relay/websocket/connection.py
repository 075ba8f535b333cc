"""The way in of a connection, and its closing handshake: one task reads, decodes and answers control frames.

In: the socket and what was read from it behind the request head. Out: messages, one by one (`receive`); pongs and the
Close, through `Outbound`. All of it runs in the connection's task: there is no reader beside it, so nothing is read
while a message is handled, and TCP holds the client back.

Reads are large: what a client sent meanwhile costs one wake-up, and its messages are handed out without a switch to
another task, until the turn is over.

The heartbeat asks whether the task waits for input (`waiting`) and whether any came (`heard`).
"""

from __future__ import annotations

import os
from time import perf_counter

import trio

from relay.fanout.outbound import Outbound
from relay.nostr.messages import ws_frame
from relay.websocket.frames import Control, Decoder, Opcode, TooLong, TooManyFragments, Violation, close_frame

__all__ = ["Connection"]

# The largest read; messages are far smaller, so it holds what a fast client sent while others had their turn.
RECEIVE_BYTES = 64 << 10
# How long a connection may keep the loop to itself while its input lasts: some twenty EVENTs, two thousand pongs.
TURN_SECONDS = 0.002


class Connection:
    """The input of one WebSocket; its output goes through `outbound`. Everything but the two flags is the owner's."""

    __slots__ = (
        "_answer", "_decoder", "_fileno", "_outbound", "_peer_closed", "_stream", "_turn_ends", "heard", "waiting"
    )  # fmt: skip

    def __init__(self, stream: trio.SocketStream, outbound: Outbound, decoder: Decoder, early: bytes = b"") -> None:
        """`early`: what was read behind the request head."""
        self._stream = stream
        # Asked at every read, never remembered: after a close the number soon belongs to another connection.
        self._fileno = stream.socket.fileno
        self._outbound = outbound
        self._decoder = decoder
        if early:
            decoder.feed(early)
        self._turn_ends = perf_counter() + TURN_SECONDS
        # The Close that the peer is owed: an echo of its own, or what it did wrong.
        self._answer: bytes | None = None
        self._peer_closed = False
        # The task stands before the socket: silence is the peer's. Otherwise we are the ones who do not listen.
        self.waiting = False
        # Bytes came since the heartbeat looked; it resets this.
        self.heard = True

    async def receive(self) -> str | bytes | None:
        """The next message; None when the peer has ended the connection or broken the protocol: then `part`.

        A checkpoint only where input is waited for, or the turn is over. Raises TooLong, TooManyFragments.
        Cancellation: a message that was in hand is lost."""
        try:
            while True:
                item = self._decoder.next_item()
                if item is None:
                    data = await self._read()
                    if not data:
                        return None
                    self._decoder.feed(data)
                    continue
                if perf_counter() >= self._turn_ends:
                    await trio.lowlevel.checkpoint()
                    self._turn_ends = perf_counter() + TURN_SECONDS
                if not isinstance(item, Control):
                    return item
                if item.opcode == Opcode.PING:
                    self._outbound.pong(ws_frame(item.payload, Opcode.PONG))
                elif item.opcode == Opcode.CLOSE:
                    self._peer_closed = True
                    self._answer = ws_frame(item.payload, Opcode.CLOSE)
                    return None
        except Violation as violation:
            self._answer = close_frame(violation.code, violation.reason)
            return None

    async def part(self) -> None:
        """The end where the peer wanted it or made it necessary: answers with a Close where one is due.

        After an end of input nothing is closed here: the peer may still read what waits for it."""
        answer, self._answer = self._answer, None
        if answer is not None:
            await self._outbound.send_close(answer)
            await self._outbound.aclose()

    async def close(self, code: int, reason: str) -> None:
        """Ends the connection from our side: our Close, then the peer's. The caller sets the deadline, and closes.

        Raises trio.ClosedResourceError or trio.BrokenResourceError where no Close can leave any more."""
        await self._outbound.send_close(close_frame(code, reason))
        try:
            while await self.receive() is not None:
                pass
        except (TooLong, TooManyFragments):
            pass  # no matter any more
        if not self._peer_closed:  # otherwise it sends nothing more, and waits for the end of the socket
            await self._outbound.aclose()

    async def close_unread(self, code: int, reason: str, seconds: float) -> None:
        """The same in the middle of a message whose rest is still coming: it is read and thrown away, for `seconds`.

        Closing the socket with unread input would make the kernel send a reset, which can overtake the Close."""
        await self._outbound.send_close(close_frame(code, reason))
        with trio.move_on_after(seconds):
            try:
                await self._stream.send_eof()
                while await self._stream.receive_some(RECEIVE_BYTES):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        await self._outbound.aclose()

    async def _read(self) -> bytes:
        """What has come, at least one byte; b"" when nothing will come any more."""
        while (descriptor := self._fileno()) >= 0:
            self.waiting = True
            try:
                # First the wait: a client that is not in a hurry has sent nothing yet, and asking costs a call.
                await trio.lowlevel.wait_readable(descriptor)
                data = os.read(self._fileno(), RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                return b""  # reset by the peer, or closed by us
            finally:
                self.waiting = False
            self.heard = True
            self._turn_ends = perf_counter() + TURN_SECONDS
            return data
        return b""
