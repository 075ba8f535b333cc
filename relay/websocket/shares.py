"""What COUNT and search may have of the store: a part of the pool, and of that a part for each key.

In: a key that wants to ask something that may take long. Out: its turn, or `StoreBusy`. A single COUNT can keep a
connection busy for as long as a statement may last, and a client can send twenty of them at once: without this, nobody
would get a stored event any more. Who waits here has left his place among the handlers, for the same reason.

REQs are not counted: their pages are short, and come in the order of an index.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.errors import StoreBusy
from relay.websocket.limits import Gate, Place

__all__ = ["Shares"]


class Shares:
    """Half of `connections` for all keys together, a quarter for each; `wait_seconds` for each of the two turns."""

    def __init__(self, connections: int, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds
        self._all = Gate(max(1, connections // 2), wait_seconds)
        self._places_of_key = max(1, connections // 4)
        # Of keys that are asking something at the moment.
        self._keys: dict[str, Gate] = {}

    def __len__(self) -> int:
        """Keys that are asking something."""
        return len(self._keys)

    @asynccontextmanager
    async def turn(self, pubkey: str, handler: Place) -> AsyncIterator[None]:
        """Around the question. `handler`: the place that is left while the turn has not come.

        Raises:
            StoreBusy: It did not come in time.
        """
        gate = self._keys.get(pubkey)
        if gate is None:
            gate = self._keys[pubkey] = Gate(self._places_of_key, self._wait_seconds)
        own, common = gate.place(), self._all.place()
        try:
            # The key's own first: who has many questions must not stand in the way of everybody's.
            await _take(own, handler)
            await _take(common, handler)
            yield
        finally:
            common.leave()
            own.leave()
            if not gate.active and self._keys.get(pubkey) is gate:
                del self._keys[pubkey]


async def _take(place: Place, handler: Place) -> None:
    if place.take_nowait():
        return
    async with handler.aside():
        taken = await place.take()
    if not taken:
        raise StoreBusy("too many counts and searches at once")
