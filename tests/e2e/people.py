"""A user of the relay on the `websockets` library, which knows nothing of the relay's code but how to sign."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from tests.support.core import Person
from tests.support.relay import auth_event, fields

SECONDS = 20
"""Longer than anything here takes; a test that waits so long has failed."""


class Desk:
    """Somebody at a connection of the `websockets` library. `seen` is every frame since the connection began."""

    def __init__(self, person: Person, connection: ClientConnection) -> None:
        self.person = person
        self.seen: list[list[Any]] = []
        self._connection = connection
        self._next = 0

    async def send(self, *message: Any) -> None:
        await self._connection.send(orjson.dumps(message).decode())

    async def _receive(self) -> None:
        self.seen.append(orjson.loads(await self._connection.recv()))

    async def wait(self, *beginning: Any) -> list[Any]:
        """The first frame that begins so, behind the one that was waited for last."""
        with trio.fail_after(SECONDS):
            while True:
                while self._next < len(self.seen):
                    self._next += 1
                    if self.seen[self._next - 1][: len(beginning)] == list(beginning):
                        return self.seen[self._next - 1]
                await self._receive()

    async def wait_event(self, sub_id: str, event_id: str) -> dict[str, Any]:
        """The event as this subscription got it, whenever that was."""
        with trio.fail_after(SECONDS):
            while True:
                for frame in self.seen:
                    if frame[:2] == ["EVENT", sub_id] and frame[2]["id"] == event_id:
                        return frame[2]
                await self._receive()

    async def publish(self, kind: int, content: str = "", *tags: list[str], at: int | None = None) -> str:
        """The id of an event that was accepted."""
        event = self.person.sign(kind, content, list(tags), at)
        await self.send("EVENT", fields(event))
        assert (await self.wait("OK", event.id))[2:] == [True, ""], self.seen[-1]
        return event.id

    async def subscribe(self, sub_id: str, **filter_: Any) -> None:
        await self.send("REQ", sub_id, filter_)
        await self.wait("EOSE", sub_id)

    async def stored(self, **filter_: Any) -> list[str]:
        """Ids of what a REQ finds, newest first."""
        before = len(self.seen)
        await self.subscribe("stored", **filter_)
        await self.send("CLOSE", "stored")
        return [frame[2]["id"] for frame in self.seen[before:] if frame[:2] == ["EVENT", "stored"]]

    async def refused(self, **filter_: Any) -> str:
        """The text of the CLOSED that answers a REQ."""
        await self.send("REQ", "refused", filter_)
        return (await self.wait("CLOSED", "refused"))[2]

    def events(self) -> set[str]:
        """Ids of every event ever received."""
        return {frame[2]["id"] for frame in self.seen if frame[0] == "EVENT"}

    async def closed(self) -> int | None:
        """The code with which the relay ends the connection."""
        with trio.fail_after(SECONDS), suppress(ConnectionClosed):
            while True:
                await self._receive()
        return self._connection.protocol.close_code


@asynccontextmanager
async def desk(url: str, person: Person) -> AsyncIterator[Desk]:
    """Connected and logged in."""
    async with connect(url, proxy=None) as connection:
        found = Desk(person, connection)
        challenge = (await found.wait("AUTH"))[1]
        event = auth_event(person, challenge, relay=url)
        await found.send("AUTH", fields(event))
        assert (await found.wait("OK", event.id))[2:] == [True, ""]
        yield found
