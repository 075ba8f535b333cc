"""The decoder: what it makes of every frame, however it is cut, held against another implementation; and its bounds."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from relay.nostr.messages import ws_frame
from relay.websocket.frames import (
    Control,
    Decoder,
    Opcode,
    TooLong,
    TooManyFragments,
    Violation,
    accept_token,
    close_frame,
    unmask,
)

LIMIT = 1000
FRAGMENTS = 20
MASK = b"\x12\xab\x00\xff"


def frame(
    payload: bytes = b"", opcode: int = 1, *, final: bool = True, reserved: int = 0, masked: bool = True, form: int = 0
) -> bytes:
    """A client's frame; `form`: bytes of a longer length field than needed, 2 or 8."""
    size = len(payload)
    head = bytes([(0x80 if final else 0) | reserved | opcode])
    bit = 0x80 if masked else 0
    if form == 8 or size >= 1 << 16:
        head += bytes([bit | 127]) + size.to_bytes(8, "big")
    elif form == 2 or size > 125:
        head += bytes([bit | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([bit | size])
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[index & 3] for index, byte in enumerate(payload))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(code.to_bytes(2, "big") + reason, 8)


def decode(data: bytes, cuts: list[int] | None = None, *, limit: int = LIMIT) -> list[Any]:
    """All items, as plain values; the last one may be an error. `cuts`: sizes of the pieces, over and over."""
    decoder, items = Decoder(limit, FRAGMENTS), []
    sizes = cuts or [len(data) or 1]
    start = index = 0
    try:
        while start < len(data):
            size = sizes[index % len(sizes)]
            decoder.feed(data[start : start + size])
            start, index = start + size, index + 1
            while (item := decoder.next_item()) is not None:
                items.append((item.opcode, item.payload) if isinstance(item, Control) else item)
                if isinstance(item, Control) and item.opcode == Opcode.CLOSE:
                    return items
    except Violation as violation:
        items.append((violation.code, violation.reason))
    except (TooLong, TooManyFragments) as error:
        items.append(type(error))
    return items


# ---- whole streams

payloads = st.one_of(st.binary(max_size=20), st.text(max_size=60).map(str.encode), st.just(b"x" * 200))
some_frame = st.builds(
    frame,
    payloads,
    st.sampled_from([0, 0, 1, 1, 1, 2, 2, 9, 10, 8, 3, 11]),
    final=st.sampled_from([True, True, False]),
    reserved=st.sampled_from([0] * 20 + [0x40, 0x20, 0x10]),
    masked=st.sampled_from([True] * 20 + [False]),
    form=st.sampled_from([0] * 20 + [2, 8]),
)
streams = st.lists(some_frame, max_size=8).map(b"".join)


def decode_with_wsproto(data: bytes) -> list[Any]:
    connection, items = Connection(ConnectionType.SERVER), []
    connection.receive_data(data)
    parts: list[Any] = []
    try:
        for event in connection.events():
            if isinstance(event, TextMessage | BytesMessage):
                parts.append(event.data)
                if event.message_finished:
                    whole = "" if isinstance(event, TextMessage) else b""
                    items.append(whole.join(parts) if isinstance(whole, str) else b"".join(map(bytes, parts)))
                    parts = []
            elif isinstance(event, Ping):
                items.append((9, bytes(event.payload)))
            elif isinstance(event, Pong):
                items.append((10, bytes(event.payload)))
            elif isinstance(event, CloseConnection):
                items.append(int(event.code))
                break
    except ValueError:  # a code below 1000 is no member of its enumeration
        items.append(1002)
    return items


def without_close_payloads(items: list[Any]) -> list[Any]:
    """Of a Close and of an error only the code."""
    last = items[-1:]
    if last and isinstance(last[0], tuple):
        kind, payload = last[0]
        if kind == Opcode.CLOSE:
            return [*items[:-1], int.from_bytes(payload[:2], "big") if payload else 1005]
        if kind > 15:
            return [*items[:-1], kind]
    return items


@settings(max_examples=400, deadline=None)
@given(streams, st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_another_implementation_reads_the_same(data, cuts):
    ours = decode(data, limit=1 << 20)
    assert decode(data, cuts, limit=1 << 20) == ours
    ours, theirs = without_close_payloads(ours), decode_with_wsproto(data)
    if theirs[-1:] == [1007] and ours != theirs:  # at the fragment; we say so at the end of the message, if it comes
        later = ours[len(theirs) - 1 :]
        assert not any(isinstance(item, str | bytes) for item in later)
        ours[len(theirs) - 1 :] = [1007]
    assert ours == theirs


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_no_input_does_anything_but_what_is_documented(data, cuts):
    assert decode(data, cuts) == decode(data)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 127, 65_535, 65_536, 131_072])
@pytest.mark.parametrize("cut", [1 << 20, 4096, 7])
def test_every_size(size, cut):
    text = "é" * (size // 2) + "x" * (size % 2)
    data = frame(text.encode()) + frame(text.encode(), 2) + frame(b"end")
    assert decode(data, [cut], limit=max(size, 3)) == [text, text.encode(), "end"]


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmasking(payload, mask):
    assert unmask(payload, mask) == bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


# ---- case by case, with the reason that the client is given

FIRST = frame(b"a", final=False)
VIOLATIONS = {
    "a reserved bit": (frame(b"a", reserved=0x40), "Reserved bit set unexpectedly"),
    "another reserved bit of a ping": (frame(b"a", 9, reserved=0x10), "Reserved bit set unexpectedly"),
    "a reserved opcode": (frame(b"a", 3), "Invalid opcode 0x3"),
    "a reserved control opcode": (frame(b"a", 15), "Invalid opcode 0xf"),
    "no mask": (frame(b"a", masked=False), "server received unexpected unmasked frame"),
    "no mask, and nothing more": (b"\x81\x00", "server received unexpected unmasked frame"),
    "a fragmented ping": (frame(b"a", 9, final=False), "Invalid attempt to fragment control frame"),
    "a long ping": (frame(b"a" * 126, 9), "Control frame with payload len > 125"),
    "a long Close": (frame(b"\x03\xe8" + b"a" * 124, 8), "Control frame with payload len > 125"),
    "two bytes for a short length": (frame(b"a", form=2), "Payload length used 2 bytes when 1 would have sufficed"),
    "eight bytes for a short length": (frame(b"a", form=8), "Payload length used 8 bytes when 2 would have sufficed"),
    "a length with the top bit": (b"\x81\xff\x80" + bytes(7), "8-byte payload length with non-zero MSB"),
    "a continuation of nothing": (frame(b"a", 0), "unexpected CONTINUATION"),
    "an unfinished continuation of nothing": (frame(b"a", 0, final=False), "unexpected CONTINUATION"),
    "text within a message": (FIRST + frame(b"b"), "expected CONTINUATION, got <Opcode.TEXT: 1>"),
    "binary within a message": (FIRST + frame(b"b", 2), "expected CONTINUATION, got <Opcode.BINARY: 2>"),
    "a Close of one byte": (frame(b"\x03", 8), "CLOSE with 1 byte payload"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_what_breaks_the_protocol(name):
    data, reason = VIOLATIONS[name]
    before = [] if data.startswith(FIRST) else ["before"]
    assert decode(frame(b"before") * len(before) + data) == [*before, (1002, reason)]
    assert decode(data, [1]) == [(1002, reason)]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1014, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_close_codes_that_may_not_be_sent(code):
    assert decode(close(code)) == [(1002, "CLOSE with invalid code")]


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4999])
def test_close_codes_that_may(code):
    assert decode(close(code, "à bientôt".encode())) == [(8, code.to_bytes(2, "big") + "à bientôt".encode())]


NOT_UTF8 = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\xe2\x82", b"\x80", b"\xf5\x80\x80\x80"]


@pytest.mark.parametrize("payload", NOT_UTF8)
def test_text_that_is_none(payload):
    assert decode(frame(payload))[-1][0] == 1007
    assert decode(frame(payload, final=False) + frame(b"", 0))[-1][0] == 1007
    assert decode(close(1000, payload))[-1][0] == 1007
    assert decode(frame(payload, 2)) == [payload]  # only text promises to be text


def test_a_character_may_be_cut_between_fragments():
    whole = "κόσμε 🙂".encode()
    for cut in range(len(whole) + 1):
        data = frame(whole[:cut], final=False) + frame(b"", 0, final=False) + frame(whole[cut:], 0)
        assert decode(data) == [whole.decode()]


def test_control_frames_between_fragments_come_first():
    data = FIRST + frame(b"ping", 9) + frame(b"", 0, final=False) + frame(b"pong", 10) + frame(b"b", 0) + close(1000)
    assert decode(data) == [(9, b"ping"), (10, b"pong"), "ab", (8, b"\x03\xe8")]


# ---- bounds


def test_a_length_beyond_the_limit_is_refused_by_the_head_alone():
    for size in (LIMIT + 1, 65_535):
        assert decode(b"\x81\xfe" + size.to_bytes(2, "big")) == [TooLong]
    for size in (1 << 16, (1 << 63) - 1):
        assert decode(b"\x82\xff" + size.to_bytes(8, "big")) == [TooLong]
    assert decode(frame(b"x" * LIMIT)) == ["x" * LIMIT]


def test_a_message_in_fragments_has_the_same_limit():
    half = b"x" * (LIMIT // 2)
    assert decode(frame(half, final=False) + frame(half, 0)) == ["x" * LIMIT]
    assert decode(frame(half, final=False) + frame(half, 0, final=False) + frame(b"x", 0)) == [TooLong]
    # A ping within counts for nothing, and the next message begins anew.
    data = frame(half, final=False) + frame(b"x" * 125, 9) + frame(half, 0) + frame(half)
    assert decode(data) == [(9, b"x" * 125), "x" * LIMIT, "x" * (LIMIT // 2)]


def test_the_number_of_fragments_is_bounded_though_they_be_empty():
    most = frame(final=False) + frame(opcode=0, final=False) * (FRAGMENTS - 2)
    assert decode((most + frame(b"x", 0)) * 3) == ["x"] * 3
    assert decode(most + frame(opcode=0, final=False) * 2) == [TooManyFragments]


def test_a_message_that_drips_in_takes_its_own_size_of_memory():
    decoder, data = Decoder(1 << 20, FRAGMENTS), frame(b"x" * 100_000)
    tracemalloc.start()
    try:
        for start in range(0, len(data) - 2, 2):
            decoder.feed(data[start : start + 2])
            assert decoder.next_item() is None
        assert tracemalloc.get_traced_memory()[0] < 150_000
    finally:
        tracemalloc.stop()


def test_an_idle_decoder_keeps_nothing():
    decoder = Decoder(1 << 20, FRAGMENTS)
    decoder.feed(frame(b"x" * 60_000) * 2)
    while decoder.next_item() is not None:
        pass
    assert decoder._data == b""
    assert not decoder._partial
    assert not decoder._pieces


# ---- what is written


def test_a_close_of_ours_is_short_enough_whatever_the_reason():
    assert close_frame(1012, "restarting") == ws_frame(b"\x03\xf4restarting", 8)
    long = close_frame(1008, "é" * 100)
    assert len(long) == 2 + 124
    assert long[4:].decode() == "é" * 61


def test_the_answer_to_a_key():
    """The example of RFC 6455 §1.3."""
    assert accept_token(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
