"""Turns at a channel: one after the other, nobody left behind."""

from __future__ import annotations

import trio
import trio.testing

from relay.ingest.turns import Turn, Turns
from tests.support.core import CHANNEL


async def test_turns_come_in_order_and_leave_nothing(autojump_clock: object) -> None:
    turns = Turns()
    order: list[str] = []

    async def change(name: str) -> None:
        turn = turns.turn()
        await turn.take(CHANNEL)
        await turn.take(CHANNEL)  # as a transaction that is tried again
        order.append(f"{name} in")
        await trio.sleep(1)
        order.append(f"{name} out")
        turn.release()
        turn.release()

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(change, name)
            await trio.testing.wait_all_tasks_blocked()
    assert order == [f"{name} {way}" for name in "abc" for way in ("in", "out")]
    assert len(turns) == 0


async def test_other_channels_do_not_wait() -> None:
    turns = Turns()
    first, second = turns.turn(), turns.turn()
    await first.take(CHANNEL)
    with trio.fail_after(1):
        await second.take(CHANNEL[:-1] + "2")
    assert len(turns) == 2


async def test_who_stops_waiting_is_forgotten() -> None:
    turns = Turns()
    holder, impatient = turns.turn(), turns.turn()
    await holder.take(CHANNEL)

    async def wait(turn: Turn) -> None:
        with trio.move_on_after(0.01):
            await turn.take(CHANNEL)
        turn.release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, impatient)
    assert len(turns) == 1
    holder.release()
    assert len(turns) == 0
