"""An agent on the relay, with the habits of the original's own: what it subscribes to, when it gives up a connection,
and how it comes back without missing a message or handling one twice.

It learns of its channels from the relay's membership notices, follows each under the name `ch-<channel>`, and after a
lost connection asks for everything since five seconds before the last event that it saw. A CLOSED or an OK false that
sounds of authorisation makes it drop the connection; any other CLOSED is answered with the same REQ again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import orjson
import trio
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.trio.client import ClientConnection, connect

from tests.support.core import Person
from tests.support.relay import auth_event, fields

KINDS = [9, 46010, 40007]
NOTICES = "membership-notif"
LOGIN_SECONDS = 5
PONG_SECONDS = 10
OVERLAP_SECONDS = 5
"""How far behind the last event it asks again: what comes twice is recognised by its id."""
BACKOFF_SECONDS = (0.05, 1.0)


class Dropped(Exception):
    """The connection is of no use any more."""


class Agent:
    """`handled`: what it would have worked on, in that order. `connections` and `repeats` say what it went through."""

    def __init__(self, url: str, person: Person) -> None:
        self.person = person
        self.handled: list[dict[str, Any]] = []
        self.channels: dict[str, None] = {}
        self.connections = 0
        self.repeats = 0
        self.closed: list[tuple[str, str]] = []
        self.notices: list[int] = []
        self.last_seen = int(time.time()) - OVERLAP_SECONDS
        self._url = url
        self._ids: set[str] = set()
        self._connection: ClientConnection | None = None
        self._changed = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        pause, longest = BACKOFF_SECONDS
        while True:
            with suppress(OSError, ConnectionClosed, InvalidHandshake, Dropped, trio.TooSlowError):
                async with connect(self._url, proxy=None) as connection:
                    await self._log_in(connection)
                    self._connection, pause = connection, BACKOFF_SECONDS[0]
                    self.connections += 1
                    await self._follow()
            self._connection = None
            await trio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _log_in(self, connection: ClientConnection) -> None:
        with trio.fail_after(LOGIN_SECONDS):
            verb, challenge = orjson.loads(await connection.recv())
            assert verb == "AUTH", verb
            event = auth_event(self.person, challenge, relay=self._url)
            await connection.send(orjson.dumps(["AUTH", fields(event)]).decode())
            verb, id_, accepted, why = orjson.loads(await connection.recv())
            assert (verb, id_) == ("OK", event.id)
            if not accepted:
                raise Dropped(why)

    async def _follow(self) -> None:
        await self._request(NOTICES)
        for channel in self.channels:
            await self._request(f"ch-{channel}")
        while True:
            await self._handle(orjson.loads(await self._receive()))

    async def _receive(self) -> str | bytes:
        assert self._connection is not None
        return await self._connection.recv()

    async def _send(self, *message: Any) -> None:
        if self._connection is None:
            raise Dropped
        await self._connection.send(orjson.dumps(message).decode())

    async def _request(self, name: str) -> None:
        since = self.last_seen - OVERLAP_SECONDS
        if name == NOTICES:
            await self._send("REQ", name, {"kinds": [44100, 44101], "#p": [self.person.pubkey], "since": since})
        else:
            await self._send("REQ", name, {"kinds": KINDS, "#h": [name.removeprefix("ch-")], "since": since})

    async def _handle(self, frame: list[Any]) -> None:
        match frame:
            case ["EVENT", name, event]:
                await self._see(name, event)
            case ["CLOSED", name, why]:
                self.closed.append((name, why))
                self._tell()
                if why.startswith(("auth-required", "restricted")) or "auth" in why:
                    raise Dropped(why)
                if why and (name == NOTICES or name.removeprefix("ch-") in self.channels):
                    await self._request(name)
            case ["OK", _, False, why] if why.startswith("auth"):
                raise Dropped(why)

    async def _see(self, name: str, event: dict[str, Any]) -> None:
        if event["id"] in self._ids:
            self.repeats += 1
            return
        self._ids.add(event["id"])
        if name == NOTICES:
            await self._change_channels(event)
        else:
            assert ["h", name.removeprefix("ch-")] in event["tags"], (name, event)
            self.handled.append(event)
        self.last_seen = max(self.last_seen, event["created_at"])
        self._tell()

    async def _change_channels(self, event: dict[str, Any]) -> None:
        (channel,) = [tag[1] for tag in event["tags"] if tag[0] == "h"]
        self.notices.append(event["kind"])
        if event["kind"] == 44100:
            self.channels[channel] = None
            await self._request(f"ch-{channel}")
        elif channel in self.channels:
            del self.channels[channel]
            await self._send("CLOSE", f"ch-{channel}")

    async def type(self, channel: str, *e_tags: list[str]) -> None:
        """Shows that it is at work. Nobody waits for the answer."""
        await self._send("EVENT", fields(self.person.sign(20002, "", [["h", channel], *e_tags])))

    async def ping(self) -> None:
        """Raises trio.TooSlowError if the relay has gone deaf."""
        assert self._connection is not None
        with trio.fail_after(PONG_SECONDS):
            await (await self._connection.ping()).wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_until(self, fits: Any, seconds: float = 30) -> None:
        """Until something holds that depends on what it has received."""
        with trio.move_on_after(seconds):
            while not fits():
                await self._changed.wait()
            return
        raise AssertionError(f"{len(self.handled)} handled, {self.closed}, {self.channels}, {self.connections} logins")

    def ids(self) -> list[str]:
        return [event["id"] for event in self.handled]
