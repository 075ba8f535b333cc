"""Users of the relay as the outside world makes them: one on the `websockets` library, one on rust-nostr's SDK.

Neither knows anything of the relay's code but how to sign; both do NIP-42 as their library would have it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from tests.support.core import Person
from tests.support.relay import auth_event, fields

SECONDS = 20
"""Longer than anything here takes; a test that waits so long has failed."""
PROGRAM = Path(__file__).with_name("nostr_sdk_client.py")


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

    async def publish(self, kind: int, content: str = "", *tags: list[str]) -> str:
        """The id of an event that was accepted."""
        event = self.person.sign(kind, content, list(tags))
        await self.send("EVENT", fields(event))
        assert (await self.wait("OK", event.id))[2:] == [True, ""]
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


class SdkClient:
    """The program beside this file. `heard` is every line of it that was no answer to a command."""

    def __init__(self, process: trio.Process) -> None:
        self.heard: list[dict[str, Any]] = []
        self._process = process
        self._rest = b""

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            more = await self._process.stdout.receive_some()
            assert more, "the SDK's program has ended"
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        found: dict[str, Any] = orjson.loads(line)
        return found

    async def answer(self, *names: str) -> Any:
        """The next line with one of these keys."""
        with trio.fail_after(SECONDS):
            while True:
                line = await self._line()
                for name in names:
                    if name in line:
                        return line[name]
                self.heard.append(line)

    async def _do(self, command: str, wanted: dict[str, Any], *answers: str) -> Any:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(orjson.dumps({command: wanted}) + b"\n")
        return await self.answer(*answers)

    async def publish(self, kind: int, content: str = "", *tags: list[str]) -> str:
        answer = await self._do("publish", {"kind": kind, "content": content, "tags": tags}, "published", "failed")
        assert isinstance(answer, str), answer
        return answer

    async def fetch(self, **filter_: Any) -> list[str]:
        return [event["id"] for event in await self._do("fetch", filter_, "fetched")]

    async def subscribe(self, **filter_: Any) -> None:
        """Returns when the stored events have been sent."""
        sub_id = await self._do("subscribe", filter_, "subscribed")
        ended = {"received": ["EOSE", sub_id]}
        while ended not in self.heard:
            self.heard.append({"received": await self.answer("received")})

    async def wait_event(self, event_id: str) -> None:
        """Until the library says that this event is new, unless it has said so."""
        while all(line.get("event", {}).get("id") != event_id for line in self.heard):
            self.heard.append({"event": await self.answer("event")})


@asynccontextmanager
async def sdk_client(url: str, person: Person) -> AsyncIterator[SdkClient]:
    """The SDK's client, connected and logged in."""
    secret = person.key.to_bytes().hex()
    command = [sys.executable, str(PROGRAM), url, secret]
    environment = {"PATH": os.environ["PATH"]}
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            lambda task_status: trio.run_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, check=False,
                task_status=task_status,
            )
        )  # fmt: skip
        client = SdkClient(process)
        assert await client.answer("ready") == person.pubkey
        # It logs in when the relay asks; a subscription that is answered to its end shows that it has.
        await client.subscribe(kinds=[0], authors=[person.pubkey])
        yield client
        nursery.cancel_scope.cancel()
