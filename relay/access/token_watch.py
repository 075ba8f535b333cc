"""Ends connections whose credential has ended: tokens that were revoked, tokens and JWTs that have expired.

In: notices of the database (a trigger sends one whenever a token's end changes, whoever changed it), logins, time. Out:
calls of `end`, with a token or with a connection. Reads who is there through `token_ids` and `holders`, and keeps
nothing about them but when their tokens end.

Theory. Whether a token has ended is asked of the database, never read out of a notice. It is asked
- about the tokens of a notice, at once: this is the fast way, some milliseconds after the COMMIT;
- about a token that has just logged in: it may have been revoked between its look-up and now, and that notice found no
  connection yet;
- about all tokens after every (re)connection, since notices of the time in between are lost, and every
  `check_seconds`, since a connection can be dead without anybody telling.
A database that is away revokes nothing; expiries are kept by our own clock meanwhile. The two tasks belong to the root
nursery and end by cancellation: `run` asks, `run_expiries` looks at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AsyncExitStack
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

import structlog
import trio

from relay.access.identity import Caller
from relay.asyncpg_trio import Connection
from relay.asyncpg_trio.listen import Notifications
from relay.store import tokens
from relay.store.failures import STORE_FAILURES
from relay.store.own_connection import Connect, OwnConnection

log = structlog.get_logger(__name__)

CHANNEL: Final = "relay_token_ended"
ANSWER_SECONDS: Final = 5.0
"""For one answer of the database; then the connection is taken for dead."""
PATIENCE_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.5
# Expiries that lie closer together are handled together.
SLEEP_SECONDS_MIN: Final = 0.2
HOLDERS_PER_CHECKPOINT: Final = 256

_FAILURES: Final = (*STORE_FAILURES, OSError, trio.TooSlowError)


class Why(Enum):
    """Why a credential does not hold any longer; the value is what clients read."""

    REVOKED = "token revoked"
    EXPIRED = "token expired"


class Holder(Protocol):
    """A connection, as far as it matters here."""

    caller: Caller | None


H = TypeVar("H", bound=Holder)


class TokenWatch(Generic[H]):
    """See the module. `end` must neither raise nor wait; it may be called again for a connection that is still ending.

    `now` gives seconds since the epoch.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        token_ids: Callable[[], Collection[str]],
        holders: Callable[[], Iterable[H]],
        end: Callable[[str | H, Why], object],
        check_seconds: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._own = OwnConnection(connect, name="token watch", patience_seconds=PATIENCE_SECONDS)
        self._token_ids = token_ids
        self._holders = holders
        self._end = end
        self._check_seconds = check_seconds
        self._now = now
        # Tokens that have logged in and were not asked about yet.
        self._arrived: set[str] = set()
        # What the database said last of the end of a token, in Unix seconds; it counts more than what a login saw.
        self._ends: dict[str, float] = {}
        # Until when the clock task sleeps, in Unix seconds; infinite while it looks: then any earlier end is news.
        self._planned = float("-inf")
        self._waiting = trio.CancelScope()
        self._sleeping = trio.CancelScope()

    def logged_in(self, caller: Caller) -> None:
        """A connection with this caller is among those that are there from now on."""
        if caller.token_id is not None:
            # The login saw the token later than whoever asked before.
            self._ends[caller.token_id] = _end_of(caller)
            self._arrived.add(caller.token_id)
            self._waiting.cancel()
        self._wake_before(_end_of(caller))

    # -- what the database says ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Asks the database. Never ends by an error of it."""
        away = False
        try:
            while True:
                try:
                    connection = await self._own.get()
                    async with AsyncExitStack() as stack:
                        with trio.fail_after(ANSWER_SECONDS):
                            notices = await stack.enter_async_context(connection.listen(CHANNEL))
                        await self._ask_about_all(connection)
                        away = False
                        await self._attend(connection, notices)
                except _FAILURES as error:
                    if not away:
                        log.warning("cannot ask whether tokens were revoked, trying again", error=repr(error))
                    away = True
                self._own.close()
                await trio.sleep(RETRY_SECONDS)
        finally:
            self._own.close()

    async def _attend(self, connection: Connection, notices: Notifications) -> None:
        """Notices, logins and the period, until the connection fails."""
        due = trio.current_time() + self._check_seconds
        while True:
            named: set[str] = set()
            if not self._arrived:
                with trio.CancelScope(deadline=due) as self._waiting:
                    named = {notice.payload for notice in await notices.receive_many()}
            if trio.current_time() >= due:
                due = trio.current_time() + self._check_seconds
                await self._ask_about_all(connection)
            elif wanted := self._arrived | (named.intersection(self._token_ids()) if named else named):
                await self._ask(connection, wanted)

    async def _ask_about_all(self, connection: Connection) -> None:
        live = self._arrived.union(self._token_ids())
        self._ends = {token_id: end for token_id, end in self._ends.items() if token_id in live}
        # Even if there is none: the answer also says that the connection lives.
        await self._ask(connection, live)

    async def _ask(self, connection: Connection, token_ids: Collection[str]) -> None:
        self._arrived.clear()
        with trio.fail_after(ANSWER_SECONDS):
            standings = await tokens.standings(connection, token_ids)
        now = self._now()
        for token_id, standing in standings.items():
            left = float("inf") if standing.seconds_left is None else standing.seconds_left
            self._ends[token_id] = now + left
            if standing.revoked:
                self._end(token_id, Why.REVOKED)
            elif left < 0:
                self._end(token_id, Why.EXPIRED)
            else:
                self._wake_before(now + left)

    # -- what the clock says -------------------------------------------------------------------------------------------

    async def run_expiries(self) -> None:
        """Ends whose time is over, at that time."""
        while True:
            nearest = await self._end_expired()
            with trio.CancelScope() as self._sleeping:
                # Not longer than this: somebody may set the clock.
                await trio.sleep(max(SLEEP_SECONDS_MIN, min(self._check_seconds, nearest - self._now())))
            await trio.lowlevel.checkpoint()

    async def _end_expired(self) -> float:
        """Ends those whose time is over. Returns the next such time, and there is no checkpoint after it was found."""
        while True:
            self._planned = float("inf")
            nearest = float("inf")
            for number, holder in enumerate(list(self._holders()), 1):
                if number % HOLDERS_PER_CHECKPOINT == 0:
                    await trio.lowlevel.checkpoint()
                if holder.caller is None:
                    continue
                end = self._ends.get(holder.caller.token_id or "", _end_of(holder.caller))
                if end <= self._now():
                    self._end(holder, Why.EXPIRED)
                else:
                    nearest = min(nearest, end)
            if self._planned == float("inf"):
                self._planned = nearest
                return nearest

    def _wake_before(self, end: float) -> None:
        """An end that lies before the one that the clock task sleeps for: it looks again."""
        if end < self._planned:
            self._planned = end
            self._sleeping.cancel()


def _end_of(caller: Caller) -> float:
    return float("inf") if caller.expires_at is None else caller.expires_at
