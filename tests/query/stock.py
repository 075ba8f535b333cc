"""A stock of events with everything that filters ask for, in the real table, and the dumb way to answer a filter."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from relay.asyncpg_trio import Pool
from relay.nostr.event import Event
from relay.nostr.filter import Filter, matches
from relay.nostr.nip40 import expires_at
from relay.query.conditions import Reach
from relay.store.events import Row
from tests.support.storing import insert_batch

CHANNELS = [f"{number:08x}-0000-4000-8000-00000000abcd" for number in range(1, 5)]
AUTHORS = [f"{number:064x}" for number in range(1, 5)]
KINDS = [1, 7, 9, 1059, 30023, 44100]
# The long ones do not fit an index entry, and differ only where it has ended.
VALUES = ["a", "b", 'quo"te', "back\\slash", "{curly,}", "", "ünï", AUTHORS[0], "ü" * 600, "ü" * 600 + "!"]
KEY = "ab" * 32
START = 1_700_000_000
NOW = START + 1000


@dataclass(frozen=True)
class Filed:
    event: Event
    channel_id: str | None
    deleted: bool = False

    @property
    def is_there(self) -> bool:
        ends = expires_at(self.event)
        return not self.deleted and (ends is None or ends > NOW)


def spellings(channel: str) -> list[str]:
    return [channel, channel.upper(), channel.replace("-", ""), "{" + channel + "}", f"urn:uuid:{channel}"]


def make_event(rng: random.Random, number: int, *, mortal: bool = False) -> Filed:
    """Filed where its first `h` that is a UUID says, or, without any `h`, sometimes where a target would be. `mortal`:
    it may be deleted, or expire."""
    tags = [[rng.choice("aehdpH"), rng.choice(VALUES)] for _ in range(rng.randrange(3)) if rng.random() < 0.8]
    tags = [tag for tag in tags if tag[0] != "h"]
    channel = rng.choice([None, *CHANNELS])
    if channel is not None and rng.random() < 0.7:
        tags.insert(
            rng.randrange(len(tags) + 1),
            ["h", rng.choice([channel] * 3 + spellings(channel)), *["x"] * rng.randrange(2)],
        )
        if rng.random() < 0.2:
            tags.append(["h", rng.choice(["", "general", *CHANNELS])])
    elif rng.random() < 0.2:
        tags.append(rng.choice([["h"], ["h", "general"], ["h", rng.choice(CHANNELS)]]))
    if rng.random() < 0.3:
        # As a mention it is the same key, as a tag another text.
        tags.append(["p", rng.choice([KEY, KEY, KEY.upper()])])
    if rng.random() < 0.1:
        tags.append([rng.choice("ep")])
    if rng.random() < 0.1:
        tags.append([rng.choice("pex"), "h", rng.choice(CHANNELS), "wss://relay"])
    if rng.random() < 0.1:
        tags.append([rng.choice("pex"), rng.choice(CHANNELS)])
    if mortal and rng.random() < 0.2:
        tags.append(["expiration", rng.choice([str(NOW - 1), str(NOW), str(NOW + 1), "soon"])])
    event = Event(
        id=f"{rng.getrandbits(256):064x}",
        pubkey=rng.choice(AUTHORS),
        created_at=START + rng.randrange(12),
        kind=rng.choice(KINDS),
        tags=tags,
        content=rng.choice(["", f'["h","{CHANNELS[0]}"]', "words"]) + str(number),
        sig="00" * 64,
    )
    return Filed(event, channel, deleted=mortal and rng.random() < 0.05)


async def store(pool: Pool, filed: Iterable[Filed]) -> None:
    filed = list(filed)
    rows = [Row(each.event, each.channel_id, None) for each in filed]
    async with pool.acquire() as con:
        for channel in {row.channel_id for row in rows} - {None}:
            await con.execute(
                "INSERT INTO channels (id, name, created_by) VALUES ($1, 'c', $2) ON CONFLICT DO NOTHING",
                channel,
                bytes(32),
            )
        for start in range(0, len(rows), 500):
            batch = rows[start : start + 500]
            assert len((await insert_batch(con, batch))[0]) == len(batch)
        gone = [bytes.fromhex(each.event.id) for each in filed if each.deleted]
        await con.execute("UPDATE events SET deleted_at = now() WHERE id = ANY($1::bytea[])", gone)


def answer(stock: Iterable[Filed], filters: Iterable[Filter], reach: Reach, *, default: int, most: int) -> list[str]:
    """The ids that a REQ gets, one filter after the other, by looking at everything."""
    found: dict[str, None] = {}
    for wanted in filters:
        hits = [each for each in stock if shows(each, [wanted], reach)]
        hits.sort(key=lambda each: (-each.event.created_at, each.event.id))
        limit = min(default if wanted.limit is None else wanted.limit, most)
        found.update((each.event.id, None) for each in hits[:limit])
    return list(found)


def shows(each: Filed, filters: Iterable[Filter], reach: Reach) -> bool:
    """Whether a caller gets this event for one of the filters."""
    return (
        each.is_there
        and may_read(each.channel_id, reach)
        and any(matches(wanted, each.event, each.channel_id) for wanted in filters)
    )


def may_read(channel_id: str | None, reach: Reach) -> bool:
    if reach.channels is not None and channel_id not in reach.channels:
        return False
    return reach.global_events if channel_id is None else channel_id in reach.accessible


def some(rng: random.Random, values: list[Any]) -> frozenset[Any] | None:
    if rng.random() < 0.6:
        return None
    return frozenset(rng.sample(values, rng.choice([0, 1, 1, 1, 1, 2, 3])))


def make_filter(rng: random.Random, stock: list[Filed]) -> Filter:
    wanted = _any_filter(rng, stock)
    if rng.random() < 0.2:
        # Nothing but what the mentions of a key can tell.
        tags = {letter: values for letter, values in wanted.tags.items() if letter == "h"}
        tags["p"] = frozenset({rng.choice([KEY, KEY, KEY.upper(), AUTHORS[0]])})
        return replace(wanted, ids=None, authors=None, kinds=wanted.kinds or frozenset(KINDS), tags=tags)
    return wanted


def _any_filter(rng: random.Random, stock: list[Filed]) -> Filter:
    ids = [each.event.id for each in rng.sample(stock, 3)]
    named = [spelling for channel in CHANNELS for spelling in spellings(channel)] + ["general", "", "a\0b"]
    candidates = {
        "h": some(rng, CHANNELS if rng.random() < 0.7 else named),
        "e": some(rng, VALUES),
        "p": some(rng, [*VALUES, "nul\0"]),
        "H": some(rng, VALUES) if rng.random() < 0.3 else None,
    }
    for letter, values in candidates.items():
        if values and rng.random() < 0.2:  # so many that they are looked up in another way
            candidates[letter] = values | {f"{number}" for number in range(20)}
    return Filter(
        ids=some(rng, ids) if rng.random() < 0.3 else None,
        authors=some(rng, AUTHORS),
        kinds=some(rng, KINDS),
        since=rng.choice([None, None, 0, START + 3, START + 11, 2**64 - 1]) if rng.random() < 0.4 else None,
        until=rng.choice([START, START + 5, 2**63 - 1, 2**64 - 1]) if rng.random() < 0.4 else None,
        limit=rng.choice([None, None, 0, 1, 3, 7, 10_000]),
        tags={letter: values for letter, values in candidates.items() if values is not None},
    )
