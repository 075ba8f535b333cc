"""What a load publishes and asks for: messages in a room of this relay, or plain notes, which every Nostr relay takes.

The same loads run on both, so that a peer is measured with exactly what measures us.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import uuid4

import orjson

from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from scripts.benchmarks.client import Client, connect, event, key
from scripts.benchmarks.target import Target

Json = dict[str, object]


def open_channel(client: Client, visibility: str = "open") -> str:
    channel = str(uuid4())
    client.publish(event(client.secret, 9007, tags=[["h", channel], ["name", "bench"], ["visibility", visibility]]))
    return channel


@dataclass
class Scene:
    """A relay, whether to log in, and with which key where it shall not be one for each connection."""

    target: Target
    login: bool = True
    secret: SecretKey | None = None

    def connect(self, numbers: Iterable[int]) -> list[Client]:
        where = self.target
        secrets = [self.secret or key(number) for number in numbers]
        return connect(where.host, where.port, secrets, path=where.path, login=self.login)

    def place(self, owner: Client, members: Iterable[int] = ()) -> Place:
        """Somewhere to publish that holds nothing yet; `members` are numbers of keys."""
        raise NotImplementedError


@dataclass
class Place:
    """Where the events of one run go."""

    kind: int
    tags: list[list[str]]
    wanted: Json

    def event(self, client: Client, content: str) -> Event:
        return event(client.secret, self.kind, content, self.tags)

    def frame(self, client: Client, content: str) -> bytes:
        return b'["EVENT",' + self.event(client, content).json + b"]"

    def request(self, name: str, **more: object) -> bytes:
        return orjson.dumps(["REQ", name, self.wanted | more])


class Rooms(Scene):
    """Kind 9 in a new channel: authenticated, authorised, audited."""

    def place(self, owner: Client, members: Iterable[int] = ()) -> Place:
        channel = open_channel(owner)
        for number in members:
            owner.publish(event(owner.secret, 9000, tags=[["h", channel], ["p", key(number).public_hex]]))
        return Place(9, [["h", channel]], {"kinds": [9], "#h": [channel]})


class Notes(Scene):
    """Kind 1, told apart by a tag that nobody else uses."""

    def place(self, owner: Client, members: Iterable[int] = ()) -> Place:  # noqa: ARG002  (nobody is a member of notes)
        topic = f"bench{uuid4().hex[:12]}"
        return Place(1, [["t", topic]], {"kinds": [1], "#t": [topic]})
