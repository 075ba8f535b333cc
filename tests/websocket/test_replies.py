"""The order of OKs, without a socket."""

from __future__ import annotations

import random

import orjson
import trio
from trio.testing import wait_all_tasks_blocked

from relay.errors import Refusal
from relay.ingest.types import STORED, Outcome
from relay.websocket.replies import Replies, Slot

IDS = [f"{number:064x}" for number in range(200)]


def answers(written: list[bytes]) -> list[list[str]]:
    """The event ids of each write, in order; every frame is short enough for the two-byte head or the four-byte one."""
    ids = []
    for chunk in written:
        found = []
        while chunk:
            head, size = (4, int.from_bytes(chunk[2:4], "big")) if chunk[1] == 126 else (2, chunk[1])
            found.append(orjson.loads(chunk[head : head + size])[1])
            chunk = chunk[head + size :]
        ids.append(found)
    return ids


def test_answers_wait_for_those_before_them() -> None:
    written: list[bytes] = []
    replies = Replies(written.append, 3)
    first, second = replies.open(IDS[0]), replies.open(IDS[1])
    replies.answer(IDS[2], Outcome.refused(Refusal.invalid("no")))
    second.resolve(STORED)
    replies.flush_replies()
    assert not written
    assert len(replies) == 3
    first.resolve(STORED)
    replies.flush_replies()
    assert answers(written) == [IDS[:3]]
    assert len(replies) == 0


def test_a_flush_with_nothing_to_say_writes_nothing() -> None:
    written: list[bytes] = []
    replies = Replies(written.append, 3)
    replies.flush_replies()
    replies.open(IDS[0])
    replies.flush_replies()
    assert not written


def test_any_order_of_outcomes_gives_the_order_of_arrival() -> None:
    rng = random.Random(4)
    for _ in range(50):
        written: list[bytes] = []
        replies = Replies(written.append, 64)
        waiting: list[Slot] = []
        opened = 0
        while opened < 100 or waiting:
            if opened < 100 and len(replies) < 64 and rng.random() < 0.6:
                waiting.append(replies.open(IDS[opened]))
                opened += 1
            elif waiting:
                waiting.pop(rng.randrange(len(waiting))).resolve(STORED)
                if rng.random() < 0.5:
                    replies.flush_replies()
            else:
                replies.flush_replies()
        replies.flush_replies()
        assert [event_id for write in answers(written) for event_id in write] == IDS[:100]


def test_a_withdrawn_place_holds_nobody_up() -> None:
    written: list[bytes] = []
    replies = Replies(written.append, 3)
    first = replies.open(IDS[0])
    replies.withdraw(replies.open(IDS[1]))
    first.resolve(STORED)
    replies.flush_replies()
    assert answers(written) == [[IDS[0]]]
    assert len(replies) == 0


async def test_room_and_barrier() -> None:
    written: list[bytes] = []
    replies = Replies(written.append, 2)
    first, second = replies.open(IDS[0]), replies.open(IDS[1])
    passed: list[str] = []

    async def room() -> None:
        await replies.wait_room()
        passed.append("room")

    async def empty() -> None:
        await replies.wait_empty()
        passed.append("empty")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(room)
        nursery.start_soon(empty)
        await wait_all_tasks_blocked()
        assert passed == []
        first.resolve(STORED)
        replies.flush_replies()
        await wait_all_tasks_blocked()
        assert passed == ["room"]
        second.resolve(STORED)
        replies.flush_replies()
    assert passed == ["room", "empty"]
