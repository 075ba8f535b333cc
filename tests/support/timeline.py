"""Messages, answers and reactions with times of a test's own choosing, stored as ingest stores them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from relay.asyncpg_trio import Connection
from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from relay.store import events, reactions, threads, users
from relay.store.threads import ThreadPlace
from tests.support.http import signed


async def put(
    con: Connection,
    author: SecretKey,
    channel_id: str | None,
    *,
    kind: int = 9,
    at: int | None = None,
    tags: Sequence[list[str]] = (),
    content: str | None = None,
) -> Event:
    filed = [] if channel_id is None else [["h", channel_id]]
    text = secrets.token_hex(4) if content is None else content
    event = signed(author, kind, [*filed, *tags], text, int(time.time()) if at is None else at)
    assert await events.insert_one(con, event, channel_id)
    return event


async def answer(
    con: Connection,
    author: SecretKey,
    channel_id: str,
    parent: Event,
    root: Event | None = None,
    *,
    depth: int = 1,
    broadcast: bool = False,
    at: int | None = None,
    tags: Sequence[list[str]] = (),
) -> Event:
    async with con.transaction():
        event = await put(con, author, channel_id, at=at, tags=[["e", parent.id, "", "reply"], *tags])
        place = ThreadPlace(parent.id, (root or parent).id, depth, broadcast)
        await threads.insert(con, [(event, channel_id, place)])
    return event


async def react(
    con: Connection,
    author: SecretKey,
    channel_id: str | None,
    target: Event,
    emoji: str = "+",
    *,
    until: int | None = None,
) -> Event:
    """A reaction that expires at `until` (seconds), if that is given."""
    tags = [["e", target.id]] if until is None else [["e", target.id], ["expiration", str(until)]]
    event = await put(con, author, channel_id, kind=7, content=emoji, tags=tags)
    assert await reactions.add(con, target.id, author.public_hex, emoji, event.id)
    return event


async def delete(con: Connection, *gone: Event) -> None:
    for event in gone:
        assert await events.mark_deleted(con, event.id)


async def name(con: Connection, key: SecretKey, text: str) -> None:
    await users.ensure(con, [key.public_hex])
    await con.execute("UPDATE users SET display_name = $2 WHERE pubkey = $1", bytes.fromhex(key.public_hex), text)
