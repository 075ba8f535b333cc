"""A stock of events with everything that filters ask for, in the real table, and the dumb way to answer a filter."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from relay.asyncpg_trio import Pool
from relay.nostr.event import Event
from relay.nostr.filter import Filter, matches
from relay.query.sql import Reach
from relay.store.events import Row, insert_batch

CHANNELS = [f"{number:08x}-0000-4000-8000-00000000abcd" for number in range(1, 5)]
AUTHORS = [f"{number:064x}" for number in range(1, 5)]
KINDS = [1, 7, 9, 1059, 30023, 44100]
VALUES = ["a", "b", 'quo"te', "back\\slash", "{curly,}", "", "ünï", AUTHORS[0]]
START = 1_700_000_000


@dataclass(frozen=True)
class Filed:
    event: Event
    channel_id: str | None


def spellings(channel: str) -> list[str]:
    return [channel, channel.upper(), channel.replace("-", ""), "{" + channel + "}", f"urn:uuid:{channel}"]


def make_event(rng: random.Random, number: int) -> Filed:
    """Filed where its first `h` that is a UUID says, or, without any `h`, sometimes where a target would be."""
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
    event = Event(
        id=f"{rng.getrandbits(256):064x}",
        pubkey=rng.choice(AUTHORS),
        created_at=START + rng.randrange(12),
        kind=rng.choice(KINDS),
        tags=tags,
        content=rng.choice(["", f'["h","{CHANNELS[0]}"]', "words"]) + str(number),
        sig="00" * 64,
    )
    return Filed(event, channel)


async def store(pool: Pool, filed: Iterable[Filed]) -> None:
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


def answer(stock: Iterable[Filed], filters: Iterable[Filter], reach: Reach, *, default: int, most: int) -> list[str]:
    """The ids that a REQ gets, one filter after the other, by looking at everything."""
    found: dict[str, None] = {}
    for wanted in filters:
        hits = [
            each for each in stock if matches(wanted, each.event, each.channel_id) and may_read(each.channel_id, reach)
        ]
        hits.sort(key=lambda each: (-each.event.created_at, each.event.id))
        limit = min(default if wanted.limit is None else wanted.limit, most)
        found.update((each.event.id, None) for each in hits[:limit])
    return list(found)


def may_read(channel_id: str | None, reach: Reach) -> bool:
    if reach.channels is not None and channel_id not in reach.channels:
        return False
    return reach.global_events if channel_id is None else channel_id in reach.accessible
