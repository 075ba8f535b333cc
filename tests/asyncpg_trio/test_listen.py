"""LISTEN and NOTIFY, with the connection's death and its queries in between."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.asyncpg_trio import Connection, ConnectionLost, Notification


async def test_notifications_arrive_in_order_with_channel_payload_and_sender(connection: Connection, other: Connection):
    async with connection.listen("one", 'Two "quoted"') as notifications:
        await other.execute("SELECT pg_notify('one', 'a'), pg_notify('Two \"quoted\"', 'b')")
        await other.execute("NOTIFY one")
        with trio.fail_after(2):
            received = [await notifications.receive() for _ in range(3)]
    pid = other.backend_pid
    assert received == [
        Notification("one", "a", pid),
        Notification('Two "quoted"', "b", pid),
        Notification("one", "", pid),
    ]


async def test_a_waiting_listener_is_woken(connection: Connection, other: Connection):
    heard = []
    async with connection.listen("c") as notifications, trio.open_nursery() as nursery:

        async def hear() -> None:
            async for notification in notifications:
                heard.append(notification.payload)
                if notification.payload == "last":
                    return

        nursery.start_soon(hear)
        await trio.testing.wait_all_tasks_blocked()
        for payload in ("first", "last"):
            await other.fetchval("SELECT pg_notify('c', $1)", payload)
    assert heard == ["first", "last"]


async def test_queries_between_waits_lose_nothing(connection: Connection, other: Connection):
    async with connection.listen("c") as notifications:
        for number in range(5):
            await other.fetchval("SELECT pg_notify('c', $1)", str(number))
            assert await connection.fetchval("SELECT $1::int", number) == number
        with trio.fail_after(2):
            assert [(await notifications.receive()).payload for _ in range(5)] == list("01234")
        with pytest.raises(trio.WouldBlock):
            notifications.receive_nowait()
        await connection.fetchval("SELECT pg_notify('c', 'self')")
        assert (await notifications.receive()).payload == "self"


async def test_a_batch_is_taken_at_once(connection: Connection, other: Connection):
    async with connection.listen("c") as notifications:
        await other.execute("SELECT pg_notify('c', i::text) FROM generate_series(1, 500) i")
        numbers: list[int] = []
        with trio.fail_after(2):
            while len(numbers) < 500:
                numbers += [int(each.payload) for each in await notifications.receive_many()]
        assert numbers == list(range(1, 501))
        await other.execute("SELECT pg_notify('c', i::text) FROM generate_series(1, 3) i")
        assert (await notifications.receive()).payload == "1"
        assert len(await notifications.receive_many()) + 0 == 2


async def test_cancelling_the_wait_harms_nothing(connection: Connection, other: Connection):
    async with connection.listen("c") as notifications:
        with trio.move_on_after(0.05) as scope:
            await notifications.receive()
        assert scope.cancelled_caught
        assert not connection.is_closed()
        await other.execute("NOTIFY c, 'x'")
        assert (await notifications.receive()).payload == "x"


async def test_after_the_block_nothing_is_heard_and_the_connection_is_at_rest(
    connection: Connection, other: Connection
):
    async with connection.listen("c"):
        assert not connection.is_at_rest()
    assert connection.is_at_rest()
    assert await connection.fetch("SELECT pg_listening_channels()") == []
    await other.execute("NOTIFY c, 'too late'")
    async with connection.listen("c") as notifications:
        await other.execute("NOTIFY c, 'in time'")
        assert (await notifications.receive()).payload == "in time"


async def test_the_death_of_the_session_ends_the_wait(connection: Connection, other: Connection):
    async with connection.listen("c") as notifications:
        await other.fetchval("SELECT pg_terminate_backend($1)", connection.backend_pid)
        with trio.fail_after(2), pytest.raises(ConnectionLost):
            await notifications.receive()
    assert connection.is_closed()


async def test_terminate_ends_the_wait(connection: Connection):
    async with trio.open_nursery() as nursery, connection.listen("c") as notifications:

        async def hear() -> None:
            with pytest.raises(ConnectionLost):
                await notifications.receive()

        nursery.start_soon(hear)
        await trio.testing.wait_all_tasks_blocked()
        connection.terminate()


async def test_misuse_is_refused(connection: Connection):
    with pytest.raises(ValueError, match="at least one"):
        connection.listen()
    async with connection.transaction():
        with pytest.raises(RuntimeError, match="COMMIT"):
            async with connection.listen("c"):
                pytest.fail("entered")
    async with connection.listen("c") as notifications:
        with pytest.raises(trio.BusyResourceError):
            async with connection.listen("d"):
                pytest.fail("entered")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifications.receive)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await connection.fetch("SELECT 1")
            nursery.cancel_scope.cancel()
        assert await connection.fetchval("SELECT 1") == 1
