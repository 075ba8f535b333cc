"""Callers without a connection have the same buckets, gate and shares as those with one."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relay.access.identity import KNOWN_SCOPES, AuthMethod, Caller
from relay.config import Settings
from relay.errors import TOO_BUSY, Refused, StoreBusy
from relay.websocket.guests import Guests
from relay.websocket.limits import REQUESTS, Limits
from relay.websocket.shares import Shares

ALICE = Caller("a" * 64, KNOWN_SCOPES, AuthMethod.NIP98)
BOB = Caller("b" * 64, KNOWN_SCOPES, AuthMethod.NIP98)
PROXY = Caller("c" * 64, KNOWN_SCOPES | {"proxy:submit"}, AuthMethod.API_TOKEN)


def make(**changes: Any) -> tuple[Guests, Limits, list[tuple[str, str]]]:
    noted: list[tuple[str, str]] = []
    limits = Limits(Settings(**changes), lambda _, who, what: noted.append((who, what)))
    return Guests(limits, Shares(8, wait_seconds=3)), limits, noted


async def test_the_rate_of_a_key_is_one_for_both_doors() -> None:
    guests, limits, noted = make(rate_requests=2)
    assert limits.take_request(ALICE)
    async with guests.asking(ALICE, long=False):
        pass
    with pytest.raises(Refused) as caught:
        async with guests.asking(ALICE, long=False):
            pytest.fail("asked too often")
    assert caught.value.refusal is REQUESTS.refusal
    assert noted == [(ALICE.pubkey, "requests")]
    async with guests.asking(BOB, long=False), guests.asking(PROXY, long=False):
        pass
    for _ in range(5):  # who may submit for others speaks for many
        async with guests.asking(PROXY, long=False):
            pass
    assert limits.gate.active == 0


async def test_the_gate(autojump_clock: MockClock) -> None:
    guests, limits, noted = make(max_concurrent_handlers=1, handler_wait_seconds=2)
    connection = limits.gate.place()
    assert connection.take_nowait()
    began = trio.current_time()
    with pytest.raises(Refused) as caught:
        async with guests.handling(ALICE):
            pytest.fail("there was no place")
    assert caught.value.refusal is TOO_BUSY
    assert trio.current_time() - began == 2
    assert noted == [(ALICE.pubkey, "handlers")]
    connection.leave()
    async with guests.handling(ALICE):
        assert limits.gate.active == 1
        assert not connection.take_nowait()
    assert limits.gate.active == 0


async def test_a_place_is_left_whatever_happens(autojump_clock: MockClock) -> None:
    guests, limits, _ = make(max_concurrent_handlers=1)
    with pytest.raises(ZeroDivisionError):
        async with guests.asking(ALICE, long=True):
            raise ZeroDivisionError
    with trio.move_on_after(1):
        async with guests.asking(ALICE, long=True):
            await trio.sleep_forever()
    assert limits.gate.active == 0
    async with guests.asking(ALICE, long=True):
        pass


async def test_only_so_many_long_ones_at_once(autojump_clock: MockClock) -> None:
    """A quarter of eight connections for one key; who waits for his turn leaves his place among the handlers."""
    guests, limits, _ = make(max_concurrent_handlers=100)
    running = 0

    async def ask() -> None:
        nonlocal running
        async with guests.asking(ALICE, long=True):
            running += 1
            await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        with pytest.raises(StoreBusy):
            async with guests.asking(ALICE, long=True):
                pytest.fail("the third of a key")
        assert running == 2
        assert limits.gate.active == 2
        async with guests.asking(ALICE, long=False), guests.asking(BOB, long=True):
            assert limits.gate.active == 4
