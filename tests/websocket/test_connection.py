"""One task reads, over a real socket: turns, ends, and who is silent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from relay.fanout.outbound import Outbound
from relay.nostr.messages import ws_frame
from relay.websocket import connection as connection_module
from relay.websocket.connection import Connection
from relay.websocket.frames import Decoder, TooLong, TooManyFragments
from tests.fanout.wire import take_frames
from tests.websocket.test_frames import close, frame

LIMIT, FRAGMENTS = 4096, 8


class Ends:
    """The relay's end with its connection, and the client's."""

    def __init__(self, nursery: trio.Nursery, near: trio.SocketStream, far: trio.SocketStream, early: bytes) -> None:
        self.near, self.far = near, far
        self.outbound = Outbound(near, nursery, on_close=lambda _: None)
        self.connection = Connection(near, self.outbound, Decoder(LIMIT, FRAGMENTS), early)

    async def read_to_end(self) -> list[tuple[int, bytes]]:
        received = bytearray()
        while data := await self.far.receive_some():
            received += data
        await self.far.send_eof()
        return take_frames(received, 1 << 20)


@asynccontextmanager
async def ends(early: bytes = b"") -> AsyncIterator[Ends]:
    near, far = trio.socket.socketpair()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, trio.SocketStream(near) as a, trio.SocketStream(far) as b:
            yield Ends(nursery, a, b, early)


async def test_messages_of_one_read_come_without_a_switch_to_another_task() -> None:
    async with ends() as e:
        await e.far.send_all(frame(b"1") + frame(b"2", 2) + frame(b"p", 9) + frame(b"3"))
        with trio.testing.assert_checkpoints():
            assert await e.connection.receive() == "1"
        with trio.testing.assert_no_checkpoints():
            assert await e.connection.receive() == b"2"
            assert await e.connection.receive() == "3"
        assert await e.far.receive_some() == ws_frame(b"p", 10)


@pytest.mark.parametrize("item", [frame(b"x"), frame(b"", 10) * 3 + frame(b"x")])
async def test_a_turn_ends_though_there_is_more(monkeypatch: pytest.MonkeyPatch, item: bytes) -> None:
    monkeypatch.setattr(connection_module, "TURN_SECONDS", 0.0)
    async with ends(item * 2) as e:
        for _ in range(2):
            with trio.testing.assert_checkpoints():
                assert await e.connection.receive() == "x"


async def test_the_heartbeat_sees_whether_we_wait_and_whether_anything_came() -> None:
    async with ends(frame(b"early")) as e:
        assert await e.connection.receive() == "early"
        assert not e.connection.waiting
        e.connection.heard = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(e.connection.receive)
            await trio.testing.wait_all_tasks_blocked()
            assert e.connection.waiting
            assert not e.connection.heard
            await e.far.send_all(frame(b"", 10))  # no message, but a sign of life
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert e.connection.heard
            nursery.cancel_scope.cancel()
        assert not e.connection.waiting


async def test_a_cancelled_wait_takes_nothing() -> None:
    async with ends() as e:
        with trio.move_on_after(0.01):
            await e.connection.receive()
        await e.far.send_all(frame(b"later"))
        assert await e.connection.receive() == "later"


async def test_the_end_of_input_and_a_socket_that_we_closed() -> None:
    async with ends(frame(b"half", final=False)) as e:
        await e.far.aclose()
        assert await e.connection.receive() is None
        await e.connection.part()  # owes no Close
    async with ends() as e:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                assert await e.connection.receive() is None

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            e.near.socket.close()
        assert await e.connection.receive() is None


async def test_a_close_of_ours_waits_for_the_peers_and_ignores_what_comes_before_it() -> None:
    async with ends() as e:
        await e.far.send_all(frame(b"unread") + frame(b"p", 9) + frame(b"x" * (LIMIT // 2)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(e.connection.close, 1012, "restarting")
            await trio.testing.wait_all_tasks_blocked()
            assert await e.far.receive_some() == ws_frame(b"\x03\xf4restarting", 8)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert nursery.child_tasks
            await e.far.send_all(close(1012))
        with pytest.raises(trio.ClosedResourceError):
            await e.connection.close(1000, "again")


@pytest.mark.parametrize(
    "sent", [frame(b"x" * (LIMIT + 1)), frame(final=False) + frame(opcode=0, final=False) * FRAGMENTS, b"\x81\x00"]
)
async def test_a_peer_that_breaks_the_rules_while_we_close_does_not_keep_us(sent: bytes) -> None:
    async with ends() as e:
        await e.far.send_all(sent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(e.connection.close, 1012, "restarting")
            assert await e.read_to_end() == [(8, b"\x03\xf4restarting")]


async def test_what_is_too_much_is_for_the_owner_to_say() -> None:
    async with ends(frame(b"x" * (LIMIT + 1))) as e:
        with pytest.raises(TooLong):
            await e.connection.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(e.connection.close_unread, 1009, "message too big", 5.0)
            await e.far.send_all(b"x" * 300_000)  # the rest of it
            assert await e.read_to_end() == [(8, b"\x03\xf1message too big")]
    async with ends(frame(final=False) + frame(opcode=0, final=False) * FRAGMENTS) as e:
        with pytest.raises(TooManyFragments):
            await e.connection.receive()
