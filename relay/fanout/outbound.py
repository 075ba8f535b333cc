"""The way out of a connection, as its owner and trio-websocket see it.

Flows in: ready-made frames (`offer`, `offer_many`, `put`, `put_many`) and the bytes that trio-websocket writes itself
through `send_all` (handshake, pong, close). Flows out: bytes on the socket; what comes in is passed through unread.
The connection's task owns it and closes it. Order, bounds and the flush task are in `writer`.

    async with trio.open_nursery() as nursery:
        outbound = Outbound(stream, nursery, on_close=...)          # on_close cancels the scope around the receive loop
        request = await wrap_server_stream(nursery, outbound)
        ...
        await outbound.flushed(1.0)                                 # then the Close, which forfeits what still waits
        await websocket.aclose(1012, "restarting")
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from relay.fanout.backlog import Frame
from relay.fanout.limits import CloseReason, Limit, OutboundLimits, OutboundStatistics
from relay.fanout.linger import linger
from relay.fanout.writer import FrameWriter, State

__all__ = ["CloseReason", "Frame", "Limit", "Outbound", "OutboundLimits", "OutboundStatistics"]

# First bytes of unfragmented control frames (RFC 6455 §5.2). No part of a handshake begins with them.
CLOSE_HEAD = 0x88
PONG_HEAD = 0x8A


class Outbound(FrameWriter, trio.abc.Stream):
    """The only writer of `stream`, whose socket it also closes.

    `handler_nursery` is the connection's own: the flush task runs and ends there. `on_close` is called at most once,
    synchronously, by whichever task notices (often the fan-out task): it must neither raise nor wait; it is not called
    for `aclose`. `clock` gives seconds and is only compared with itself."""

    __slots__ = ("__weakref__", "_stream")

    def __init__(
        self,
        stream: trio.SocketStream,
        handler_nursery: trio.Nursery,
        *,
        limits: OutboundLimits | None = None,
        on_close: Callable[[CloseReason], None],
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        super().__init__(stream.socket, handler_nursery, limits or OutboundLimits(), on_close, clock)
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write what trio-websocket made: exactly one frame, or a part of the handshake.

        A pong goes before waiting data and replaces a waiting pong. A Close forfeits waiting data, and its send ends
        when the kernel has it (trio-websocket closes the socket right after). The rest waits for room like a reply.
        Raises trio.ClosedResourceError after a Close or `aclose`, trio.BrokenResourceError when the peer is gone."""
        frame = bytes(data)
        head = frame[0] if frame else 0
        if head == CLOSE_HEAD:
            await self._send_close(frame)
        elif self._state >= State.CLOSING:
            await trio.lowlevel.checkpoint()
            # A ping that crossed our Close needs no answer; an error would make trio-websocket give up the handshake.
            if self._state is State.GONE or head != PONG_HEAD:
                raise trio.ClosedResourceError("a Close was sent")
        elif head == PONG_HEAD:
            await trio.lowlevel.checkpoint_if_cancelled()
            # RFC 6455 §5.5.3 lets a pong answer only the latest ping, so that a flood of pings costs one slot.
            self._send_urgent(frame, replace=True)
            await trio.lowlevel.cancel_shielded_checkpoint()
        elif frame:
            await self.put(frame)
        else:
            await trio.lowlevel.checkpoint()

    async def _send_close(self, frame: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._state >= State.CLOSING:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise trio.ClosedResourceError("a Close was sent")
        self._state = State.CLOSING
        self._backlog.forfeit()
        self._waiting.fail()
        self._send_urgent(frame)
        while self._backlog:
            await self._drained.wait()
        await trio.lowlevel.cancel_shielded_checkpoint()
        if self._state is State.GONE:
            raise trio.BrokenResourceError("the peer is gone")

    async def wait_send_all_might_not_block(self) -> None:
        while self._backlog:
            await self._drained.wait()
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close the socket; what waits is lost (see `flushed`). After a Close frame, first wait shortly for the peer.

        Cancellation: the socket is closed at once."""
        said_goodbye = self._state is State.CLOSING and not self._backlog
        self._on_close = None
        self._become_gone()
        try:
            if said_goodbye:
                await linger(self._stream)
        finally:
            await self._stream.aclose()
