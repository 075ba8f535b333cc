"""What the tests of deletions do again and again: say, delete, and look at what is left."""

from __future__ import annotations

import time

import orjson

from relay.nostr.event import Event
from tests.support.core import CHANNEL, Core, Person

OTHER_CHANNEL = "22222222-2222-4222-8222-222222222222"
HOLD_EVENT = "SELECT id FROM events WHERE id = $1 FOR UPDATE"
HOLD_THREAD = "SELECT event_id FROM thread_metadata WHERE event_id = $1 FOR UPDATE"


def at(offset: int) -> int:
    return int(time.time()) + offset


async def say(core: Core, person: Person, text: str = "hello", *tags: list[str], channel: str = CHANNEL) -> Event:
    event = person.sign(9, text, [["h", channel], *tags])
    assert (await core.submit(person, event)).message == ""
    return event


async def reply(core: Core, person: Person, text: str, parent: Event) -> Event:
    return await say(core, person, text, ["e", parent.id, "", "reply"])


async def publish(core: Core, person: Person, event: Event) -> Event:
    assert (await core.submit(person, event)).message == ""
    return event


async def delete(core: Core, person: Person, *tags: list[str], at: int | None = None) -> str:
    return (await core.submit(person, person.sign(5, tags=list(tags), at=at))).message


async def delete_in_group(core: Core, person: Person, *tags: list[str], channel: str = CHANNEL) -> str:
    return (await core.submit(person, person.sign(9005, tags=[["h", channel], *tags]))).message


async def live(core: Core, event: Event | str) -> bool:
    event_id = event if isinstance(event, str) else event.id
    return bool(
        await core.pool.fetchval("SELECT deleted_at IS NULL FROM events WHERE id = $1", bytes.fromhex(event_id))
    )


async def audited(core: Core) -> list[tuple[str, dict[str, str]]]:
    """(event id, metadata) of every `event_deleted`: chained, or still in the outbox. One statement sees one moment."""
    rows = await core.pool.fetch(
        "SELECT event_id, metadata FROM audit_outbox WHERE action = 'event_deleted' "
        "UNION ALL SELECT event_id, metadata FROM audit_log WHERE action = 'event_deleted'"
    )
    return [(row[0], orjson.loads(row[1])) for row in rows]


async def reactions(core: Core) -> int:
    found: int = await core.pool.fetchval("SELECT count(*) FROM reactions WHERE removed_at IS NULL")
    return found


async def counts(core: Core, event: Event) -> tuple[int, int]:
    row = await core.pool.fetchrow(
        "SELECT reply_count, descendant_count FROM thread_metadata WHERE event_id = $1", bytes.fromhex(event.id)
    )
    return (0, 0) if row is None else (row[0], row[1])
