"""How much of everything a client may have, and what it is told when that is over.

In: messages and connections as they come. Out: yes, a refusal, or a wait. `Limits` is what all connections share: the
buckets of keys and addresses, and the gate that bounds how many messages are handled at once; a session has a bucket
of its own beside it. A refusal is counted here, for the metrics and for the audit log; saying it is the handlers' work.

Theory of the gate. Whoever is handled holds a place, and a message that finds none waits a little for its turn, first
come first served. The client itself must not be able to hold one: a REQ whose client reads slowly would keep its place
for minutes, and a thousand such connections would be the end for everybody else. So a place is left for as long as
something waits for the client (`Place.aside`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from relay import metrics
from relay.access.identity import Caller
from relay.access.rate_limit import KeyedBuckets, TokenBucket, address_key
from relay.audit.entry import Action
from relay.config import Settings
from relay.errors import TOO_BUSY, Refusal, RefusalClass

Note = Callable[[Action, str, str], None]
"""Counts a refusal for the audit log: action, key or address, reason."""


@dataclass(frozen=True, slots=True)
class Excess:
    """Too much of something: its name in the metrics and the audit log, and what the client is told."""

    what: str
    refusal: Refusal

    @classmethod
    def named(cls, what: str) -> Excess:
        return cls(what, Refusal(f"rate-limited: too many {what}, slow down", RefusalClass.LIMITED))


MESSAGES: Final = Excess.named("messages")
EVENTS: Final = Excess.named("events")
REQUESTS: Final = Excess.named("requests")
HANDLERS: Final = Excess("handlers", TOO_BUSY)
CONNECTIONS: Final = "connections"


class Limits:
    """What all connections of a process share."""

    def __init__(self, settings: Settings, note: Note) -> None:
        clock = time.monotonic
        self._note = note
        self._rate_messages = settings.rate_messages
        self._events = KeyedBuckets(settings.rate_events, clock)
        self._requests = KeyedBuckets(settings.rate_requests, clock)
        self._connections = KeyedBuckets(settings.rate_connections, clock)
        self.gate = Gate(settings.max_concurrent_handlers, settings.handler_wait_seconds)
        metrics.HANDLERS_ACTIVE.set_function(lambda: self.gate.active)

    def messages(self) -> TokenBucket:
        """The bucket of a new connection."""
        return TokenBucket(self._rate_messages, time.monotonic)

    def take_event(self, caller: Caller) -> bool:
        """One more EVENT of this key. Who may submit for others speaks for many, and has only its connection's."""
        return caller.is_proxy or self._events.take(caller.pubkey)

    def refuse_event(self, caller: Caller) -> Refusal | None:
        """The same for a door that has no session: counts the refusal and returns it."""
        if self.take_event(caller):
            return None
        self.count(EVENTS.what, caller.pubkey)
        return EVENTS.refusal

    def take_request(self, caller: Caller) -> bool:
        """One more REQ or COUNT of this key."""
        return caller.is_proxy or self._requests.take(caller.pubkey)

    def arrival(self, peer: str) -> float | None:
        """One more connection from this address: None if it may come, else the seconds until the next may."""
        key = address_key(peer)
        if key is None or self._connections.take(key):
            return None
        self.count(CONNECTIONS, peer)
        return self._connections.seconds_left(key)

    def count(self, what: str, who: str) -> None:
        """Something was refused or held back. `who`: the key, or where none is proved the address."""
        metrics.RATE_LIMITED.labels(what).inc()
        self._note(Action.RATE_LIMIT_EXCEEDED, who, what)


class Gate:
    """So many places for messages that are being handled; `wait_seconds` is how long one may wait for a place.

    A semaphore that costs a comparison where a place is free, since every EVENT passes here: as long as anybody waits,
    all places are taken, because who leaves hands his on.
    """

    __slots__ = ("active", "lot", "places", "wait_seconds")

    def __init__(self, places: int, wait_seconds: float) -> None:
        assert places > 0
        self.places = places
        self.wait_seconds = wait_seconds
        self.active = 0
        self.lot = trio.lowlevel.ParkingLot()

    def place(self) -> Place:
        """For one connection, which handles one message at a time."""
        return Place(self)


class Place:
    """A connection's place in the gate, while it has one."""

    __slots__ = ("_gate", "held")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.held = False

    def take_nowait(self) -> bool:
        """Takes a free place, if nobody waits for it."""
        assert not self.held
        gate = self._gate
        if gate.active >= gate.places:
            return False
        gate.active += 1
        self.held = True
        return True

    async def take(self) -> bool:
        """Waits for a place, and gives up after a while. Cancellation: no place is held."""
        with trio.move_on_after(self._gate.wait_seconds):
            await self.wait()
        return self.held

    def leave(self) -> None:
        """Somebody else's turn. Harmless without a place."""
        if not self.held:
            return
        self.held = False
        gate = self._gate
        if gate.lot:
            gate.lot.unpark()
        else:
            gate.active -= 1

    def aside(self) -> Aside:
        """Leaves the place while the block waits for the client; then waits for one again, however long: what was begun
        must be ended. Does nothing without a place. Cancellation, and any error: no place is held."""
        return Aside(self)

    async def wait(self) -> None:
        """Until somebody hands his place on; all of them are taken."""
        await self._gate.lot.park()
        self.held = True


class Aside:
    """See `Place.aside`. A class, because a generator costs five times as much, and every frame passes here."""

    __slots__ = ("_left", "_place")

    def __init__(self, place: Place) -> None:
        self._place = place
        self._left = False

    async def __aenter__(self) -> None:
        self._left = self._place.held
        self._place.leave()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._left and kind is None and not self._place.take_nowait():
            await self._place.wait()
