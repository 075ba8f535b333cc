"""An agent lives through a restart of the relay while people go on talking, and through being sent out of a channel."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from relay.nostr.event import Event
from tests.e2e.agent import NOTICES, Agent
from tests.e2e.people import Desk, desk
from tests.support.core import ALICE, BOB, CAROL, Person
from tests.support.launching import Launched, free_port, launched, reachable_dir
from tests.support.relay import fields

pytestmark = pytest.mark.slow
MESSAGES = 60
PAUSE_SECONDS = 0.08
REVOKED = "restricted: channel access revoked"


@asynccontextmanager
async def relay_on(port: int, directory: Path) -> AsyncIterator[Launched]:
    """The same address every time, so that a client finds it again."""
    address = {"SPROUT_BIND_ADDR": f"127.0.0.1:{port}", "RELAY_URL": f"ws://127.0.0.1:{port}"}
    async with launched("relay serve", directory, **address) as relay:
        yield await relay.ready()


@dataclass
class Talker:
    """Says its messages in turn, each until it is accepted, whatever becomes of the connection."""

    url: str
    person: Person
    channels: list[str]
    accepted: list[str] = field(default_factory=list)
    again: int = 0
    finished: trio.Event = field(default_factory=trio.Event)

    async def talk(self) -> None:
        messages = [
            self.person.sign(9, f"{number}", [["h", self.channels[number % len(self.channels)]]])
            for number in range(MESSAGES)
        ]
        while messages:
            with suppress(OSError, ConnectionClosed, InvalidHandshake):
                async with desk(self.url, self.person) as at:
                    while messages:
                        await self._say(at, messages[0])
                        del messages[0]
                        await trio.sleep(PAUSE_SECONDS)
            await trio.sleep(PAUSE_SECONDS)
        self.finished.set()

    async def _say(self, at: Desk, message: Event) -> None:
        """Raises ConnectionClosed; then it is not known whether the message was accepted, and it will be said again."""
        while True:
            await at.send("EVENT", fields(message))
            answer = await at.wait("OK", message.id)
            if answer[2:] in ([True, ""], [True, "duplicate:"]):
                self.again += answer[3] != ""
                self.accepted.append(message.id)
                return
            assert answer[2:] == [False, "error: shutting down"], answer


async def new_channel(owner: Desk, *members: Person) -> str:
    channel = str(uuid.uuid4())
    await owner.publish(9007, "", ["h", channel], ["name", "work"], ["visibility", "private"])
    for member in members:
        await owner.publish(9000, "", ["h", channel], ["p", member.pubkey])
    return channel


async def test_an_agent_sees_every_message_once_although_the_relay_restarts():
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    agent = Agent(url, CAROL)
    with reachable_dir() as directory:
        async with trio.open_nursery() as nursery:
            async with relay_on(port, directory) as relay:
                old, new = await introduced(url, agent, nursery)
                talkers = [Talker(url, person, [old, new]) for person in (ALICE, BOB)]
                for talker in talkers:
                    nursery.start_soon(talker.talk)
                await agent.wait_until(lambda: len(agent.handled) >= MESSAGES // 2)
                relay.signal(SIGTERM)
                assert (await relay.exit())[0] == 0, relay.stderr.read_text()
                before = len(agent.handled)
            async with relay_on(port, directory):
                await nobody_was_missed(agent, talkers, before)
                await sent_out(url, agent, old, new)
                nursery.cancel_scope.cancel()


async def introduced(url: str, agent: Agent, nursery: trio.Nursery) -> tuple[str, str]:
    """Two channels that the agent has found: one by asking who it is, one because it was told."""
    async with desk(url, ALICE) as alice:
        old = await new_channel(alice, BOB, CAROL)
        nursery.start_soon(agent.run)
        await agent.wait_until(lambda: old in agent.channels)
        new = await new_channel(alice, BOB, CAROL)
        await agent.wait_until(lambda: new in agent.channels)
        return old, new


async def nobody_was_missed(agent: Agent, talkers: list[Talker], before: int) -> None:
    with trio.fail_after(30):
        for talker in talkers:
            await talker.finished.wait()
    accepted = {id_ for talker in talkers for id_ in talker.accepted}
    assert len(accepted) == len(talkers) * MESSAGES
    assert before < len(accepted), "the restart came too late to show anything"
    await agent.wait_until(lambda: accepted <= set(agent.ids()))
    assert sorted(agent.ids()) == sorted(accepted), "handled twice, or what nobody was told was accepted"
    assert agent.connections == 2


async def sent_out(url: str, agent: Agent, old: str, new: str) -> None:
    """Removed from one channel, it drops its connection, comes back, and goes on with the other one."""
    async with desk(url, ALICE) as alice:
        await alice.subscribe("typing", **{"kinds": [20002], "#h": [old]})
        question = await alice.publish(9, "are you there?", ["h", old], ["p", CAROL.pubkey])
        await agent.wait_until(lambda: question in agent.ids())
        await agent.ping()
        await agent.type(old, ["e", question, "", "root"], ["e", question, "", "reply"])
        assert ["e", question, "", "reply"] in (await alice.wait("EVENT", "typing"))[2]["tags"]

        logins = agent.connections
        await alice.publish(9001, "", ["h", new], ["p", CAROL.pubkey])
        secret = await alice.publish(9, "without it", ["h", new])
        await agent.wait_until(lambda: (f"ch-{new}", REVOKED) in agent.closed)
        await agent.wait_until(lambda: new not in agent.channels and agent.notices[-1] == 44101)
        marker = await alice.publish(9, "go on", ["h", old])
        await agent.wait_until(lambda: marker in agent.ids())
        assert agent.connections > logins
        assert secret not in agent.ids()
        assert len(agent.ids()) == len(set(agent.ids()))
        assert not [name for name, _ in agent.closed if name == NOTICES]
