"""The way out of a connection, as its owner sees it.

Flows in: ready-made frames (`offer`, `offer_many`, `put`, `put_many`), pongs and the Close. Flows out: bytes on the
socket; what comes in is not read here. The connection's task owns it and closes it. Order, bounds and the flush task
are in `writer`.

    async with trio.open_nursery() as nursery:
        outbound = Outbound(stream, nursery, on_close=...)          # on_close cancels the scope around the receive loop
        ...
        await outbound.flushed(1.0)                                 # then the Close, which forfeits what still waits
        await outbound.send_close(close_frame(1012, "restarting"))
        await outbound.aclose()
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from relay.fanout.backlog import Frame
from relay.fanout.limits import CloseReason, Limit, OutboundLimits, OutboundStatistics
from relay.fanout.linger import linger
from relay.fanout.writer import FrameWriter, State

__all__ = ["CloseReason", "Frame", "Limit", "Outbound", "OutboundLimits", "OutboundStatistics"]


class Outbound(FrameWriter, trio.abc.AsyncResource):
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

    def pong(self, frame: bytes) -> None:
        """Write or queue the answer to a ping, before waiting data; nothing once the connection is ending.

        RFC 6455 §5.5.3 lets a pong answer only the latest ping, so that a flood of pings costs one slot."""
        if self._state < State.CLOSING:
            self._send_urgent(frame, replace=True)

    async def send_close(self, frame: bytes) -> None:
        """Write a Close frame, the last one; waiting data is forfeit. Ends when the kernel has it.

        Raises trio.ClosedResourceError after another Close or `aclose`, trio.BrokenResourceError when the peer is gone.
        """
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
        """Until nothing waits for the client, or nothing will leave any more."""
        while self._backlog:
            await self._drained.wait()
        await trio.lowlevel.checkpoint()

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
