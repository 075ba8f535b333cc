"""The stream that trio-websocket is given: the outbound path, with what the library does not tell its user.

In: bytes of the client, read by trio-websocket's reader task. Out: those that it writes, through `Outbound`. On the way
the transport notes whether the reader waits for input and whether any came (the heartbeat asks), sees the end of the
input, and gets in between when the library closes because of a message that is too long, so that the client is told in
words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from relay.fanout.outbound import Outbound
from relay.websocket.endings import TOO_BIG

# The first four bytes of an unfragmented Close frame that carries 1009 depend only on its length, at index 1.
_CLOSE_HEAD = b"\x88"
_TOO_BIG = (1009).to_bytes(2, "big")
# The reasons that trio-websocket and `endings` give. A Close 1009 with another one answers the peer's own, which found
# a message of ours too long.
_OUR_REASONS = (b"Exceeded maximum message size", TOO_BIG.reason.encode())


class Transport(trio.abc.Stream):
    """Wraps an `Outbound`; `before_too_big` runs before a Close 1009 leaves, `on_end` once when the input has ended,
    `before_read` whenever the reader asks for more."""

    def __init__(
        self,
        stream: trio.SocketStream,
        outbound: Outbound,
        *,
        before_too_big: Callable[[], Awaitable[None]],
        on_end: Callable[[], None],
        before_read: Callable[[], None],
        discard_seconds: float,
    ) -> None:
        self._stream = stream
        self._outbound = outbound
        self._before_too_big = before_too_big
        self._on_end: Callable[[], None] | None = on_end
        self._before_read = before_read
        self._discard_seconds = discard_seconds
        self._discarding = False
        # The reader stands in `receive_some`: silence is the peer's. Otherwise we are the ones who do not listen.
        self.waiting = False
        # Bytes came since the heartbeat looked; it resets this.
        self.heard = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._discarding:
            await self._discard()
            return b""
        self._before_read()
        self.waiting = True
        try:
            data = await self._outbound.receive_some(max_bytes)
        except BaseException:
            self._ended()
            raise
        finally:
            self.waiting = False
        self.heard = True
        if not data:
            self._ended()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        frame = bytes(data[:64])
        refuses = frame[:1] == _CLOSE_HEAD and frame[2:4] == _TOO_BIG and frame[4:].startswith(_OUR_REASONS)
        if refuses and not self._discarding:
            # The rest of the message is still coming: closing the socket with unread input would make the kernel send
            # a reset, which can overtake the Close. So it is read and thrown away until the client has seen the Close.
            self._discarding = True
            await self._before_too_big()
        await self._outbound.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._outbound.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self._ended()
        await self._outbound.aclose()

    async def _discard(self) -> None:
        with trio.move_on_after(self._discard_seconds):
            try:
                await self._stream.send_eof()
                while await self._stream.receive_some(65536):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        self._ended()

    def _ended(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()
