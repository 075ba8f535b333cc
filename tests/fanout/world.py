"""A hub with its tasks, and connections whose far ends a test reads."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
import trio

from relay.access.identity import Caller
from relay.fanout.hub import Batch, Hub, Live, LiveSubscription
from relay.fanout.items import Item
from relay.fanout.outbound import Outbound
from relay.nostr.event import Event
from relay.nostr.filter import parse_filter
from relay.nostr.messages import event_prefix, ws_frame
from relay.store.members import Audience
from tests.fanout.wire import take_frames
from tests.support.core import ALICE, Person

OTHER = "22222222-2222-4222-8222-222222222222"
FILLER = ws_frame(b"[" + b" " * 60_000 + b"]")


class Client:
    """One connection: a peer for the hub, and the far end of its socket."""

    def __init__(self, person: Person, near: trio.SocketStream, far: trio.SocketStream, nursery: trio.Nursery) -> None:
        self.caller: Caller | None = person.caller
        self.outbound = Outbound(near, nursery, on_close=lambda _: None)
        self.far = far
        self.dropped: list[str] = []

    def drop(self, reason: str) -> None:
        self.dropped.append(reason)

    async def receive(self, count: int) -> list[Any]:
        """The next frames' JSON; frames here are shorter than 64 KiB."""
        data = b""
        messages: list[Any] = []
        with trio.fail_after(3):
            while len(messages) < count:
                data += await self.far.receive_some(65536)
                while len(data) >= 4:
                    length, start = (data[1], 2) if data[1] < 126 else (int.from_bytes(data[2:4], "big"), 4)
                    if len(data) < start + length:
                        break
                    messages.append(orjson.loads(data[start : start + length]))
                    data = data[start + length :]
        assert not data
        return messages

    def receive_all(self) -> list[Any]:
        """The JSON of the frames that have come, which may be none."""
        try:
            data = os.read(self.far.socket.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        return [orjson.loads(payload) for _, payload in take_frames(bytearray(data), 1 << 30)]

    async def receive_queued(self) -> list[Any]:
        """The JSON of all frames that have come and still wait, without those that only fill the kernel."""
        data = b""
        with trio.fail_after(3):
            while self.outbound.statistics().queued_bytes:
                data += await self.far.receive_some(1 << 20)
        with suppress(BlockingIOError):
            while True:
                data += os.read(self.far.socket.fileno(), 1 << 20)
        frames = take_frames(bytearray(data), 1 << 30)
        return [orjson.loads(payload) for _, payload in frames if payload.strip(b"[ ]")]

    async def contents(self, count: int) -> list[str]:
        return [message[2]["content"] for message in await self.receive(count)]

    async def receive_nothing(self) -> None:
        with trio.move_on_after(0.05):
            raise AssertionError(await self.far.receive_some(1000))


class World:
    def __init__(self, hub: Hub, nursery: trio.Nursery) -> None:
        self.hub = hub
        self.nursery = nursery
        self.send = hub.dispatcher().send
        self.clients: list[Client] = []

    def client(self, person: Person) -> Client:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        streams = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (near, far)]
        client = Client(person, *streams, self.nursery)
        self.hub.connect(client)
        self.clients.append(client)
        return client

    async def subscribe(
        self, client: Client, name: str, *channels: str, live: bool = True, watch: bool = True, **wanted: Any
    ) -> LiveSubscription:
        """Unchecked, as a session does it after its checks."""
        if watch:
            await self.hub.watch(channels)
        subscription = LiveSubscription(
            client, name, (parse_filter(wanted),), frozenset(channels) or None, event_prefix(name)
        )
        self.hub.subscribe(subscription)
        if live:
            assert self.hub.go_live(subscription, None) == []
        return subscription

    @staticmethod
    def live(content: str, channel: str | None = None) -> Live:
        return Live(ALICE.sign(9, content), channel, None)

    @staticmethod
    def queue(client: Client, name: str, channel: str | None) -> None:
        """A stored event that waits in the connection, because the client does not read."""
        while not client.outbound.statistics().queued_bytes:
            client.outbound.offer(FILLER)
        client.outbound.offer(ws_frame(b'["EVENT","%s","stored"]' % name.encode()), channel)

    async def pass_items(self, *items: Item) -> None:
        """Returns when the fan-out task has gone past them."""
        passed = trio.Event()
        await self.send(Batch(items, passed))
        with trio.fail_after(3):
            await passed.wait()

    async def publish(self, *events: Event, channel: str | None = None, xid: int | None = None) -> None:
        await self.pass_items(*[Live(event, channel, xid) for event in events])


@asynccontextmanager
async def running_hub(audiences: dict[str, Audience], load: Any = None, **options: Any) -> AsyncIterator[World]:
    async def from_dict(wanted: Sequence[str]) -> Mapping[str, Audience]:
        await trio.lowlevel.checkpoint()
        return {channel: audiences[channel] for channel in wanted if channel in audiences}

    hub = Hub(load or from_dict, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        await nursery.start(hub.run_loader)
        world = World(hub, nursery)
        try:
            yield world
        finally:
            for client in world.clients:
                client.outbound._stream.socket.close()
                client.far.socket.close()
        nursery.cancel_scope.cancel()


def private(*people: Person) -> Audience:
    return Audience("private", frozenset(person.pubkey for person in people))


OPEN = Audience("open", frozenset())
