"""A small team's first day on a relay that was just installed, with clients that are not ours.

One story, told in order, since each step rests on those before it: real processes, real libraries, one data directory.
Whether somebody does *not* receive something is asked with a marker: an event that they do receive, sent afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
import trio

from relay.asyncpg_trio import connect
from relay.embedded import cluster
from tests.e2e.people import Desk, desk
from tests.e2e.programs import Program, sdk_client
from tests.support.core import ALICE, BOB, CAROL, Person
from tests.support.launching import REPOSITORY, Launched, launched, reachable_dir

TOWN = "aaaaaaaa-0000-4000-8000-000000000001"
ROOM = "bbbbbbbb-0000-4000-8000-000000000002"
NOT_MEMBER = "restricted: not a channel member"
REVOKED = "restricted: channel access revoked"
STOP_SECONDS_MAX = 8.5
"""The promise is eight; the half is for a machine that runs other tests at the same time."""
SCOPES = "channels:read,messages:read,messages:write"


@dataclass
class Day:
    """What outlives a process of the relay."""

    directory: Path
    tokens: dict[str, str] = field(default_factory=dict)
    said_in_room: list[str] = field(default_factory=list)
    """While Bob was a member, oldest first."""
    secrets: list[str] = field(default_factory=list)
    """After he was removed."""
    said_in_town: list[str] = field(default_factory=list)
    dm: str = ""
    said_in_dm: list[str] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The `relay` command, beside the relay that runs or without one."""
        command = [sys.executable, "-m", "relay", *arguments, "--data-dir", str(self.data_dir)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
        return await trio.to_thread.run_sync(
            lambda: subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=False, cwd=self.directory, env=environment
            )
        )


@dataclass
class Team:
    relay: Launched
    alice: Program
    bob: Desk
    carol: Desk


@asynccontextmanager
async def at_work(directory: Path) -> AsyncIterator[Team]:
    """A relay that is started with next to no configuration, and three people who have logged in."""
    async with launched("relay serve", directory) as relay:
        await relay.ready()
        async with sdk_client(relay.url, ALICE) as alice, desk(relay.url, BOB) as bob, desk(relay.url, CAROL) as carol:
            yield Team(relay, alice, bob, carol)


async def call(day: Day, team: Team, person: Person, path: str, body: Any = None) -> tuple[int, Any]:
    """An HTTP request with the person's API token: status and parsed JSON."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{team.relay.port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {day.tokens[person.pubkey]}", "Content-Type": "application/json"},
    )

    def send() -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    return await trio.to_thread.run_sync(send)


@pytest.mark.slow
async def test_a_day_of_a_small_team():
    with reachable_dir() as directory:
        day = Day(directory)
        async with at_work(directory) as team:
            await introduce_themselves(team)
            await open_channels(team)
            await talk(day, team)
            await the_stranger_sees_the_open_channel_only(day, team)
            await mint_tokens(day)
            await open_a_dm(day, team)
            await the_lists_show_what_each_may_see(day, team)
            await bob_is_removed(day, team)
            await stop(team)
        await the_chain_is_intact(day)
        async with at_work(directory) as team:
            await everything_is_still_there(day, team)
            await stop(team)
        await tampering_is_found_and_located(day)


async def introduce_themselves(team: Team) -> None:
    for client, name in ((team.alice, "Alice"), (team.bob, "Bob"), (team.carol, "Carol")):
        await client.publish(0, json.dumps({"display_name": name}))


async def open_channels(team: Team) -> None:
    for channel, name, visibility in ((TOWN, "town", "open"), (ROOM, "room", "private")):
        await team.alice.publish(9007, "", ["h", channel], ["name", name], ["visibility", visibility])
    await team.alice.publish(9000, "", ["h", ROOM], ["p", BOB.pubkey])


async def talk(day: Day, team: Team) -> None:
    """Each receives what the other says, live, in both channels."""
    alice, bob = team.alice, team.bob
    for channel in (TOWN, ROOM):
        await alice.subscribe(**{"kinds": [9], "#h": [channel]})
        await bob.subscribe(channel, **{"kinds": [9], "#h": [channel]})
    for somebody in (bob, team.carol):
        await somebody.subscribe("everything", kinds=[9, 9000, 9007, 40099])
        await somebody.subscribe("both", **{"#h": [TOWN, ROOM]})
    await team.carol.subscribe(TOWN, **{"#h": [TOWN]})
    for channel, said in ((ROOM, day.said_in_room), (TOWN, day.said_in_town)):
        said.append(await alice.publish(9, "good morning", ["h", channel]))
        assert (await bob.wait_event(channel, said[-1]))["content"] == "good morning"
        said.append(await bob.publish(9, "good morning, Alice", ["h", channel]))
        await alice.wait_event(said[-1])


async def the_stranger_sees_the_open_channel_only(day: Day, team: Team) -> None:
    carol = team.carol
    assert await carol.refused(**{"kinds": [9], "#h": [ROOM]}) == NOT_MEMBER
    assert set(await carol.stored(kinds=[9])) == set(day.said_in_town)
    assert await carol.stored(ids=day.said_in_room) == []
    await carol.send("EVENT", json.loads(CAROL.sign(9, "let me in", [["h", ROOM]]).json))
    assert (await carol.wait("OK"))[2:] == [False, NOT_MEMBER]
    marker = await team.bob.publish(9, "marker", ["h", TOWN])
    day.said_in_town.append(marker)
    await carol.wait_event("both", marker)
    await carol.wait_event(TOWN, marker)
    assert set(day.said_in_town) <= carol.events()
    assert not carol.events() & set(day.said_in_room)
    private = [frame for frame in carol.seen if frame[0] == "EVENT" and ["h", ROOM] in frame[2]["tags"]]
    assert private == []


async def mint_tokens(day: Day) -> None:
    for person in (ALICE, BOB, CAROL):
        done = await day.run("token", "mint", "--name", "day", "--scopes", SCOPES, "--pubkey", person.pubkey)
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("token ")]
        day.tokens[person.pubkey] = line.split()[1]


async def open_a_dm(day: Day, team: Team) -> None:
    status, opened = await call(day, team, ALICE, "/api/dms", {"pubkeys": [BOB.pubkey]})
    assert (status, opened["created"]) == (201, True)
    day.dm = opened["channel_id"]
    await team.bob.subscribe("dm", **{"#h": [day.dm], "kinds": [9]})
    day.said_in_dm.append(await team.alice.publish(9, "between us", ["h", day.dm]))
    await team.bob.wait_event("dm", day.said_in_dm[-1])
    assert await team.carol.refused(**{"#h": [day.dm]}) == NOT_MEMBER


async def channels_of(day: Day, team: Team, person: Person) -> dict[str, dict[str, Any]]:
    status, listed = await call(day, team, person, "/api/channels")
    assert status == 200
    return {channel["id"]: channel for channel in listed}


async def the_lists_show_what_each_may_see(day: Day, team: Team) -> None:
    for person in (ALICE, BOB):
        listed = await channels_of(day, team, person)
        assert listed.keys() == {TOWN, ROOM, day.dm}
        assert (listed[TOWN]["name"], listed[ROOM]["name"]) == ("town", "room")
        assert (listed[ROOM]["visibility"], listed[ROOM]["member_count"]) == ("private", 2)
        assert (listed[day.dm]["channel_type"], sorted(listed[day.dm]["participants"])) == ("dm", ["Alice", "Bob"])
        assert set(listed[day.dm]["participant_pubkeys"]) == {ALICE.pubkey, BOB.pubkey}
    assert (await channels_of(day, team, CAROL)).keys() == {TOWN}


async def bob_is_removed(day: Day, team: Team) -> None:
    """His subscription ends at once, and nothing of the channel reaches him on any way."""
    alice, bob = team.alice, team.bob
    await alice.publish(9001, "", ["h", ROOM], ["p", BOB.pubkey])
    ended = [await bob.wait("CLOSED"), await bob.wait("CLOSED")]
    assert sorted(ended) == [["CLOSED", ROOM, REVOKED], ["CLOSED", "both", REVOKED]]
    day.secrets.append(await alice.publish(9, "now that he has gone", ["h", ROOM]))
    marker = await alice.publish(9, "marker", ["h", TOWN])
    day.said_in_town.append(marker)
    await bob.wait_event(TOWN, marker)
    assert not bob.events() & set(day.secrets)
    await bob_is_out(day, bob)


async def bob_is_out(day: Day, bob: Desk) -> None:
    assert await bob.refused(**{"#h": [ROOM]}) == NOT_MEMBER
    assert await bob.stored(ids=[*day.secrets, *day.said_in_room]) == []
    assert set(await bob.stored(kinds=[9])) == {*day.said_in_town, *day.said_in_dm}


async def stop(team: Team) -> None:
    team.relay.signal(SIGTERM)
    assert await team.bob.closed() == 1012
    assert await team.carol.closed() == 1012
    code, seconds = await team.relay.exit()
    assert code == 0, team.relay.stderr.read_text()
    assert seconds <= STOP_SECONDS_MAX
    assert team.relay.postgres() == []


async def the_chain_is_intact(day: Day) -> None:
    done = await day.run("audit", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "intact" in done.stdout
    assert "outbox: 0 entries" in done.stdout


async def everything_is_still_there(day: Day, team: Team) -> None:
    alice, bob = team.alice, team.bob
    for channel, said in (
        (TOWN, day.said_in_town),
        (ROOM, [*day.said_in_room, *day.secrets]),
        (day.dm, day.said_in_dm),
    ):
        assert set(await alice.fetch(**{"kinds": [9], "#h": [channel]})) == set(said)
    await bob_is_out(day, bob)
    assert set(await team.carol.stored(kinds=[9])) == set(day.said_in_town)
    listed = await channels_of(day, team, ALICE)
    assert listed.keys() == {TOWN, ROOM, day.dm}
    assert listed[ROOM]["member_count"] == 1
    assert sorted(listed[day.dm]["participants"]) == ["Alice", "Bob"]
    assert (await channels_of(day, team, BOB)).keys() == {TOWN, day.dm}
    status, opened = await call(day, team, BOB, "/api/dms", {"pubkeys": [ALICE.pubkey]})
    assert (status, opened["channel_id"], opened["created"]) == (200, day.dm, False)


async def tampering_is_found_and_located(day: Day) -> None:
    """Somebody with the database in his hands changes one word of one entry."""
    async with launched("relay serve", day.directory) as relay:
        await relay.ready()
        con = await connect(cluster.dsn(cluster.socket_dir_of(day.data_dir)))
        await con.execute("ALTER TABLE audit_log DISABLE TRIGGER audit_log_append_only")
        victim = await con.fetchval("SELECT min(seq) FROM audit_log WHERE action = 'member_removed'")
        await con.execute("UPDATE audit_log SET actor = $1 WHERE seq = $2", CAROL.pubkey, victim)
        await con.execute("ALTER TABLE audit_log ENABLE TRIGGER audit_log_append_only")
        con.terminate()
        done = await day.run("audit", "verify")
        assert done.returncode == 1, done.stdout + done.stderr
        assert "BROKEN" in done.stdout
        assert f"hash mismatch at seq {victim}:" in done.stdout
