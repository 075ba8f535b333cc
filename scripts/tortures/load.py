"""The load: connections that publish without waiting, and a record of everything that they were told.

Most events are messages; the others change state (members, reactions, deletions, profiles, channels), and some are sent
twice. What is published follows from the seed; what is answered depends on when the relay dies.
"""

from __future__ import annotations

import random
import select
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

import orjson

from relay.nostr.event import Event
from scripts.benchmarks.client import Client, event, key, split_frames

DEPTH = 16
"""Events that a connection has sent and not been answered."""
PROFILE = 0
GUESTS = [key(1000 + number).public_hex for number in range(20)]


@dataclass
class Record:
    """What the relay has said to the clients, in this round and all before it; ids are hex."""

    sent: dict[str, int] = field(default_factory=dict)
    """Kind by id."""
    accepted: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    """Reason by id; those that were accepted at another time are taken out."""
    delivered: set[str] = field(default_factory=set)
    logins: int = 0
    """How many were answered OK true."""

    def answer(self, event_id: str, accepted: bool, message: str) -> None:
        if message == "duplicate:" and self.sent[event_id] == PROFILE:
            return  # also said of one that was older than the one stored: nothing is promised
        if accepted:
            self.accepted.add(event_id)
            self.refused.pop(event_id, None)
        elif event_id not in self.accepted:
            self.refused[event_id] = message

    def reasons(self) -> Counter[str]:
        return Counter(self.refused.values())


class Talker:
    """One connection. `on_data` and `fill` never wait for longer than it takes to hand bytes to the kernel."""

    def __init__(self, client: Client, number: int, channel: str, record: Record, chance: random.Random) -> None:
        self.client = client
        self.waiting = 0
        self.gone = False
        self._number = number
        self._channel = channel
        self._record = record
        self._chance = chance
        self._mine: list[Event] = []
        """My messages that may still be reacted to, deleted or sent again."""
        self._turn = 0

    def fill(self) -> None:
        while self.waiting < DEPTH and not self.gone:
            chosen = self._next()
            self._record.sent[chosen.id] = chosen.kind
            try:
                self.client.send(b'["EVENT",' + chosen.json + b"]")
            except OSError:
                return  # what the relay had answered before may still be read
            self.waiting += 1

    def _next(self) -> Event:
        self._turn += 1
        turn, roll = f"{self._number} {self._turn} {self._chance.random()}", self._chance.random()
        here = ["h", self._channel]
        if roll < 0.85 or not self._mine:
            # Some answer what was said before: those have a transaction with more than one statement.
            answers = [["e", self._chance.choice(self._mine).id, "", "reply"]] if self._mine and roll < 0.1 else []
            said = self._sign(9, turn, [here, *answers])
            self._mine = [*self._mine[-30:], said]
            return said
        if roll < 0.88:
            return self._chance.choice(self._mine)  # once more
        if roll < 0.91:
            return self._sign(7, f":{self._turn}:", [["e", self._chance.choice(self._mine).id]])
        if roll < 0.93:
            return self._sign(5, "", [["e", self._mine.pop(0).id]])
        if roll < 0.94:
            return self._sign(0, orjson.dumps({"display_name": turn}).decode())
        if roll < 0.945:
            return self._sign(9007, "", [["h", _uuid(self._chance)], ["name", turn], ["visibility", "private"]])
        if self._number == 0:
            guest = ["p", self._chance.choice(GUESTS)]
            return self._sign(self._chance.choice([9000, 9000, 9001]), turn, [here, guest])
        return self._sign(self._chance.choice([9021, 9022]), turn, [here])

    def _sign(self, kind: int, content: str, tags: list[list[str]] | None = None) -> Event:
        return event(self.client.secret, kind, content, tags)

    def on_data(self) -> None:
        """Reads what is there. A connection that the relay, or its death, has ended is `gone`."""
        try:
            data = self.client.sock.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            self.gone = True
            return
        frames, self.client.rest = split_frames(self.client.rest + data)
        for frame in frames:
            message = orjson.loads(frame)
            if message[0] == "OK":
                self.waiting -= 1
                self._record.answer(message[1], message[2], message[3])
            elif message[0] == "EVENT":
                self._record.delivered.add(message[2]["id"])


class Load:
    """All connections of one round, in a channel of its own. Poll it with `run`; `close` at the end."""

    def __init__(self, port: int, connections: int, record: Record, chance: random.Random) -> None:
        self.talkers: list[Talker] = []
        self.moments: list[float] = []
        """When events were accepted."""
        self._record = record
        self._poll = select.epoll()
        self._by_fd: dict[int, Talker] = {}
        self.channel = channel = _uuid(chance)
        for number in range(connections):
            client = Client("127.0.0.1", port, key(number))
            record.logins += 1
            if number == 0:
                created = event(client.secret, 9007, "", [["h", channel], ["name", "torture"], ["visibility", "open"]])
                record.sent[created.id] = created.kind
                client.publish(created)
                record.answer(created.id, True, "")
                client.send(orjson.dumps(["REQ", "live", {"#h": [channel]}]))
            talker = Talker(client, number, channel, record, random.Random(chance.random()))
            self.talkers.append(talker)
            self._by_fd[client.sock.fileno()] = talker
            self._poll.register(client.sock.fileno(), select.EPOLLIN)

    @property
    def all_gone(self) -> bool:
        return all(talker.gone for talker in self.talkers)

    @property
    def gone(self) -> int:
        return sum(talker.gone for talker in self.talkers)

    @property
    def waiting(self) -> int:
        return sum(talker.waiting for talker in self.talkers)

    def run(self, done: Callable[[], bool], seconds: float, *, publish: bool = True) -> bool:
        """Until `done()` (then True), for `seconds` at most. Without `publish` only answers are read."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            if publish:
                for talker in self.talkers:
                    talker.fill()
            for fd, _ in self._poll.poll(0.02):
                self._read(fd)
        return True

    def _read(self, fd: int) -> None:
        talker = self._by_fd[fd]
        before = len(self._record.accepted)
        talker.on_data()
        if len(self._record.accepted) > before:
            self.moments.append(time.monotonic())
        if talker.gone:
            self._poll.unregister(fd)

    def silence(self) -> float:
        """The longest time in which nothing was accepted, seconds."""
        return max((later - earlier for earlier, later in zip(self.moments, self.moments[1:], strict=False)), default=0)

    def close(self) -> None:
        self._poll.close()
        for talker in self.talkers:
            talker.client.close()


def _uuid(chance: random.Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))
