"""Two things at once that must not both have their way: rounds of races between real connections to a real relay.

    scripts/race [--rounds N] [--seed N] [--lanes N] [--only RACE]

Each round has a channel of its own; who comes first is left to chance, which also chooses the pauses before each move.
A lane is one set of people with their connections; lanes run at the same time, so that a round is never alone.

What has to hold does not depend on who wins: see the races' own words. Whether something was *not* delivered is known
when a REQ that was sent afterwards on that connection has been answered: what leaves a connection leaves in order, and
an event is on its way to everybody before its author has the OK. Exit code 0: no breach; 1: at least one.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import trio

from relay.errors import leaves
from tests.e2e.players import NOT_MEMBER, REVOKED, Breach, Player, Round, nothing_after
from tests.support.core import Person
from tests.support.launching import launched, reachable_dir
from tests.support.relay import Client


async def removal_and_posts(race: Round) -> None:
    """A member is removed while he and others post. From the OK on nothing reaches him and nothing of his is accepted;
    what he was told he had posted, everybody has."""
    await race.open("private", race.member, race.writer)
    await race.member.subscribe("live", **race.followed())
    secrets: list[str] = []
    before = await race.writer.publish(9, race.h)
    race.accepted[race.owner.person.pubkey] = [before]

    async def remove() -> None:
        await race.pause()
        await race.owner.publish(9001, race.h, ["p", race.member.person.pubkey])
        secrets.append(await race.writer.publish(9, race.h))
        race.accepted[race.owner.person.pubkey].append(secrets[0])
        await race.shut_out(race.member)

    await race.together(remove, partial(race.talk, race.member, 4), partial(race.talk, race.writer, 4))
    await race.member.wait("CLOSED", "live", REVOKED)
    await race.member.fence()
    nothing_after(race.member, "live", secrets)
    if before not in race.member.events("live"):
        raise Breach("a message from before the removal was not delivered")
    await race.check_record()


async def the_last_two_owners(race: Round) -> None:
    """Two owners leave, remove or demote each other at once: never without an owner, who can still act as one."""
    one, other = race.owner, race.member
    await race.open("open", other, role="owner")
    refusals = {}

    async def act(player: Player, against: Player) -> None:
        kind, tags = race.chance.choice(
            [
                (9022, [race.h]),
                (9001, [race.h, ["p", against.person.pubkey]]),
                (9000, [race.h, ["p", against.person.pubkey], ["role", "member"]]),
            ]
        )
        await race.pause()
        _, refusals[player] = await player.submit(kind, *tags)

    await race.together(partial(act, one, other), partial(act, other, one))
    admins, *more = await race.writer.stored(**{"kinds": [39001], "#h": [race.channel]})
    if more:
        raise Breach(f"two accounts of who is an admin: {admins}, {more}")
    owners = [tag[1] for tag in admins["tags"] if tag[0] == "p" and tag[2] == "owner"]
    if not owners:
        raise Breach(f"no owner is left: {admins['tags']}, {list(refusals.values())}")
    for player in (one, other):
        _, why = await player.submit(9002, race.h, ["name", "still here"])
        if (player.person.pubkey in owners) != (why == ""):
            raise Breach(f"owners are {owners}, an owner's act got {why!r}")


async def request_and_removal(race: Round) -> None:
    """A member asks for the channel while he is removed, and for everything that the writer has ever said. Whichever
    answers he gets, no subscription to the channel is left, and nothing that was said later is among them."""
    await race.open("private", race.member, race.writer)
    said = [await race.writer.publish(9, race.h) for _ in range(3)]
    race.accepted[race.writer.person.pubkey] = list(said)
    secrets: list[str] = []

    async def ask() -> None:
        await race.pause()
        everything = ["REQ", "all", {"kinds": [9], "authors": [race.writer.person.pubkey]}]
        for request in race.chance.sample([["REQ", "live", race.followed()], everything], 2):
            await race.member.send(*request)

    async def remove() -> None:
        await race.pause()
        await race.owner.publish(9001, race.h, ["p", race.member.person.pubkey])
        secrets.append(await race.writer.publish(9, race.h))
        race.accepted[race.writer.person.pubkey].append(secrets[0])

    await race.together(ask, remove)
    closed = (await race.member.wait("CLOSED", "live"))[2]
    await race.member.wait("EOSE", "all")
    await race.member.fence()
    nothing_after(race.member, "live", secrets)
    await race.member.send("CLOSE", "all")
    await race.member.wait("CLOSED", "all")
    if closed not in (NOT_MEMBER, REVOKED) or len(race.member.frames("CLOSED", "live")) != 1:
        raise Breach(f"ended with {race.member.frames('CLOSED', 'live')}")
    if closed == NOT_MEMBER and race.member.events("live"):
        raise Breach("refused, and answered")
    await race.check_record()


async def request_and_close(race: Round) -> None:
    """REQ and CLOSE of one name in quick succession, while somebody posts: the last one stands."""
    await race.open("open", race.member)
    orders = [race.chance.choice(["REQ", "CLOSE"]) for _ in range(race.chance.randrange(1, 6))]
    orders = ["REQ", *orders]

    async def ask() -> None:
        await race.pause()
        for order in orders:
            await race.member.send(order, "live", *([race.followed()] if order == "REQ" else []))

    await race.together(ask, partial(race.talk, race.writer, 4))
    await race.member.fence()
    if len(race.member.frames("CLOSED", "live", "")) != orders.count("CLOSE"):
        raise Breach(f"{orders} were answered with {race.member.frames('CLOSED', 'live')}")
    marker = await race.writer.publish(9, race.h)
    race.accepted[race.writer.person.pubkey].append(marker)
    await race.member.fence()
    if orders[-1] == "CLOSE":
        nothing_after(race.member, "live", [marker])
    elif race.member.events("live").count(marker) != 1:
        raise Breach(f"after {orders} the marker came {race.member.events('live').count(marker)} times")
    await race.check_record()
    if orders[-1] == "REQ":
        await race.member.send("CLOSE", "live")
        await race.member.wait("CLOSED", "live", "", times=orders.count("CLOSE") + 1)


async def going_private(race: Round) -> None:
    """An open channel becomes private while a stranger follows it, or begins to, and posts."""
    await race.open("open", race.writer)
    asked_before = race.chance.random() < 0.5
    if asked_before:
        await race.member.subscribe("live", **race.followed())
    secrets: list[str] = []

    async def ask() -> None:
        await race.pause()
        if not asked_before:
            await race.member.send("REQ", "live", race.followed())

    async def hide() -> None:
        await race.pause()
        await race.owner.publish(9002, race.h, ["visibility", "private"])
        secrets.append(await race.writer.publish(9, race.h))
        race.accepted[race.owner.person.pubkey] = list(secrets)
        await race.shut_out(race.member)

    await race.together(ask, hide, partial(race.talk, race.member, 3), partial(race.talk, race.writer, 3))
    closed = (await race.member.wait("CLOSED", "live"))[2]
    await race.member.fence()
    nothing_after(race.member, "live", secrets)
    if closed not in (NOT_MEMBER, REVOKED):
        raise Breach(f"closed with {closed!r}")
    await race.check_record()


async def the_end_of_a_group(race: Round) -> None:
    """The group is deleted while its members post: only what was accepted is delivered, and afterwards it is closed.
    (A message that was accepted in the very moment of the deletion need not have been delivered.)"""
    await race.open("private", race.member, race.writer)

    async def delete() -> None:
        await race.pause()
        await race.owner.publish(9008, race.h)
        await race.together(*(partial(race.shut_out, player) for player in (race.owner, race.member, race.writer)))

    await race.together(delete, partial(race.talk, race.member, 4), partial(race.talk, race.writer, 4))
    await race.owner.wait("CLOSED", "record", REVOKED)
    await race.owner.fence()
    nothing_after(race.owner, "record", [])
    accepted = [id_ for ids in race.accepted.values() for id_ in ids]
    delivered = race.owner.events("record")
    if len(delivered) != len(set(delivered)) or not set(delivered) <= set(accepted):
        raise Breach(f"accepted {accepted}, delivered {delivered}")
    await race.member.send("REQ", "late", {"#h": [race.channel]})
    if (await race.member.wait("CLOSED", "late"))[2] != NOT_MEMBER:
        raise Breach("a deleted group can still be read")


RACES: tuple[Callable[[Round], Awaitable[None]], ...] = (
    removal_and_posts,
    the_last_two_owners,
    request_and_removal,
    request_and_close,
    going_private,
    the_end_of_a_group,
)

Connect = Callable[[Person], Awaitable[Client]]


async def run_lane(
    connect: Connect, numbers: Iterator[int], rounds: Iterator[int], seed: int, only: str, say: Callable[[str], None]
) -> list[str]:
    """Rounds of every race, one after the other, with connections of its own. Returns the breaches."""
    breaches = []
    async with trio.open_nursery() as nursery:
        players = []
        for person in (Person.number(next(numbers)) for _ in range(3)):
            players.append(Player(person, await connect(person)))
            nursery.start_soon(players[-1].read)
        for number in rounds:
            for race in RACES:
                if only and race.__name__ != only:
                    continue
                for player in players:
                    player.seen.clear()
                chance = random.Random(f"{seed} {race.__name__} {number}")
                try:
                    await race(Round(chance, *chance.sample(players, 3)))
                except* Breach as group:
                    texts = [str(error) for error in leaves(group)]
                    breaches.append(f"{race.__name__}, round {number}, seed {seed}: {'; '.join(texts)}")
                    say(breaches[-1])
                    for player in players:
                        say(f"  {player.person.pubkey[:6]} saw {[_short(frame) for frame in player.seen[-60:]]}")
        nursery.cancel_scope.cancel()
    return breaches


def _short(frame: list[Any]) -> str:
    if frame[0] == "EVENT":
        return f"EVENT {frame[1]} {frame[2]['kind']} {frame[2]['id'][:8]}"
    return " ".join(str(part)[:48] for part in frame)


async def campaign(
    connect: Connect, *, rounds: int, seed: int, lanes: int, only: str = "", say: Callable[[str], None] = print
) -> list[str]:
    """`rounds` of each race, shared by the lanes."""
    numbers, left = itertools.count(5000), iter(range(rounds))
    breaches: list[str] = []

    async def lane() -> None:
        breaches.extend(await run_lane(connect, numbers, left, seed, only, say))

    async with trio.open_nursery() as nursery:
        for _ in range(lanes):
            nursery.start_soon(lane)
    return breaches


async def against_a_process(**wanted: Any) -> list[str]:
    """The campaign against `relay serve` in a process of its own."""
    with reachable_dir() as directory:
        async with launched("relay serve", directory) as relay, trio.open_nursery() as nursery:
            await relay.ready()
            began = time.monotonic()
            breaches = await campaign(lambda person: relay.connect(nursery, person), **wanted)
            print(f"{time.monotonic() - began:.1f} s, start and end not counted")
            nursery.cancel_scope.cancel()
    return breaches


def main() -> int:
    parser = argparse.ArgumentParser(description="Races between connections, on a relay of its own.")
    parser.add_argument("--rounds", type=int, default=1000, help="of each race")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--lanes", type=int, default=4, help="how many rounds at the same time")
    parser.add_argument("--only", default="", choices=["", *(race.__name__ for race in RACES)], metavar="RACE")
    wanted = parser.parse_args()
    print(f"seed {wanted.seed}", flush=True)
    breaches = trio.run(partial(against_a_process, **vars(wanted)))
    print(f"{wanted.rounds} rounds of {1 if wanted.only else len(RACES)} races: {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
