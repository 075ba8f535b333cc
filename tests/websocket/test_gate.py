"""The gate without sockets: who has a place, who waits for one, and who gives his away."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from relay.websocket.limits import Gate, Place


@pytest.fixture
def gate() -> Gate:
    return Gate(2, wait_seconds=3)


async def test_a_free_place_is_taken_at_once(gate: Gate) -> None:
    first, second, third = gate.place(), gate.place(), gate.place()
    with assert_no_checkpoints():
        assert first.take_nowait()
        assert second.take_nowait()
        assert not third.take_nowait()
        assert gate.active == 2
        first.leave()
        assert third.take_nowait()
    assert gate.active == 2


async def test_leaving_twice_makes_no_room(gate: Gate) -> None:
    place = gate.place()
    place.leave()
    assert place.take_nowait()
    place.leave()
    place.leave()
    assert gate.active == 0


async def test_who_waits_too_long_goes_without(gate: Gate, autojump_clock: MockClock) -> None:
    holders = [gate.place(), gate.place()]
    assert all(holder.take_nowait() for holder in holders)
    started = trio.current_time()
    assert not await gate.place().take()
    assert trio.current_time() - started == pytest.approx(3)
    for holder in holders:
        holder.leave()
    assert gate.active == 0


async def test_first_come_first_served(gate: Gate, autojump_clock: MockClock) -> None:
    holders = [gate.place(), gate.place()]
    assert all(holder.take_nowait() for holder in holders)
    order: list[int] = []

    async def wait(number: int) -> None:
        place = gate.place()
        assert await place.take()
        order.append(number)
        await trio.sleep(0.1)
        place.leave()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        holders[0].leave()
        assert not gate.place().take_nowait(), "it belongs to the first who waits"
    assert order == [0, 1, 2, 3, 4]
    assert gate.active == 1


async def test_a_cancelled_wait_takes_nothing(gate: Gate) -> None:
    holders = [gate.place(), gate.place()]
    assert all(holder.take_nowait() for holder in holders)
    waiting = gate.place()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.take)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    waiting.leave()
    assert gate.active == 2
    holders[0].leave()
    assert gate.active == 1


async def test_who_waits_for_the_client_makes_room_and_comes_back(autojump_clock: MockClock) -> None:
    gate = Gate(1, wait_seconds=1)
    slow, other = gate.place(), gate.place()
    steps: list[str] = []

    async def replay() -> None:
        async with slow.aside():
            steps.append("waits for the client")
            await trio.sleep(10)
        steps.append("goes on")
        slow.leave()

    assert slow.take_nowait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replay)
        await wait_all_tasks_blocked()
        assert other.take_nowait()
        # The client has read, but the place is taken: to come back may take longer than to come.
        await trio.sleep(20)
        assert steps == ["waits for the client"]
        other.leave()
    assert steps == ["waits for the client", "goes on"]
    assert gate.active == 0


async def test_aside_without_a_place_changes_nothing(gate: Gate) -> None:
    place = gate.place()
    async with place.aside():
        assert gate.active == 0
    assert gate.active == 0
    assert place.take_nowait()


async def test_a_client_that_goes_away_meanwhile_leaves_no_place_behind(gate: Gate) -> None:
    place: Place = gate.place()
    assert place.take_nowait()
    with pytest.raises(trio.BrokenResourceError):
        async with place.aside():
            raise trio.BrokenResourceError
    place.leave()
    assert gate.active == 0
