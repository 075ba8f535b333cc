"""What an event costs when thousands of subscriptions want something else.

`run` measures the index and the hub in this process: ten subscriptions that match, each on a connection of its own,
beside 10, 100, 1 000 and 10 000 global ones that do not (a fifth each asks for other authors, other `p` and `e` tags,
other ids, other kinds). `match` is the look-up alone; `pass` is the whole way through the fan-out task, from the queue
to ten sockets. The sizes take turns within a run, so that a ratio compares the same minute of the same machine.
`through_relay` sends ephemeral events over sockets through a relay that holds 10 and then 10 000 such subscriptions.
"""

from __future__ import annotations

import gc
import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import trio

from relay.access.identity import AuthMethod, Caller
from relay.fanout.hub import Batch, Hub, Live, LiveSubscription
from relay.fanout.outbound import Outbound
from relay.nostr.event import Event
from relay.nostr.filter import parse_filter
from relay.nostr.messages import event_prefix
from relay.store.members import Audience
from scripts.benchmarks.client import Client, Poller, event, key
from scripts.benchmarks.client import connect as connect_clients
from scripts.benchmarks.target import Target

Figures = dict[str, float]

OTHERS = (10, 100, 1_000, 10_000)
SUBSCRIPTIONS_PER_CONNECTION = 100
ROUNDS, EVENTS = 15, 100
KIND = 20002  # ephemeral, so that the way through the relay does not wait for a disk
AUTHOR = key(0)
P, E = "ab" * 32, "cd" * 32
TAGS = [["p", P], ["e", E, "", "reply"], ["e", "ef" * 32, "", "root"], ["p", "12" * 32]]

MATCHING: tuple[dict[str, Any], ...] = (
    *[{"kinds": [KIND]}] * 3,
    *[{"authors": [AUTHOR.public_hex], "kinds": [KIND]}] * 3,
    *[{"#p": [P], "kinds": [KIND]}] * 2,
    *[{"#e": [E], "kinds": [KIND]}] * 2,
)


def others(count: int) -> Iterator[dict[str, Any]]:
    """Filters that no event of these benchmarks matches."""
    for number in range(count):
        unknown = f"{1 << 200 | number:064x}"
        match number % 5:
            case 0:
                yield {"authors": [key(number + 1).public_hex], "kinds": [KIND]}
            case 1:
                yield {"#p": [unknown], "kinds": [KIND]}
            case 2:
                yield {"#e": [unknown], "kinds": [KIND]}
            case 3:
                yield {"ids": [unknown]}
            case _:
                yield {"kinds": [30_000 + number % 1000]}


# ---- in this process


class _Peer:
    """A connection of the hub and the far end of its socket, which takes what comes."""

    def __init__(self, number: int, nursery: trio.Nursery) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.far.setblocking(False)
        self.caller: Caller | None = Caller(f"{number:064x}", frozenset(), AuthMethod.PUBKEY)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        self.outbound = Outbound(stream, nursery, on_close=lambda reason: self.drop(str(reason)))

    def drop(self, reason: str) -> None:
        raise AssertionError(reason)

    def drain(self) -> int:
        taken = 0
        with suppress(BlockingIOError):
            while True:
                taken += len(os.read(self.far.fileno(), 1 << 18))
        return taken

    def close(self) -> None:
        self.outbound._stream.socket.close()
        self.far.close()


async def _nobody(wanted: Sequence[str]) -> Mapping[str, Audience]:  # noqa: ARG001
    raise AssertionError("no channel is asked for")


class _Side:
    """A hub with the ten subscriptions that match and `count` that do not."""

    def __init__(self, count: int, nursery: trio.Nursery) -> None:
        self.hub = Hub(_nobody)
        self.send = self.hub.dispatcher().send
        self.matching = [_Peer(number, nursery) for number in range(len(MATCHING))]
        self.peers = list(self.matching)
        for number, (peer, wanted) in enumerate(zip(self.matching, MATCHING, strict=True)):
            self._subscribe(peer, f"match{number}", wanted)
        for number, wanted in enumerate(others(count)):
            if number % SUBSCRIPTIONS_PER_CONNECTION == 0:
                self.peers.append(_Peer(len(self.peers), nursery))
            self._subscribe(self.peers[-1], f"other{number}", wanted)
        self.match_us: list[float] = []
        self.pass_us: list[float] = []

    def _subscribe(self, peer: _Peer, name: str, wanted: dict[str, Any]) -> None:
        subscription = LiveSubscription(peer, name, (parse_filter(wanted),), None, event_prefix(name))
        self.hub.subscribe(subscription)
        self.hub.go_live(subscription, None)

    def match(self, events: list[Event]) -> None:
        match = self.hub.index.match
        started = time.perf_counter()
        for each in events:
            match(each, None)
        self.match_us.append(1e6 * (time.perf_counter() - started) / len(events))

    async def deliver(self, events: list[Event]) -> None:
        passed = trio.Event()
        batches = [Batch([Live(each, None, None)]) for each in events[:-1]]
        batches.append(Batch([Live(events[-1], None, None)], passed))
        started = time.perf_counter()
        for batch in batches:
            await self.send(batch)
        await passed.wait()
        self.pass_us.append(1e6 * (time.perf_counter() - started) / len(events))
        assert all(peer.drain() for peer in self.matching)


def _fresh(signed: Event) -> Event:
    """The same event as if it had just come: what an `Event` remembers of itself is forgotten."""
    return Event(signed.id, signed.pubkey, signed.created_at, signed.kind, signed.tags, signed.content, signed.sig)


async def run() -> Figures:
    """One run."""
    signed = [event(AUTHOR, KIND, f"{number} " + "x" * 60, TAGS) for number in range(EVENTS)]
    async with trio.open_nursery() as nursery:
        sides = {count: _Side(count, nursery) for count in OTHERS}
        for side in sides.values():
            await nursery.start(side.hub.run)
        gc.collect()
        gc.freeze()  # as the relay does after its start
        gc.disable()
        try:
            for _ in range(ROUNDS):
                for side in sides.values():
                    side.match([_fresh(each) for each in signed])
                    await side.deliver([_fresh(each) for each in signed])
        finally:
            gc.enable()
            gc.unfreeze()
        for side in sides.values():
            for peer in side.peers:
                peer.close()
        nursery.cancel_scope.cancel()
    return _figures(sides)


def _figures(sides: dict[int, _Side]) -> Figures:
    figures: Figures = {}
    measures: tuple[tuple[str, Callable[[_Side], list[float]]], ...] = (
        ("match", lambda side: side.match_us),
        ("pass", lambda side: side.pass_us),
    )
    for name, values in measures:
        median = {count: statistics.median(values(side)) for count, side in sides.items()}
        figures |= {f"{name}_us_beside_{count}": took for count, took in median.items()}
        figures |= {f"{name}_ratio_{count}_to_10": median[count] / median[10] for count in OTHERS[1:]}
    for count, side in sides.items():
        seen = side.hub.index.statistics()
        figures[f"examined_per_match_beside_{count}"] = seen.examined / seen.matched
    return figures


# ---- through a relay


def through_relay(target: Target, *, events: int = 2000, in_flight: int = 16) -> Figures:
    """Ephemeral events to ten subscribers, beside 10 and then 10 000 subscriptions of other connections."""
    [publisher] = connect_clients(target.host, target.port, [0])
    matching = connect_clients(target.host, target.port, range(1, len(MATCHING) + 1))
    for client, wanted in zip(matching, MATCHING, strict=True):
        _request(client, {"s": wanted})
    crowd: list[Client] = []
    figures: Figures = {}
    have = 0
    for count in (OTHERS[0], OTHERS[-1]):
        more = list(others(count))[have:]
        for start in range(0, len(more), SUBSCRIPTIONS_PER_CONNECTION):
            [client] = connect_clients(target.host, target.port, [1000 + len(crowd)])
            crowd.append(client)
            part = more[start : start + SUBSCRIPTIONS_PER_CONNECTION]
            _request(client, {f"{number}": each for number, each in enumerate(part)})
        have = count
        _flood(publisher, matching, events // 4, in_flight)  # warm
        figures[f"events_per_second_beside_{count}"] = _flood(publisher, matching, events, in_flight)
    few, many = (figures[f"events_per_second_beside_{count}"] for count in (OTHERS[0], OTHERS[-1]))
    for client in (*matching, *crowd, publisher):
        client.close()
    return figures | {"relay_ratio": few / many}


def _request(client: Client, wanted: dict[str, dict[str, Any]]) -> None:
    for name, each in wanted.items():
        client.send(orjson.dumps(["REQ", name, each | {"limit": 1}]))
    for _ in wanted:
        client.read("EOSE")


def _flood(publisher: Client, matching: list[Client], events: int, in_flight: int) -> float:
    """Events a second until every subscriber has them all."""
    frames = deque(
        b'["EVENT",' + event(publisher.secret, KIND, f"{number:06} " + "x" * 60, TAGS).json + b"]"
        for number in range(events)
    )
    size = len(matching) * (4 + len(b'["EVENT","s",') + len(frames[0]) - len(b'["EVENT",'))
    received = 0

    def on_data(client: Client, data: bytes) -> None:
        nonlocal received
        if client is not publisher:
            received += len(data)
            return
        client.rest += data
        done = client.rest.count(b'["OK"')
        client.rest = client.rest[client.rest.rfind(b'["OK"') + 1 :] if done else client.rest
        for _ in range(min(done, len(frames))):
            client.send(frames.popleft())

    publisher.rest = b""
    poller = Poller([*matching, publisher], on_data)
    started = time.perf_counter()
    for _ in range(min(in_flight, events)):
        publisher.send(frames.popleft())
    poller.run_until(lambda: received >= events * size, 120)
    seconds = time.perf_counter() - started
    assert received == events * size, (received, events * size)
    poller.close()
    publisher.rest = b""
    return events / seconds
