"""The bounds of all connections, for callers who have none: requests over HTTP that do what EVENT, REQ and COUNT do.

In: a caller with something to be handled. Out: a turn, or `Refused` as a connection would hear it. The buckets, the
gate and the shares are those of the sockets, so that nobody gets twice as much by using both doors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.access.identity import Caller
from relay.errors import Refused
from relay.websocket.limits import HANDLERS, REQUESTS, Limits, Place
from relay.websocket.shares import Shares


class Guests:
    """`limits` and `shares` are those of the endpoint."""

    def __init__(self, limits: Limits, shares: Shares) -> None:
        self._limits = limits
        self._shares = shares

    @asynccontextmanager
    async def handling(self, caller: Caller) -> AsyncIterator[Place]:
        """Around the work on one message: a place among those that are handled.

        Raises:
            Refused: None came free in time.
        """
        place = self._limits.gate.place()
        if not place.take_nowait() and not await place.take():
            self._limits.count(HANDLERS.what, caller.pubkey)
            raise Refused(HANDLERS.refusal)
        try:
            yield place
        finally:
            place.leave()

    @asynccontextmanager
    async def asking(self, caller: Caller, *, long: bool) -> AsyncIterator[None]:
        """Around one question to the store. `long`: a count or a search, of which only so many may run at once.

        Raises:
            Refused: The key has asked too often, or no place came free in time.
            StoreBusy: The turn of a long one did not come in time.
        """
        if not self._limits.take_request(caller):
            self._limits.count(REQUESTS.what, caller.pubkey)
            raise Refused(REQUESTS.refusal)
        async with self.handling(caller) as place:
            if long:
                async with self._shares.turn(caller.pubkey, place):
                    yield
            else:
                yield
