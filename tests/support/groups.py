"""For tests of NIP-29 groups: what a submission made the relay store, say and write down, in order; a reader's end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import trio

from relay.access.identity import Caller
from relay.fanout.hub import Batch, LiveSubscription
from relay.fanout.outbound import Outbound
from relay.ingest.types import Outcome
from relay.nostr.event import Event, load_event
from relay.nostr.filter import parse_filter
from relay.nostr.messages import event_prefix
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Core, Person

DAVE = Person.number(4)
OTHER = CHANNEL[:-1] + "2"
STATE = [39000, 39001, 39002]


@dataclass
class Told:
    """What followed from one submission.

    `entries`: (action, kind, actor, metadata) of the audit log in its order. `events`: those that were stored, in the
    order of their entries.
    """

    outcome: Outcome
    entries: list[tuple[str, int | None, str | None, dict[str, Any]]]
    events: list[Event]

    @property
    def actions(self) -> list[str]:
        """Each entry as `action` or, of a stored event, its kind."""
        return [str(kind) if action == "event_created" else action for action, kind, _, _ in self.entries]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The contents of the system messages."""
        return [orjson.loads(event.content) for event in self.events if event.kind == 40099]

    def event(self, kind: int) -> Event:
        (found,) = [event for event in self.events if event.kind == kind]
        return found


async def settled(core: Core) -> None:
    """Returns when everything that was committed has been chained and delivered."""
    passed = trio.Event()
    async with core.hub.dispatcher() as dispatcher:
        await dispatcher.send(Batch([], passed))
    with trio.fail_after(5):
        await passed.wait()
        while await core.pool.fetchval("SELECT count(*) FROM audit_outbox"):
            await trio.sleep(0.005)


async def told(core: Core, person: Person, event: Event) -> Told:
    """Submits, and returns all that followed."""
    await settled(core)
    before = await core.pool.fetchval("SELECT count(*) FROM audit_log")
    outcome = await core.submit(person, event)
    return await since(core, before, outcome)


async def since(core: Core, seq: int, outcome: Outcome) -> Told:
    """What was written down after entry `seq`."""
    await settled(core)
    rows = await core.pool.fetch(
        "SELECT action, kind, actor, event_id, metadata FROM audit_log WHERE seq > $1 ORDER BY seq", seq
    )
    entries = [(row["action"], row["kind"], row["actor"], orjson.loads(row["metadata"])) for row in rows]
    stored = []
    for row in rows:
        if row["action"] == "event_created":
            found = await core.pool.fetchval(
                "SELECT signed_json FROM events WHERE id = $1", bytes.fromhex(row["event_id"])
            )
            stored.append(load_event(found))
    return Told(outcome, entries, stored)


async def people_in(core: Core, visibility: str = "open", **tags: str) -> None:
    """The channel with Alice as its owner, Bob as an admin, Carol as a member. Dave is a stranger."""
    assert (await core.create(ALICE, visibility=visibility, **tags)).accepted
    assert (await core.add(ALICE, BOB, "admin")).accepted
    assert (await core.add(ALICE, CAROL)).accepted


async def edit(core: Core, person: Person, *tags: list[str], channel: str = CHANNEL, content: str = "") -> Outcome:
    """Kind 9002."""
    return await core.submit(person, person.sign(9002, content, [["h", channel], *tags]))


class Listener:
    """A connection with one subscription to a channel: a peer of the hub, and the far end of its socket."""

    def __init__(self, person: Person, near: trio.SocketStream, far: trio.SocketStream, nursery: trio.Nursery) -> None:
        self.caller: Caller | None = person.caller
        self.outbound = Outbound(near, nursery, on_close=lambda _: None)
        self._far = far
        self._data = b""

    def drop(self, reason: str) -> None:
        raise AssertionError(reason)

    async def read(self, count: int) -> list[Any]:
        """The next messages; shorter than 64 KiB each."""
        messages: list[Any] = []
        with trio.fail_after(5):
            while len(messages) < count:
                data = self._data
                length, start = (data[1], 2) if len(data) > 1 and data[1] < 126 else (-1, 4)
                if length < 0 and len(data) >= 4:
                    length = int.from_bytes(data[2:4], "big")
                if length < 0 or len(data) < start + length:
                    self._data += await self._far.receive_some(65536)
                    continue
                messages.append(orjson.loads(data[start : start + length]))
                self._data = data[start + length :]
        return messages

    async def read_nothing(self) -> None:
        """Everything has been read."""
        assert not self._data
        with trio.move_on_after(0.05):
            raise AssertionError(await self._far.receive_some(65536))


@asynccontextmanager
async def listening(core: Core, person: Person, channel: str = CHANNEL) -> AsyncIterator[Listener]:
    """Subscribed to everything in the channel, as `sub`."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    near, far = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in ends)
    listener = Listener(person, near, far, core.nursery)
    core.hub.connect(listener)
    await core.hub.watch([channel])
    subscription = LiveSubscription(listener, "sub", (parse_filter({}),), frozenset({channel}), event_prefix("sub"))
    core.hub.subscribe(subscription)
    assert core.hub.go_live(subscription, None) == []
    try:
        yield listener
    finally:
        core.hub.disconnect(listener)
        near.socket.close()
        far.socket.close()
