"""The way out of a connection, over real sockets: order, whole frames, bounds, ends, and no task left behind."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import relay.fanout.writer as writer_module
from relay.fanout.outbound import CloseReason, Limit, Outbound, OutboundLimits
from relay.nostr.messages import ws_frame
from tests.fanout.wire import CLOSE, Clock, Pair, pair, pong


@pytest.fixture
def writes(monkeypatch):
    """Sizes of the direct writes; the real call is made."""
    sizes: list[int] = []

    class CountingOs:
        writev = staticmethod(os.writev)

        @staticmethod
        def write(descriptor: int, data: bytes) -> int:
            sizes.append(len(data))
            return os.write(descriptor, data)

    monkeypatch.setattr(writer_module, "os", CountingOs)
    return sizes


async def until(condition) -> None:
    while not condition():
        await trio.sleep(0.002)


# ---- the fast path


async def test_an_offer_is_on_the_wire_when_it_returns_and_makes_no_task():
    async with pair() as p:
        assert p.outbound.offer(ws_frame(b"one"))
        assert not p.nursery.child_tasks
        assert await p.read_frames(1) == [(1, b"one")]


async def test_frames_offered_together_are_one_system_call(writes):
    async with pair(buffer=1 << 18) as p:
        frames = [(ws_frame(b"%d" % number * 40), "x") for number in range(16)]
        assert p.outbound.offer_many(frames)
        await p.outbound.put_many(frames)
        assert writes == [sum(len(frame) for frame, _ in frames)] * 2
        received = await p.read_frames(32)
        assert received == [(1, b"%d" % number * 40) for number in range(16)] * 2


async def test_frames_joined_before_are_one_system_call_and_are_not_taken_apart(writes):
    async with pair(buffer=1 << 18) as p:
        frames = [(ws_frame(b"%d" % number * 40), "x") for number in range(16)]
        joined = b"".join(frame for frame, _ in frames)
        assert p.outbound.offer_joined(joined, None, b"prefix")
        assert writes == [len(joined)]
        assert await p.read_frames(16) == [(1, b"%d" % number * 40) for number in range(16)]


async def test_of_frames_joined_before_those_that_wait_can_be_taken_back():
    """The kernel takes a part, and then nothing: the rest waits frame by frame, each with its channel."""
    asked = []

    def apart(prefix):
        asked.append(prefix)
        return [(ws_frame(bytes([number]) * 1000), f"{number % 2}") for number in range(40)]

    async with pair() as p:
        joined = b"".join(frame for frame, _ in apart(b""))
        assert p.outbound.offer_joined(joined, apart, b"direct")
        assert p.outbound.offer_joined(joined, apart, b"behind")
        assert asked == [b"", b"direct", b"behind"]
        begun = 40 - (p.outbound.statistics().queued_frames - 40)
        dropped = p.outbound.purge("1")
        odd, even = ([number for number in range(begun, 40) if number % 2 == rest] for rest in (1, 0))
        assert dropped == len(odd) + 20
        expected = [*range(begun), *even, *range(0, 40, 2)]
        assert await p.read_frames(len(expected)) == [(1, bytes([number]) * 1000) for number in expected]


@pytest.mark.parametrize(("limits", "limit"), [({"slots": 9}, Limit.SLOTS), ({"bytes": 50_000}, Limit.BYTES)])
@pytest.mark.parametrize("waiting", [False, True])
async def test_the_bounds_hold_for_frames_joined_before(limits, limit, waiting):
    frames = [(ws_frame(bytes(5000)), None)] * 40
    async with pair(limits=OutboundLimits(**limits)) as p:
        if waiting:
            p.fill()
        assert not p.outbound.offer_joined(b"".join(frame for frame, _ in frames), lambda _: frames, b"")
        assert p.reasons == [CloseReason.SLOW_CONSUMER]
        assert p.outbound.statistics().limit is limit
        assert not p.outbound.offer_joined(frames[0][0], lambda _: frames[:1], b"")
        assert p.outbound.statistics().queued_frames == 0


# ---- order and integrity

operations = st.lists(
    st.tuples(
        st.sampled_from(["offer", "offer_many", "put", "put_many", "pong"]),
        st.lists(st.integers(0, 9000), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(operations, st.lists(st.integers(1, 20_000), min_size=1, max_size=10), st.integers(1, 1 << 16))
async def test_every_frame_arrives_whole_and_in_order_whatever_the_sizes_and_the_reader(steps, reads, buffer):
    async with pair(buffer=buffer, limits=OutboundLimits(slots=10_000, bytes=1 << 30)) as p:
        sent: list[bytes] = []
        pongs: list[bytes] = []

        def make(size: int) -> bytes:
            sent.append(len(sent).to_bytes(4, "big") + os.urandom(1) * size)
            return ws_frame(sent[-1], 1)

        async def write() -> None:
            for verb, sizes in steps:
                if verb == "offer":
                    assert p.outbound.offer(make(sizes[0]))
                elif verb == "offer_many":
                    assert p.outbound.offer_many([(make(size), None) for size in sizes])
                elif verb == "put":
                    await p.outbound.put(make(sizes[0]))
                elif verb == "put_many":
                    await p.outbound.put_many([(make(size), None) for size in sizes])
                else:
                    pongs.append(b"pong %d" % len(pongs))
                    p.outbound.pong(pong(pongs[-1]))
            assert await p.outbound.flushed(10)
            assert not p.outbound.statistics().queued_bytes
            await p.outbound.send_close(CLOSE)
            await p.outbound.aclose()

        async def read() -> None:
            index = 0
            while data := await p.client.receive_some(reads[index % len(reads)]):
                p.received += data
                index += 1
            await p.client.send_eof()  # or the other end would linger

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(read)
        frames = await p.read_to_end()
        assert [payload for opcode, payload in frames if opcode == 1] == sent
        answered = [payload for opcode, payload in frames if opcode == 10]
        assert answered == [payload for payload in pongs if payload in answered]  # some gave way, none came twice
        assert answered[-1:] == pongs[-1:]
        assert frames[-1][0] == 8
        assert p.reasons == []


async def test_a_pong_goes_before_waiting_data_and_splits_no_frame():
    async with pair() as p:
        accepted = p.fill()
        for number in range(5):
            assert p.outbound.offer(ws_frame(b"%d" % number))
        p.outbound.pong(pong(b"first"))
        p.outbound.pong(pong(b"second"))
        frames = await p.read_frames(accepted + 6)
        # The frame that filled the buffer may be begun or not; the pong stands right around it, and only the latest.
        position = frames.index((10, b"second"))
        assert position in (accepted - 1, accepted)
        assert (10, b"first") not in frames
        frames.pop(position)
        assert frames == [(1, bytes(1000))] * accepted + [(1, b"%d" % number) for number in range(5)]


async def test_a_pong_that_itself_finds_the_kernel_full_keeps_its_place_among_control_frames():
    async with pair() as p:
        frame, accepted = ws_frame(bytes(1000)), 0
        with contextlib.suppress(BlockingIOError):
            while True:  # behind the writer's back, so that it does not know that the kernel is full
                assert os.write(p.outbound._fileno(), frame) == len(frame)
                accepted += 1
        p.outbound.pong(pong(b"first"))
        p.outbound.pong(pong(b"second"))
        assert p.outbound.offer(ws_frame(b"data"))
        expected = [(1, bytes(1000))] * accepted + [(10, b"second"), (1, b"data")]
        assert await p.read_frames(accepted + 2) == expected


# ---- waiting for room


async def test_puts_wait_for_half_the_queue_and_keep_their_order():
    async with pair(limits=OutboundLimits(slots=10)) as p:
        accepted = p.fill()
        while p.outbound.statistics().queued_frames < 5:
            p.outbound.offer(ws_frame(b"live"))
            accepted += 1

        async def put(number: int, task_status) -> None:
            task_status.started()
            await p.outbound.put(ws_frame(b"%d" % number))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                await nursery.start(put, number)
                await trio.testing.wait_all_tasks_blocked()
            assert p.outbound.statistics().waiting_puts == 20
            assert p.outbound.statistics().queued_frames == 5
            frames = await p.read_frames(accepted + 20)
        assert frames[-20:] == [(1, b"%d" % number) for number in range(20)]
        assert p.outbound.statistics().waiting_puts == 0


async def test_a_put_that_is_cancelled_while_it_waits_sends_nothing():
    async with pair(limits=OutboundLimits(slots=2)) as p:
        accepted = p.fill()
        while p.outbound.statistics().queued_frames < 1:
            p.outbound.offer(ws_frame(b"live"))
            accepted += 1
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(p.outbound.put, ws_frame(b"cancelled"))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert p.outbound.statistics().waiting_puts == 0
        frames = await p.read_frames(accepted)
        await p.outbound.put(ws_frame(b"next"))
        assert await p.read_frames(1) == [(1, b"next")]
        assert (1, b"cancelled") not in frames


async def test_put_is_a_checkpoint_and_refuses_a_connection_that_ends():
    async with pair() as p:
        with trio.testing.assert_checkpoints():
            await p.outbound.put(ws_frame(b"one"))
        with trio.testing.assert_checkpoints():
            await p.outbound.send_close(CLOSE)
        with pytest.raises(trio.BrokenResourceError):
            await p.outbound.put(ws_frame(b"two"))


# ---- purge


async def test_purge_drops_what_is_not_begun_and_nothing_else():
    async with pair(limits=OutboundLimits(slots=8)) as p:
        accepted = p.fill(size=3000, channel="x")
        begun = p.outbound.statistics().queued_frames == 0  # the last one is partly on the wire
        for channel in ("x", "y", "x", None):
            p.outbound.offer(ws_frame(f"{channel}".encode()), channel)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                p.outbound.put_many, [(ws_frame(b"x put"), "x"), (ws_frame(b"y put"), "y")]
            )  # fmt: skip
            await trio.testing.wait_all_tasks_blocked()
            dropped = p.outbound.purge("x")
        assert dropped == 2 + 1 + (not begun)
        assert p.outbound.statistics().purged_frames == dropped
        whole = accepted if begun else accepted - 1
        frames = await p.read_frames(whole + 3)
        assert frames == [(1, bytes(3000))] * whole + [(1, b"y"), (1, b"None"), (1, b"y put")]
        assert p.outbound.purge("x") == 0


async def test_a_purge_that_empties_the_queue_ends_the_waiting():
    async with pair() as p:
        p.fill(channel="x")
        if not p.outbound.purge("x"):  # it was begun; then the reader decides
            p.client.socket.close()
        with trio.fail_after(5):
            await p.outbound.flushed(10)
            await p.outbound.wait_send_all_might_not_block()


# ---- bounds


async def test_too_many_frames_close_the_connection():
    async with pair(limits=OutboundLimits(slots=10)) as p:
        p.fill()
        while p.outbound.offer(ws_frame(b"live")):
            assert p.outbound.statistics().queued_frames <= 10
        assert p.reasons == [CloseReason.SLOW_CONSUMER]
        assert p.outbound.statistics().limit is Limit.SLOTS
        assert p.outbound.statistics().queued_frames == 0
        assert not p.outbound.offer(ws_frame(b"more"))
        assert p.reasons == [CloseReason.SLOW_CONSUMER]


async def test_too_many_bytes_close_the_connection():
    async with pair(limits=OutboundLimits(bytes=20_000)) as p:
        p.fill()
        while p.outbound.offer(ws_frame(bytes(3000))):
            assert p.outbound.statistics().queued_bytes <= 20_000
        assert p.reasons == [CloseReason.SLOW_CONSUMER]
        assert p.outbound.statistics().limit is Limit.BYTES


@pytest.mark.parametrize(("limits", "limit"), [({"slots": 9}, Limit.SLOTS), ({"bytes": 50_000}, Limit.BYTES)])
async def test_the_bounds_hold_for_the_remainder_of_a_joined_write(limits, limit):
    async with pair(limits=OutboundLimits(**limits)) as p:
        assert not p.outbound.offer_many([(ws_frame(bytes(5000)), None)] * 40)
        assert p.reasons == [CloseReason.SLOW_CONSUMER]
        assert p.outbound.statistics().limit is limit


async def test_one_frame_larger_than_the_bound_passes_while_nothing_waits():
    async with pair(limits=OutboundLimits(bytes=1000)) as p:
        assert p.outbound.offer(ws_frame(bytes(200_000)))
        assert await p.read_frames(1) == [(1, bytes(200_000))]
        assert p.reasons == []


async def test_a_peer_that_takes_nothing_for_too_long_is_closed():
    clock = Clock()
    async with pair(limits=OutboundLimits(stall_seconds=0.2), clock=clock) as p:
        p.fill()
        p.outbound.offer(ws_frame(b"waiting"))
        await until(lambda: clock.calls > 8)
        assert p.reasons == []  # by its clock no time has passed
        clock.now += 0.21
        await p.closed.wait()
        assert p.reasons == [CloseReason.SLOW_CONSUMER]
        assert p.outbound.statistics().limit is Limit.STALL
        assert p.outbound.statistics().state == "shedding"


async def test_a_peer_that_reads_slowly_is_not_stalled_though_the_socket_is_not_writable():
    clock = Clock()
    async with pair(limits=OutboundLimits(stall_seconds=0.2), clock=clock, buffer=1 << 17) as p:
        p.fill()
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(6):
            await p.client.receive_some(
                1004
            )  # one frame: far from the third of the buffer that makes it writable again
            clock.now += 0.19
            await until(lambda: p.outbound.last_progress == clock.now)
        assert p.outbound.statistics().queued_bytes
        assert p.reasons == []
        clock.now += 0.21
        await p.closed.wait()
        assert p.outbound.statistics().limit is Limit.STALL


async def test_after_a_bound_was_crossed_the_close_still_leaves_behind_the_begun_frame():
    async with pair(limits=OutboundLimits(slots=3)) as p:
        p.fill(size=3000)
        while p.outbound.offer(ws_frame(b"late")):
            pass
        with pytest.raises(trio.BrokenResourceError):
            await p.outbound.put(ws_frame(b"reply"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(p.outbound.send_close, CLOSE)
            frames = await p.read_until_close()
        assert set(frames[:-1]) == {(1, bytes(3000))}


async def test_a_close_that_nobody_reads_stalls_too():
    clock = Clock()
    async with pair(limits=OutboundLimits(stall_seconds=0.1), clock=clock) as p:
        p.fill()

        async def close() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await p.outbound.send_close(CLOSE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            await trio.testing.wait_all_tasks_blocked()
            clock.now += 0.11
        assert p.reasons == [CloseReason.SLOW_CONSUMER]
        assert p.outbound.statistics().state == "gone"


# ---- ends


async def test_nothing_follows_a_close():
    async with pair() as p:
        p.outbound.offer(ws_frame(b"before"))
        await p.outbound.send_close(CLOSE)
        assert not p.outbound.offer(ws_frame(b"after"))
        assert not p.outbound.offer_many([(ws_frame(b"after"), None)])
        p.outbound.pong(pong(b"crossed"))  # no error, no effect
        with pytest.raises(trio.ClosedResourceError):
            await p.outbound.send_close(CLOSE)
        with pytest.raises(trio.BrokenResourceError):
            await p.outbound.put(ws_frame(b"after"))
        assert p.reasons == []
        await p.outbound.aclose()
        assert await p.read_to_end() == [(1, b"before"), (8, b"\x03\xf4restarting")]


async def test_a_close_forfeits_waiting_frames_and_fails_waiting_puts():
    async with pair(limits=OutboundLimits(slots=2)) as p:
        accepted = p.fill()
        p.outbound.offer(ws_frame(b"forfeited"))

        async def put() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await p.outbound.put(ws_frame(b"waiting"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(p.outbound.send_close, CLOSE)
            await trio.testing.wait_all_tasks_blocked()
            frames = await p.read_until_close()
        assert set(frames[:-1]) == {(1, bytes(1000))}
        assert len(frames) in (accepted, accepted + 1)  # the last one only if it was begun
        await p.client.send_eof()
        await p.outbound.aclose()
        assert await p.read_to_end() == []  # nothing behind the Close


async def test_flushing_first_loses_nothing():
    async with pair(limits=OutboundLimits(slots=100)) as p:
        accepted = p.fill()
        for _ in range(50):
            p.outbound.offer(ws_frame(b"kept"))

        async def close() -> None:
            assert await p.outbound.flushed(10)
            await p.outbound.send_close(CLOSE)
            await p.outbound.aclose()

        p.nursery.start_soon(close)
        frames = await p.read_to_end()
        assert frames == [(1, bytes(1000))] * accepted + [(1, b"kept")] * 50 + [(8, b"\x03\xf4restarting")]


async def test_flushing_gives_up_in_time():
    async with pair() as p:
        p.fill()
        assert not await p.outbound.flushed(0.05)
        assert p.outbound.statistics().state == "open"


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_reset_is_noticed_once_and_ends_everything(waiting):
    async with pair(tcp=True, limits=OutboundLimits(slots=4)) as p:
        failed: list[bool] = []
        if waiting:
            p.fill(size=100_000)
            while p.outbound.statistics().queued_frames < 2:
                p.outbound.offer(ws_frame(b"queued"))

            async def put() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await p.outbound.put(ws_frame(b"reply"))
                failed.append(True)

            p.nursery.start_soon(put)
            await trio.testing.wait_all_tasks_blocked()
        p.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        p.client.socket.close()
        await until(lambda: p.reasons or not p.outbound.offer(ws_frame(b"into the void")))
        assert p.reasons == [CloseReason.PEER_GONE]
        assert not p.outbound.offer(ws_frame(b"more"))
        await until(lambda: not p.nursery.child_tasks)
        assert failed == [True] * waiting
        with pytest.raises(trio.ClosedResourceError):
            await p.outbound.send_close(CLOSE)
        assert p.reasons == [CloseReason.PEER_GONE]


async def test_the_flush_task_ends_when_the_reader_has_caught_up():
    async with pair() as p:
        for round_number in range(1, 4):
            accepted = p.fill()
            assert len(p.nursery.child_tasks) == 1
            await p.read_frames(accepted)
            await until(lambda: not p.nursery.child_tasks)
            assert p.outbound.statistics().backlogs == round_number
            assert p.outbound.statistics().queued_bytes == 0


async def test_a_closed_connection_never_writes_to_the_next_owner_of_its_descriptor():
    async with pair() as p:
        descriptor = p.outbound._fileno()
        await p.outbound._stream.aclose()  # closed behind the outbound's back, as by the accept loop
        near, far = socket.socketpair()
        if near.fileno() != descriptor:  # mostly it has the number already
            os.dup2(near.fileno(), descriptor)
            near = socket.socket(fileno=descriptor)
        with near, far:
            far.setblocking(False)
            assert not p.outbound.offer(ws_frame(b"private"))
            with pytest.raises(BlockingIOError):
                far.recv(100)
        assert p.reasons == [CloseReason.PEER_GONE]


async def test_a_cancelled_connection_takes_no_more_frames():
    near, far = trio.socket.socketpair()
    reasons: list[CloseReason] = []
    with far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        async with trio.open_nursery() as nursery:
            outbound = Outbound(trio.SocketStream(near), nursery, on_close=reasons.append)
            p = Pair(outbound, trio.SocketStream(far), nursery, reasons, trio.Event(), None)
            p.fill()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert not outbound.offer(ws_frame(b"would cut into the begun frame"))
        assert outbound.statistics().state == "gone"
        assert reasons == []  # its owner did it
        await outbound.aclose()


async def test_an_offer_after_the_nursery_has_ended_is_refused_not_raised():
    near, far = trio.socket.socketpair()
    reasons: list[CloseReason] = []
    with far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        async with trio.open_nursery() as nursery:
            outbound = Outbound(trio.SocketStream(near), nursery, on_close=reasons.append)
        while outbound.offer(ws_frame(bytes(1000))):
            pass
        assert reasons == [CloseReason.PEER_GONE]
        await outbound.aclose()


async def test_unread_input_does_not_cost_the_peer_the_close_code():
    async with pair(tcp=True, buffer=1 << 16) as p:
        await p.client.send_all(bytes(60_000))  # never read by us, e.g. the rest of a message that was too long
        await p.outbound.send_close(CLOSE)
        p.nursery.start_soon(p.outbound.aclose)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert await p.read_to_end() == [(8, b"\x03\xf4restarting")]


async def test_waiting_is_a_checkpoint():
    async with pair() as p:
        with trio.testing.assert_checkpoints():
            await p.outbound.wait_send_all_might_not_block()
        with trio.testing.assert_checkpoints():
            assert await p.outbound.flushed(1)
