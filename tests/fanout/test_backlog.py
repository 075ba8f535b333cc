"""The order and the bookkeeping of unsent frames, against a list of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.fanout.backlog import Backlog, Frame, is_event
from relay.nostr.messages import closed, event_prefix, event_ws_frame, notice, ok, ws_frame

frames = st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.sampled_from(["x", "y", None])), max_size=12)


def of_x(frame: Frame) -> bool:
    return frame[1] == "x"


def wire(backlog: Backlog) -> bytes:
    return b"".join(backlog.buffers(1000))


@given(frames, st.integers(0, 240), st.lists(st.integers(1, 30), max_size=60))
def test_what_the_kernel_took_and_what_is_left_are_the_frames_in_order(given_frames, taken, steps):
    everything = b"".join(frame for frame, _ in given_frames)
    taken = min(taken, len(everything))
    backlog = Backlog()
    backlog.append_remainder(given_frames, taken)
    for step in steps:
        assert wire(backlog) == everything[taken:]
        assert backlog.bytes == len(everything) - taken
        assert bool(backlog) == (backlog.bytes > 0)
        step = min(step, backlog.bytes)
        backlog.consumed(step)
        taken += step


@given(frames, st.integers(0, 240))
def test_purging_drops_exactly_the_unbegun_frames_of_the_channel(given_frames, taken):
    backlog = Backlog()
    taken = min(taken, sum(len(frame) for frame, _ in given_frames))
    backlog.append_remainder(given_frames, taken)
    expected, dropped = b"", 0
    for frame, channel in given_frames:
        if taken >= len(frame):
            taken -= len(frame)
        elif taken or channel != "x":
            expected, taken = expected + frame[taken:], 0
        else:
            dropped += 1
    assert backlog.purge(of_x) == dropped
    assert wire(backlog) == expected
    assert backlog.bytes == len(expected)
    assert backlog.purge(of_x) == 0


def test_control_frames_follow_the_begun_frame_and_precede_the_others():
    backlog = Backlog()
    backlog.append_remainder([(b"begun", None), (b"data", None)], 2)
    backlog.append_urgent(b"\x8a1")
    backlog.append_urgent(b"\x88c")
    assert wire(backlog) == b"gun" + b"\x8a1" + b"\x88c" + b"data"
    backlog.consumed(4)  # into the pong: now that one must be finished first
    backlog.append_urgent(b"\x8a2")
    assert wire(backlog) == b"1" + b"\x88c" + b"\x8a2" + b"data"
    assert backlog.bytes == len(wire(backlog))


def test_a_waiting_control_frame_gives_way_to_a_newer_one_of_its_kind():
    backlog = Backlog()
    backlog.append_urgent(b"\x8aold", replace=True)
    backlog.append_urgent(b"\x8anewer", replace=True)
    assert wire(backlog) == b"\x8anewer"
    assert backlog.bytes == 6
    backlog.consumed(2)  # begun: it must stay
    backlog.append_urgent(b"\x8anext", replace=True)
    assert wire(backlog) == b"ewer\x8anext"


def test_forfeit_keeps_the_rest_of_the_begun_frame():
    backlog = Backlog()
    backlog.append_remainder([(b"begun", "x"), (b"data", "x")], 1)
    backlog.append_urgent(b"\x8a")
    backlog.forfeit()
    assert wire(backlog) == b"egun"
    assert backlog.bytes == 4
    assert len(backlog) == 0


def test_a_direct_write_past_waiting_frames_is_a_bug():
    backlog = Backlog()
    backlog.append((b"a", None))
    with pytest.raises(AssertionError):
        backlog.append_remainder([(b"b", None)], 0)


@pytest.mark.parametrize("size", [1, 100, 126, 60_000, 70_000])
def test_what_is_an_event(size):
    assert is_event((event_ws_frame(event_prefix("s"), b"{" + b" " * size + b"}"), None))
    for payload in (ok("00" * 32, True, "x" * size), notice('["EVENT",' + "x" * size), closed('["EVENT",', "")):
        assert not is_event((ws_frame(payload), "channel"))
    assert not is_event((b"\x81\x00", None))
