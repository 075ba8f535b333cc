"""`scripts/bench soak`: mixed load for a while, and the slope of the memory of the relay and of its PostgreSQL.

Six kinds of work take turns on one relay: messages, REQs, connections that log in and go, subscriptions that come and
go, the channel list over HTTP, and events that are refused. Memory is read every few seconds; the slope is the least
squares line through what was read after the first quarter, in which caches and pools fill.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson

from scripts.benchmarks.client import Client, event, key
from scripts.benchmarks.meter import Figures, rss_kib, use
from scripts.benchmarks.report import number as shown
from scripts.benchmarks.scene import Place, Rooms
from scripts.benchmarks.target import GENERATOR_CORE, Target, pin, raise_file_limit, target

WRITERS, ROOMS = 20, 20
READ_SECONDS = 5.0
WARM_SHARE = 0.25
MESSAGES = 30
"""Published in one turn."""


def slope(points: list[tuple[float, float]]) -> float:
    """Of the least squares line through (x, y)."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


class Soak:
    """The clients and what each turn does; all of it follows from the seed."""

    def __init__(self, relay: Target, seed: int) -> None:
        self.chance = random.Random(seed)
        self.scene = Rooms(relay)
        self.clients = self.scene.connect(range(WRITERS))
        self.places: list[Place] = [self.scene.place(self.clients[0], range(1, WRITERS)) for _ in range(ROOMS)]
        self.done: Counter[str] = Counter()
        self.number = 0
        self.turns: list[Callable[[], None]] = [
            self.publish, self.publish, self.publish, self.ask, self.ask, self.come_and_go, self.subscribe,
            self.list_channels, self.offend,
        ]  # fmt: skip

    def turn(self) -> None:
        function = self.chance.choice(self.turns)
        function()
        self.done[function.__name__] += 1

    def _client(self) -> Client:
        return self.chance.choice(self.clients)

    def publish(self) -> None:
        client, place = self._client(), self.chance.choice(self.places)
        for _ in range(MESSAGES):
            self.number += 1
            client.send(place.frame(client, f"{self.number} " + "x" * self.chance.randrange(400)))
        for _ in range(MESSAGES):
            ok = client.read("OK")
            assert ok[2], ok

    def ask(self) -> None:
        client = self._client()
        client.send(self.chance.choice(self.places).request("asked", limit=self.chance.choice([0, 1, 50, 500])))
        client.read("EOSE")
        client.send(b'["CLOSE","asked"]')

    def come_and_go(self) -> None:
        """Some leave in the middle of what they asked for."""
        for client in self.scene.connect(range(1000, 1010)):
            client.send(self.chance.choice(self.places).request("s", limit=100))
            if self.chance.random() < 0.5:
                client.read("EOSE")
            client.close()

    def subscribe(self) -> None:
        client = self._client()
        for number in range(20):
            client.send(self.chance.choice(self.places).request(f"{number}", limit=0))
        for number in range(20):
            client.send(orjson.dumps(["CLOSE", str(number)]))
        client.send(self.places[0].request("end", limit=0))
        while client.read("EOSE")[1] != "end":
            pass
        client.send(b'["CLOSE","end"]')

    def list_channels(self) -> None:
        where = self.scene.target
        connection = http.client.HTTPConnection(where.host, where.port, timeout=20)
        headers = {"X-Pubkey": key(self.chance.randrange(WRITERS)).public_hex}
        for _ in range(5):
            connection.request("GET", "/api/channels", headers=headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert len(orjson.loads(answer.read())) >= ROOMS
        connection.close()

    def offend(self) -> None:
        client = self._client()
        wrong = event(client.secret, 9, "x", [["h", self.places[0].tags[0][1]]])
        client.send(b'["EVENT",' + wrong.json.replace(b'"content":"x"', b'"content":"y"') + b"]")
        assert not client.read("OK")[2]

    def close(self) -> None:
        for client in self.clients:
            client.close()


def run(relay: Target, seconds: float, seed: int) -> Figures:
    assert relay.pid is not None
    soak = Soak(relay, seed)
    started = read = time.perf_counter()
    memory: dict[str, list[tuple[float, float]]] = {"relay": [], "postgres": []}
    before = use(relay.pid)
    while (now := time.perf_counter()) < started + seconds:
        soak.turn()
        if now - read >= min(READ_SECONDS, seconds / 20):
            read = now
            minutes = (now - started) / 60
            memory["relay"].append((minutes, rss_kib(relay.pid)))
            memory["postgres"].append((minutes, rss_kib(relay.pid, postgres=True)))
    used = use(relay.pid) - before
    soak.close()
    print(f"turns: {dict(soak.done)}, {soak.number} messages", file=sys.stderr)
    figures: Figures = {"minutes": seconds / 60, "messages": float(soak.number)}
    for name, points in memory.items():
        late = points[int(len(points) * WARM_SHARE) :]
        figures |= {
            f"{name}_kib_per_minute": slope(late),
            f"{name}_kib_first": late[0][1],
            f"{name}_kib_last": late[-1][1],
            f"{name}_kib_most": max(value for _, value in points),
        }
    return figures | used.shares()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    raise_file_limit()
    with target(None, SPROUT_DEV_X_PUBKEY="true") as relay:
        pin(GENERATOR_CORE)
        figures = run(relay, options.minutes * 60, options.seed)
    for name, value in figures.items():
        print(f"  {name:28} {shown(value):>12}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
