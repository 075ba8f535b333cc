"""COUNT and search have a part of the store, and each key a part of that."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relay.asyncpg_trio import connect
from relay.errors import StoreBusy
from relay.websocket.limits import Gate
from relay.websocket.shares import Shares
from tests.support.core import BOB
from tests.support.relay import Client, serving

BUSY = "rate-limited: too many concurrent requests"


async def test_a_key_has_a_quarter_and_all_have_half(autojump_clock: MockClock) -> None:
    shares, handlers = Shares(8, wait_seconds=3), Gate(100, 1)
    running: list[str] = []

    async def ask(pubkey: str) -> None:
        async with shares.turn(pubkey, handlers.place()):
            running.append(pubkey)
            await trio.sleep(1)
            running.remove(pubkey)

    async with trio.open_nursery() as nursery:
        for pubkey in ("a", "a", "a", "a", "b", "b", "b", "c"):
            nursery.start_soon(ask, pubkey)
            await wait_all_tasks_blocked()
        assert running == ["a", "a", "b", "b"]
        await trio.sleep(1.5)
        assert sorted(running) == ["a", "a", "b", "c"]
    assert len(shares) == 0


async def test_who_waits_too_long_is_told_and_keeps_his_handlers_place(autojump_clock: MockClock) -> None:
    shares, handlers = Shares(4, wait_seconds=3), Gate(1, 1)
    waiting = handlers.place()
    assert waiting.take_nowait()
    async with shares.turn("a", handlers.place()):
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(StoreBusy):
                    async with shares.turn("a", waiting):
                        pass

            nursery.start_soon(ask)
            await wait_all_tasks_blocked(0.01)
            assert handlers.active == 0, "others have their turn meanwhile"
        assert handlers.active == 1
        assert len(shares) == 1
    assert len(shares) == 0
    waiting.leave()
    assert handlers.active == 0


async def test_a_wait_that_is_cancelled_holds_nothing() -> None:
    shares, handlers = Shares(4, wait_seconds=60), Gate(1, 60)

    async def ask() -> None:
        async with shares.turn("a", handlers.place()):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(shares) == 0
    async with shares.turn("b", handlers.place()):
        assert len(shares) == 1


async def test_counts_of_one_key_leave_the_store_to_the_others(migrated_dsn: str) -> None:
    """Each on a connection of its own, and more of them than there are connections to the store."""
    async with serving(migrated_dsn, pool_size_max=4, pool_acquire_seconds=1, statement_seconds=20) as relay:
        clients = [await relay.connect(BOB) for _ in range(6)]
        answers: list[list[object]] = []

        async def count(client: Client) -> None:
            await client.send("COUNT", "c", {"kinds": [1]})
            answers.append(await client.receive())

        async with trio.open_nursery() as nursery:
            con = await connect(migrated_dsn)
            async with con.transaction():
                await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
                for client in clients:
                    nursery.start_soon(count, client)
                with trio.fail_after(10):
                    while len(answers) < 5:
                        await trio.sleep(0.01)
                assert answers == [["CLOSED", "c", BUSY]] * 5
                assert relay.core.pool.statistics().in_use == 1
            await con.close()
        assert answers[5] == ["COUNT", "c", {"count": 0}]
