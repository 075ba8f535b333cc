"""Thread rows: who answers whom, and counters that are exact whoever counts at the same time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import trio

from relay.asyncpg_trio import Connection, connect
from relay.asyncpg_trio.errors import PostgresError
from relay.nostr.event import Event
from relay.store import events, threads
from relay.store.threads import ParentRow, ThreadPlace
from tests.support.core import ALICE, CHANNEL

OTHER = "22222222-2222-4222-8222-222222222222"

_ROWS = """
SELECT encode(event_id, 'hex') AS id, encode(parent_event_id, 'hex') AS parent, encode(root_event_id, 'hex') AS root,
       depth, broadcast, reply_count, descendant_count, last_reply_at IS NOT NULL AS answered, created_at,
       channel_id::text
FROM thread_metadata"""


async def store(con: Connection, name: str, channel: str | None = CHANNEL, tags: Sequence[list[str]] = ()) -> Event:
    event = ALICE.sign(9, name, list(tags))
    assert await events.insert_one(con, event, channel)
    return event


async def answer(con: Connection, name: str, parent: Event, root: Event, depth: int, broadcast: bool = False) -> Event:
    async with con.transaction():
        event = await store(con, name)
        await threads.insert(con, [(event, CHANNEL, ThreadPlace(parent.id, root.id, depth, broadcast))])
    return event


async def rows(con: Connection) -> dict[str, dict[str, object]]:
    return {record["id"]: dict(record) for record in await con.fetch(_ROWS)}


async def counts(con: Connection) -> dict[str, tuple[int, int]]:
    found = await con.fetch("SELECT encode(event_id, 'hex'), reply_count, descendant_count FROM thread_metadata")
    return {record[0]: (record[1], record[2]) for record in found}


async def test_a_reply_has_a_row_and_what_it_answers_gets_one(con: Connection) -> None:
    root = await store(con, "root")
    first = await answer(con, "first", root, root, 1, broadcast=True)
    second = await answer(con, "second", first, root, 2)
    found = await rows(con)
    assert set(found) == {root.id, first.id, second.id}

    def row(event: Event) -> tuple[object, ...]:
        names = ("parent", "root", "depth", "broadcast", "reply_count", "descendant_count", "answered")
        assert (found[event.id]["created_at"], found[event.id]["channel_id"]) == (event.created_at, CHANNEL)
        return tuple(found[event.id][name] for name in names)

    assert row(root) == (None, None, 0, False, 1, 2, True)
    assert row(first) == (root.id, root.id, 1, True, 1, 0, True)
    assert row(second) == (first.id, root.id, 2, False, 0, 0, False)


async def test_many_replies_of_one_batch_are_one_change_of_a_row(con: Connection) -> None:
    root, other = await store(con, "root"), await store(con, "other")
    replies = [await store(con, str(number)) for number in range(7)]
    targets = [root, root, other, root, other, root, root]
    await threads.insert(
        con,
        [(reply, CHANNEL, ThreadPlace(t.id, t.id, 1, False)) for reply, t in zip(replies, targets, strict=True)],
    )
    found = await counts(con)
    assert (found[root.id], found[other.id]) == ((5, 5), (2, 2))
    await threads.insert(con, [])
    assert await counts(con) == found


async def test_a_row_may_be_new_and_answered_in_one_batch(con: Connection) -> None:
    root, first, second = [await store(con, name) for name in "abc"]
    await threads.insert(
        con,
        [
            (second, CHANNEL, ThreadPlace(first.id, root.id, 2, False)),
            (first, CHANNEL, ThreadPlace(root.id, root.id, 1, False)),
        ],
    )
    found = await rows(con)
    assert (found[first.id]["parent"], found[first.id]["reply_count"]) == (root.id, 1)
    assert await counts(con) == {root.id: (1, 2), first.id: (1, 0), second.id: (0, 0)}


async def test_nothing_is_counted_in_another_channel(con: Connection) -> None:
    root = await store(con, "elsewhere", OTHER)
    parent = await store(con, "here")
    await answer(con, "reply", parent, root, 2)
    assert root.id not in await rows(con)


async def test_the_parent_tells_where_it_stands(con: Connection) -> None:
    assert await threads.parent(con, "ab" * 32) is None
    root = await store(con, "root")
    assert await threads.parent(con, root.id) == ParentRow(root.id, CHANNEL, True, None, 0, root.json)
    first = await answer(con, "first", root, root, 1)
    # An answer makes the root's row, which says no more than its absence did.
    assert await threads.parent(con, root.id) == ParentRow(root.id, CHANNEL, True, None, 0, root.json)
    assert await threads.parent(con, first.id) == ParentRow(first.id, CHANNEL, True, root.id, 1, None)
    await events.mark_deleted(con, first.id)
    assert await threads.parent(con, first.id) == ParentRow(first.id, CHANNEL, False, root.id, 1, None)
    note = await store(con, "global", None)
    assert await threads.parent(con, note.id) == ParentRow(note.id, None, True, None, 0, note.json)
    for seconds, live in (("1", False), ("9" * 18, True)):
        expiring = await store(con, "expires", tags=[["expiration", seconds]])
        found = await threads.parent(con, expiring.id)
        assert found is not None
        assert found.live is live


async def test_a_deleted_reply_is_counted_no_more_and_its_own_answers_are(con: Connection) -> None:
    root = await store(con, "root")
    first = await answer(con, "first", root, root, 1)
    second = await answer(con, "second", first, root, 2)
    await threads.forget(con, first.id)
    assert await counts(con) == {root.id: (0, 1), first.id: (1, 0), second.id: (0, 0)}
    await threads.forget(con, second.id)
    assert await counts(con) == {root.id: (0, 0), first.id: (0, 0), second.id: (0, 0)}
    # What is no reply was never counted; and no counter goes below nothing.
    await threads.forget(con, root.id)
    await threads.forget(con, "ab" * 32)
    await threads.forget(con, second.id)
    assert await counts(con) == {root.id: (0, 0), first.id: (0, 0), second.id: (0, 0)}


async def test_the_depth_ends_at_a_hundred(con: Connection) -> None:
    root = await store(con, "root")
    await answer(con, "deep", root, root, threads.DEPTH_MAX)
    with pytest.raises(PostgresError):
        await answer(con, "too deep", root, root, threads.DEPTH_MAX + 1)


@dataclass
class Model:
    """Every reply with its parent and root; the counters follow from those that are not deleted."""

    replies: dict[str, tuple[str, str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    def counts(self, event_id: str) -> tuple[int, int]:
        live = [place for reply, place in self.replies.items() if reply not in self.deleted]
        return sum(parent == event_id for parent, _ in live), sum(root == event_id for _, root in live)


async def test_counters_are_exact_when_everybody_answers_and_deletes_at_once(
    migrated_dsn: str, con: Connection
) -> None:
    """Batches of several relays and deletions, all about the same few messages, each in its own transaction."""
    dice = random.Random(7)
    roots = [await store(con, f"root {number}") for number in range(3)]
    model = Model()
    firsts = []
    for root in roots:
        for number in range(4):
            firsts.append(first := await answer(con, f"{root.content} {number}", root, root, 1))
            model.replies[first.id] = (root.id, root.id)
            for part in range(5):
                second = await answer(con, f"{first.content} {part}", first, root, 2)
                model.replies[second.id] = (first.id, root.id)

    async def answer_some(name: int) -> None:
        own = await connect(migrated_dsn)
        for number in range(6):
            batch = []
            async with own.transaction():
                for part in range(4):
                    event = await store(own, f"{name} {number} {part}")
                    parent = dice.choice(firsts + roots)
                    root_id = parent.id if parent in roots else model.replies[parent.id][1]
                    batch.append((event, CHANNEL, ThreadPlace(parent.id, root_id, 2, False)))
                await threads.insert(own, batch)
            model.replies |= {event.id: (place.parent, place.root) for event, _, place in batch}
        own.terminate()

    async def delete_some() -> None:
        own = await connect(migrated_dsn)
        for _ in range(11):
            # Two rows count such a reply, its parent's and its root's.
            left = [reply for reply, (parent, root) in model.replies.items() if parent != root]
            victim = dice.choice(sorted(set(left) - model.deleted))
            model.deleted.add(victim)
            async with own.transaction():
                if await events.mark_deleted(own, victim):
                    await threads.forget(own, victim)
        own.terminate()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in range(5):
                nursery.start_soon(answer_some, name)
                nursery.start_soon(delete_some)
    found = await counts(con)
    assert len(model.replies) == 3 * 4 * 6 + 5 * 6 * 4
    assert found == {event_id: model.counts(event_id) for event_id in found}
    assert sum(replies for replies, _ in found.values()) == len(model.replies) - len(model.deleted)
