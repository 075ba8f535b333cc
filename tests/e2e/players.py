"""Who takes part in a race: people at connections that are read all the time, and what a round of it knows.

A fault of the relay is a `Breach`, with words that say what happened; the campaign prints it with what everybody saw.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import trio
from trio_websocket import ConnectionClosed

from relay.nostr.event import Event
from tests.support.core import Person
from tests.support.relay import Client, fields

SECONDS = 20
"""Far more than any answer takes."""
NOT_MEMBER = "restricted: not a channel member"
REVOKED = "restricted: channel access revoked"
NOBODY = "ab" * 32


class Breach(Exception):
    """Something happened that must not."""


class Player:
    """Somebody at a connection. `seen` is what it received in this round, in order."""

    def __init__(self, person: Person, client: Client) -> None:
        self.person = person
        self.seen: list[list[Any]] = []
        self._client = client
        self._more = trio.Event()

    async def read(self) -> None:
        """The connection's reader, in a task of its own."""
        while True:
            try:
                self.seen.append(orjson.loads(await self._client.websocket.get_message()))
            except ConnectionClosed as closed:
                raise Breach(f"the relay ended a connection: {closed.reason}") from None
            self._more.set()
            self._more = trio.Event()

    async def send(self, *message: Any) -> None:
        await self._client.send(*message)

    async def wait(self, *beginning: Any, times: int = 1) -> list[Any]:
        """The frame that is the n-th of this round to begin so."""
        with trio.move_on_after(SECONDS):
            while len(found := self.frames(*beginning)) < times:
                await self._more.wait()
            return found[times - 1]
        raise Breach(f"{self.person.pubkey[:6]} waits for {beginning} in vain")

    def frames(self, *beginning: Any) -> list[list[Any]]:
        return [frame for frame in self.seen if frame[: len(beginning)] == list(beginning)]

    def events(self, sub_id: str) -> list[str]:
        return [frame[2]["id"] for frame in self.frames("EVENT", sub_id)]

    async def submit(self, kind: int, *tags: list[str], content: str = "") -> tuple[Event, str]:
        """The event, and why it was refused: "" if it was not."""
        event = self.person.sign(kind, content or str(uuid.uuid4()), list(tags))
        await self.send("EVENT", fields(event))
        ok = await self.wait("OK", event.id)
        return event, "" if ok[2] else ok[3]

    async def publish(self, kind: int, *tags: list[str]) -> str:
        event, refusal = await self.submit(kind, *tags)
        if refusal:
            raise Breach(f"a kind {kind} of the preparations was refused: {refusal}")
        return event.id

    async def subscribe(self, sub_id: str, **filter_: Any) -> None:
        await self.send("REQ", sub_id, filter_)
        await self.wait("EOSE", sub_id)

    async def stored(self, **filter_: Any) -> list[dict[str, Any]]:
        name = f"stored-{len(self.seen)}"
        await self.subscribe(name, **filter_)
        await self.send("CLOSE", name)
        await self.wait("CLOSED", name)
        return [frame[2] for frame in self.frames("EVENT", name)]

    async def fence(self) -> None:
        """Returns when everything that had left for this connection has been seen."""
        await self.stored(ids=[NOBODY])


@dataclass
class Round:
    """One channel and the people around it. `accepted`: ids of the messages that were said in it, by author."""

    chance: random.Random
    owner: Player
    member: Player
    writer: Player
    channel: str = field(default_factory=lambda: str(uuid.uuid4()))
    accepted: dict[str, list[str]] = field(default_factory=dict)

    @property
    def h(self) -> list[str]:
        return ["h", self.channel]

    async def pause(self) -> None:
        kind = self.chance.randrange(3)
        if kind:
            await trio.sleep(self.chance.uniform(0, 0.004) if kind == 1 else 0)

    async def open(self, visibility: str, *members: Player, role: str = "member") -> None:
        """The channel, and the owner's record of what is said in it."""
        await self.owner.publish(9007, self.h, ["name", "arena"], ["visibility", visibility])
        for member in members:
            await self.owner.publish(9000, self.h, ["p", member.person.pubkey], ["role", role])
        await self.owner.subscribe("record", **{"kinds": [9], "#h": [self.channel]})

    def followed(self) -> dict[str, Any]:
        """A filter that holds the channel, in one of several ways."""
        alone, several = [self.channel], [self.channel, str(uuid.uuid4())]
        return self.chance.choice([{"#h": alone}, {"#h": alone, "kinds": [9]}, {"#h": several, "kinds": [9, 7]}])

    async def talk(self, player: Player, messages: int, refusal: str = NOT_MEMBER) -> None:
        """Messages one after the other. Once one is refused, all later ones have to be."""
        mine = self.accepted.setdefault(player.person.pubkey, [])
        over = False
        for _ in range(messages):
            await self.pause()
            event, why = await player.submit(9, self.h)
            if why not in ("", refusal):
                raise Breach(f"a message was refused with {why!r}")
            if over and not why:
                raise Breach(f"accepted {event.id} after an earlier message was refused")
            over = bool(why)
            if not why:
                mine.append(event.id)

    async def shut_out(self, player: Player) -> None:
        """Messages of that player are refused from now on."""
        _, why = await player.submit(9, self.h)
        if why != NOT_MEMBER:
            raise Breach(f"after the OK a message got {why!r}")

    async def together(self, *moves: Callable[[], Awaitable[Any]]) -> None:
        async with trio.open_nursery() as nursery:
            for move in self.chance.sample(moves, len(moves)):
                nursery.start_soon(move)

    async def check_record(self) -> None:
        """What was accepted, and nothing else, was delivered to the owner, each once, and is stored."""
        await self.owner.fence()
        expected = sorted(id_ for ids in self.accepted.values() for id_ in ids)
        stored = [event["id"] for event in await self.owner.stored(**{"kinds": [9], "#h": [self.channel]})]
        for name, found in (("delivered", self.owner.events("record")), ("stored", stored)):
            if sorted(found) != expected:
                raise Breach(f"accepted {expected}, {name} {sorted(found)}")


def nothing_after(player: Player, sub_id: str, secrets: list[str]) -> None:
    """The subscription has ended, and what was said since did not reach the player on any way."""
    ends = [place for place, frame in enumerate(player.seen) if frame[:2] == ["CLOSED", sub_id]]
    if not ends:
        raise Breach(f"{sub_id} was never closed")
    if late := [frame[2]["id"] for frame in player.seen[ends[-1] :] if frame[:2] == ["EVENT", sub_id]]:
        raise Breach(f"delivered after CLOSED: {late}")
    everything = {frame[2]["id"] for frame in player.seen if frame[0] == "EVENT"}
    if leaked := everything.intersection(secrets):
        raise Breach(f"delivered although said after the OK: {leaked}")
