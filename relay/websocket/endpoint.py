"""All WebSocket connections of the process: admits them, and ends them when the relay stops.

In: accepted streams from the listener, each in a task of its own; orders of the supervisor. Out: sessions. The endpoint
owns no task: `run_heartbeat` is started by the supervisor, sessions run in the listener's tasks and close in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from relay.access.authenticate import Authenticator
from relay.access.directory import Directory
from relay.access.identity import Caller
from relay.access.token_watch import Why
from relay.config import Settings
from relay.fanout.hub import Hub
from relay.ingest.pipeline import Ingest
from relay.query.replay import Database
from relay.websocket import heartbeat
from relay.websocket.endings import SHUTDOWN, ordered
from relay.websocket.guests import Guests
from relay.websocket.head import RequestHead, switch_protocols
from relay.websocket.limits import Limits
from relay.websocket.session import Services, Session
from relay.websocket.shares import Shares

# Ending one connection wakes its task; so many of them at once leave room for the others' work.
ENDS_PER_CHECKPOINT = 64


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """`connections` that are open, `authenticated` of them, EVENTs that `pending` for their commit, all now."""

    connections: int
    authenticated: int
    pending_events: int
    refused_total: int


class WebSocketEndpoint:
    """The handler of the listener (`serve`, `admission`), and the supervisor's handle on all sessions."""

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        ingest: Ingest,
        authenticator: Authenticator,
        directory: Directory,
        pool: Database,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """`clock` gives microseconds since the epoch."""
        self._settings = settings
        self._sessions: dict[Session, None] = {}
        self._refused = 0
        self._draining = False
        self._on_login: Callable[[Caller], None] | None = None
        self._all_gone = trio.Event()
        self.limits = Limits(settings, ingest.note)
        shares = Shares(settings.pool_size_max, settings.pool_acquire_seconds)
        self.guests = Guests(self.limits, shares)
        self._services = Services(
            settings, hub, ingest, authenticator, directory, pool, self.limits, shares, clock,
            draining=lambda: self._draining, logged_in=self._logged_in,
        )  # fmt: skip

    # -- for the listener --------------------------------------------------------------------------------------------

    def admission(self) -> bool:
        """Whether one more connection may come; asked before anything is allocated for it."""
        if len(self._sessions) < self._settings.max_connections and not self._draining:
            return True
        self._refused += 1
        return False

    async def serve(self, stream: trio.SocketStream, head: RequestHead, peer: str, early: bytes = b"") -> None:
        """Serves one upgrade to its end, beginning with the answer; `early` is what came behind its head.

        Everything that the connection itself does wrong ends here; the rest is for the listener's boundary to log.
        """
        session = Session(self._services, stream, peer, early)
        self._sessions[session] = None
        try:
            await session.run(switch_protocols(head))
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer went away in the middle of something
        finally:
            del self._sessions[session]
            if not self._sessions:
                self._all_gone.set()

    # -- for whoever watches credentials ------------------------------------------------------------------------------

    def on_login(self, function: Callable[[Caller], None]) -> None:
        """`function` is called with every caller that logs in; it must neither raise nor wait."""
        self._on_login = function

    def _logged_in(self, caller: Caller) -> None:
        if self._on_login is not None:
            self._on_login(caller)

    def sessions(self) -> Iterable[Session]:
        """All that are open, logged in or not."""
        return self._sessions

    def end_identity(self, identity: str | Session, why: Why) -> int:
        """Ends the session, or all that logged in with this token id; see `Session.end_identity`. How many did end."""
        if isinstance(identity, Session):
            return int(identity.end_identity(why))
        peers = self._services.hub.peers_with_token(identity)
        return sum(each.end_identity(why) for each in peers if isinstance(each, Session))

    # -- for the supervisor ------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        return len(self._sessions)

    async def run_heartbeat(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `heartbeat`. Owner: the root nursery."""
        await heartbeat.run_heartbeat(lambda: self._sessions, self._settings.ping_seconds, task_status=task_status)

    def drain(self) -> None:
        """From now on new connections, REQs and (through ingest) EVENTs are refused with a text."""
        self._draining = True

    def stop_reading(self) -> None:
        """No further message is read; what was read is handled and answered. `close_all` must follow."""
        self.drain()
        for session in self._sessions:
            session.stop_reading()

    async def close_all(
        self,
        code: int = SHUTDOWN.code,
        reason: str = SHUTDOWN.reason,
        flush_seconds: float | None = None,
        close_seconds: float | None = None,
    ) -> int:
        """Ends every connection, each in its own task: what waits for the client gets `flush_seconds`, then comes the
        Close, and after `close_seconds` (both counted from now) the socket is closed anyway. Returns how many were
        open. Returns when all are gone.

        Cancellation: the connections go on ending by themselves.
        """
        self.drain()
        flush = self._settings.flush_seconds if flush_seconds is None else flush_seconds
        close = self._settings.close_seconds if close_seconds is None else close_seconds
        ending = ordered(code, reason)
        sessions = list(self._sessions)
        for number, session in enumerate(sessions, 1):
            session.end(ending, flush_seconds=flush, close_seconds=max(flush, close))
            if number % ENDS_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
        with trio.move_on_after(max(flush, close)):
            while self._sessions:
                self._all_gone = trio.Event()
                await self._all_gone.wait()
        for session in list(self._sessions):
            session.abort()
        await trio.lowlevel.checkpoint()
        return len(sessions)

    def statistics(self) -> EndpointStatistics:
        return EndpointStatistics(
            connections=len(self._sessions),
            authenticated=sum(session.is_authenticated for session in self._sessions),
            pending_events=sum(len(session.replies) for session in self._sessions),
            refused_total=self._refused,
        )
