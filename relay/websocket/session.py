"""One WebSocket connection, from the answer to its handshake to the Close.

In: the accepted stream of one client, whose request has been read. Out: replies and events through its `Outbound`. The
connection's task (started by the listener) runs `Session.run`: it takes message by message from its `Connection`,
handles each before it takes the next, and closes. Other tasks touch the session only through synchronous calls: the
commit task resolves OKs, the fan-out task offers events, the heartbeat ticks, the endpoint ends it. What a message
means is in `handlers` and `requests`.

    nursery of the connection
    ├── this task        reads, decodes, handles; then the close
    └── flush task       only while the kernel's buffer is full

Rules
-----
1. A message is handled to its end before the next one is taken, except that EVENTs may wait for their commits together.
   So a slow handler stops the reading: TCP holds the client back, nobody else.
2. Ends come as data: whoever wants an end calls `end`. It cancels the receiving at once, and what is being handled only
   when the time to flush is over. This task alone speaks the Close.
3. Whatever happens, the hub forgets the connection and the socket is closed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import trio

from relay import metrics
from relay.access.authenticate import Authenticator
from relay.access.directory import Directory
from relay.access.identity import Caller
from relay.access.token_watch import Why
from relay.config import Settings
from relay.fanout.hub import Hub
from relay.fanout.outbound import CloseReason, Frame, Outbound, OutboundLimits
from relay.ingest.pipeline import Ingest
from relay.nostr.messages import closed, notice, ws_frame
from relay.nostr.session import Phase, SessionState
from relay.query.replay import Database
from relay.websocket import endings, handlers
from relay.websocket.connection import Connection
from relay.websocket.endings import Ending
from relay.websocket.frames import Decoder, TooLong, TooManyFragments
from relay.websocket.heartbeat import Pulse
from relay.websocket.limits import Limits
from relay.websocket.replies import Replies
from relay.websocket.shares import Shares

log = structlog.get_logger(__name__)

# A client that cuts the longest message into pieces of 32 bytes needs as many.
FRAGMENTS_MAX = 4096
# How many messages are handled between two looks at what waits for the client.
OUTBOUND_LOOK_MESSAGES = 32


@dataclass(frozen=True, slots=True)
class Services:
    """What all sessions share. `now_us`: the wall clock in microseconds. `draining`: whether the relay is stopping.

    `logged_in` is told of every caller, as soon as `end_identity` of its session can reach it.
    """

    settings: Settings
    hub: Hub
    ingest: Ingest
    authenticator: Authenticator
    directory: Directory
    pool: Database
    limits: Limits
    shares: Shares
    now_us: Callable[[], int]
    draining: Callable[[], bool]
    logged_in: Callable[[Caller], None]


class Session:
    """The server's side of one connection; a `Peer` of the hub."""

    def __init__(self, services: Services, stream: trio.SocketStream, peer: str, early: bytes = b"") -> None:
        """`early`: what the client sent behind its request."""
        settings = services.settings
        self.services = services
        self.peer = peer
        self.state: SessionState[Caller] = SessionState(secrets.token_hex(32), settings.relay_url)
        self.caller: Caller | None = None
        self.outbound: Outbound
        self.replies = Replies(self._offer_reply, settings.max_pending_events)
        self.messages = services.limits.messages()
        self.place = services.limits.gate.place()
        self._stream = stream
        self._early = early
        self._connection: Connection
        self._pulse: Pulse
        self._open = False
        # Around everything between handshake and close; around the receive loop. The latter is cancelled only while no
        # message is being handled.
        self._work = trio.CancelScope()
        self._receiving = trio.CancelScope()
        self._handling = False
        # Set by the first `end`; `_end_wanted` wakes a session that has stopped reading and waits for its end.
        self._ending: Ending | None = None
        self._end_wanted = trio.Event()
        self._stop_reading = False
        # Frames that go out between what is queued and the Close.
        self._last_words: list[bytes] = []
        # Absolute times: until when queued frames may leave, and when the connection is given up.
        self._flush_deadline = 0.0
        self._close_deadline = 0.0

    # -- the connection's task ---------------------------------------------------------------------------------------

    async def run(self, switch: bytes) -> None:
        """Serves the connection to its end; `switch` is the answer to the handshake, and goes first, with the greeting.

        Cancellation: the socket is closed at once.
        """
        try:
            async with trio.open_nursery() as nursery:
                await self._serve(nursery, switch)
        finally:
            self.services.hub.disconnect(self)
            self._stream.socket.close()

    async def _serve(self, nursery: trio.Nursery, switch: bytes) -> None:
        settings = self.services.settings
        limits = OutboundLimits(settings.send_buffer, settings.send_buffer_bytes, settings.send_stall_seconds)
        self.outbound = Outbound(self._stream, nursery, limits=limits, on_close=self._on_outbound_close)
        decoder = Decoder(settings.max_frame_bytes, FRAGMENTS_MAX)
        self._connection = Connection(self._stream, self.outbound, decoder, self._early)
        self._pulse = Pulse(self._connection, self.outbound)
        metrics.WS_CONNECTIONS.inc()
        metrics.WS_CONNECTIONS_ACTIVE.inc()
        self._open = True
        try:
            self.outbound.offer(switch + ws_frame(self.state.greeting()))
            await self._work_to_the_end()
            await self._close(nursery)
        finally:
            self._open = False
            metrics.WS_CONNECTIONS_ACTIVE.dec()

    async def _work_to_the_end(self) -> None:
        """The receive loop, until the peer leaves or somebody wants an end."""
        self._work.deadline = trio.current_time() + self.services.settings.auth_seconds
        try:
            with self._work:
                with self._receiving:
                    await self._receive_loop()
                if self._stop_reading and self._ending is None:
                    # What was admitted is still being answered, and events still arrive.
                    await self._end_wanted.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except TooLong:
            self.end(endings.TOO_BIG)
        except TooManyFragments:
            self.end(endings.FRAGMENTS)
        except Exception:
            # The last line of defence: whatever a handler did not expect costs this connection only.
            log.exception("websocket session failed", peer=self.peer)
            self.end(endings.INTERNAL_ERROR)
        if self._work.cancelled_caught and self._ending is None and trio.current_time() >= self._work.deadline:
            self.end(endings.AUTH_TIMEOUT)

    async def _receive_loop(self) -> None:
        handled = 0
        while self._reads:
            message = await self._connection.receive()
            if message is None or not self._reads:
                return
            self._handling = True
            await self._handle(message)
            self._handling = False
            handled += 1
            if handled % OUTBOUND_LOOK_MESSAGES == 0:
                await self._wait_outbound()

    @property
    def _reads(self) -> bool:
        return self._ending is None and not self._stop_reading

    async def _handle(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            try:
                message = message.decode()
            except UnicodeDecodeError:
                await handlers.ignore(self)
                return
        await handlers.handle(self, message)

    async def _wait_outbound(self) -> None:
        """OKs do not wait for room; who sends EVENTs and does not read their OKs is not read any further."""
        queued, settings = self.outbound.statistics(), self.services.settings
        if queued.queued_frames * 2 > settings.send_buffer or queued.queued_bytes * 2 > settings.send_buffer_bytes:
            await self.outbound.wait_send_all_might_not_block()

    async def _close(self, nursery: trio.Nursery) -> None:
        """Lets the connection go: no more events, then what waits, then the Close, then the socket."""
        self.services.hub.disconnect(self)
        ending, close_seconds = self._ending, self.services.settings.close_seconds
        if ending is None:
            nursery.cancel_scope.deadline = trio.current_time() + close_seconds
            await self._connection.part()
            return
        metrics.WS_CLOSES.labels(ending.label).inc()
        if ending.label == endings.SLOW_CONSUMER.label:
            metrics.WS_BACKPRESSURE_DISCONNECTS.inc()
        nursery.cancel_scope.deadline = self._close_deadline or trio.current_time() + close_seconds
        if self._last_words:
            self.outbound.offer_many([(frame, None) for frame in self._last_words])
        if not ending.abrupt:
            with trio.move_on_at(self._flush_deadline):
                await self.replies.wait_empty()
                if ending is endings.TOO_BIG:
                    await self._say_too_big()
                await self.outbound.flushed(max(0.0, self._flush_deadline - trio.current_time()))
        if ending is endings.TOO_BIG:
            await self._connection.close_unread(ending.code, ending.reason, close_seconds)
        else:
            await self._connection.close(ending.code, ending.reason)

    async def _say_too_big(self) -> None:
        """The client has what it has earned, and is told why it gets no more."""
        text = f"invalid: message exceeds maximum size of {self.services.settings.max_frame_bytes} bytes"
        await self.outbound.put(ws_frame(notice(text)))

    # -- for handlers ------------------------------------------------------------------------------------------------

    async def put(self, payload: bytes) -> None:
        """Sends one message, waiting for room. Raises trio.BrokenResourceError when the connection is ending."""
        await self.put_frames([(ws_frame(payload), None)])

    async def put_frames(self, frames: Sequence[Frame]) -> None:
        """Sends ready-made frames in one write, waiting for room; a handler's turn goes to somebody else meanwhile.
        The write, or the wait for it, comes before any checkpoint. Raises as `put`."""
        async with self.place.aside():
            await self.outbound.put_many(frames)

    def authenticated(self, caller: Caller) -> None:
        """The login succeeded: the connection may stay, and evictions find it."""
        self.state.authenticated(caller)
        self.caller = caller
        if self._ending is None:
            self._work.deadline = float("inf")
        self.services.hub.connect(self)
        self.services.logged_in(caller)

    # -- for other tasks: synchronous --------------------------------------------------------------------------------

    def end(self, ending: Ending, *, flush_seconds: float | None = None, close_seconds: float | None = None) -> None:
        """Ends the connection; the first call decides how. Reading stops now; what is being handled may take
        `flush_seconds`, together with the sending of what waits; after `close_seconds` the socket is closed anyway."""
        if self._ending is not None:
            return
        settings, now = self.services.settings, trio.current_time()
        self._ending = ending
        self._close_deadline = now + (settings.close_seconds if close_seconds is None else close_seconds)
        self._flush_deadline = now + (settings.flush_seconds if flush_seconds is None else flush_seconds)
        self._end_wanted.set()
        self._cancel_receiving()
        self._work.deadline = min(self._work.deadline, self._flush_deadline)
        if ending.abrupt:
            self._work.cancel()

    def end_identity(self, why: Why) -> bool:
        """The credential of this connection does not hold any longer: nothing more is done or sent in its name.

        What is being handled is broken off where it stands (an EVENT that waits for its commit may still be stored).
        Subscriptions end here, each with a CLOSED; nothing follows but OKs of EVENTs admitted before, and the Close.
        False: there was no identity, or the connection is ending already.
        """
        if self.caller is None or self._ending is not None:
            return False
        hub = self.services.hub
        sub_ids = list(hub.index.subs.get(self, ()))
        hub.disconnect(self)
        metrics.FANOUT_PURGED.inc(self.outbound.purge_events())
        # Not sent yet: the handler may have stored events in hand, and none of them must come after this.
        self._last_words = [ws_frame(closed(sub_id, f"auth-required: {why.value}")) for sub_id in sub_ids]
        metrics.TOKENS_ENDED.labels(why.name.lower()).inc()
        self.end(endings.IDENTITY[why])
        self._work.cancel()
        return True

    def drop(self, reason: str) -> None:
        """The fan-out could not keep the connection complete."""
        self.end(endings.slow(reason))

    def stop_reading(self) -> None:
        """Reads no further message; what was read is handled and answered. `end` must follow."""
        self._stop_reading = True
        self._cancel_receiving()

    def _cancel_receiving(self) -> None:
        """What is being handled goes on; the loop looks at its flags afterwards."""
        if not self._handling:
            self._receiving.cancel()

    def tick(self, now: float) -> None:
        """The heartbeat; ends a connection whose client does not answer."""
        if self._open and self._ending is None and not self._pulse.tick(now):
            self.end(endings.PING_TIMEOUT)

    def abort(self) -> None:
        """Closes without a word, wherever the session stands: whoever waits for the socket sees it closed."""
        self._work.cancel()
        self._stream.socket.close()

    @property
    def name(self) -> str:
        """Who is to blame for what comes here: the key, or the address while none is proved."""
        return self.peer if self.caller is None else self.caller.pubkey

    @property
    def is_authenticated(self) -> bool:
        return self.state.phase is Phase.AUTHENTICATED

    def _offer_reply(self, frame: bytes) -> None:
        self.outbound.offer(frame)

    def _on_outbound_close(self, reason: CloseReason) -> None:
        if reason is CloseReason.SLOW_CONSUMER:
            self.end(endings.SLOW_CONSUMER)
        else:
            self._work.cancel()
