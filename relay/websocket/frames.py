"""RFC 6455 from the server's side, without I/O: bytes of a client become messages; a handful of frames is made here.

In: bytes, cut anywhere (`feed`). Out, one by one (`next_item`): a text message as `str`, a binary one as `bytes`, a
ping, pong or Close as `Control`; None while the next frame is not complete. What a client may not send raises, and
nothing is taken from the decoder after that. Not done here: answers, the closing handshake, time.

Rules
-----
1. What a frame claims is checked before its payload is awaited: a length beyond the limit is refused by its head.
2. A message has a bounded size and a bounded number of fragments; pieces without any bytes count, too.
3. Text is checked as a whole (RFC 6455 §8.1 allows to fail earlier, and does not ask for it).
4. Nothing is kept of input that was used up: an idle connection holds no buffer.
"""

from __future__ import annotations

import base64
import hashlib
from enum import IntEnum
from typing import Final

from relay.nostr.messages import ws_frame

__all__ = [
    "Control", "Decoder", "Opcode", "TooLong", "TooManyFragments", "Violation", "accept_token", "close_frame", "unmask"
]  # fmt: skip

PROTOCOL_ERROR: Final = 1002
NOT_UTF8: Final = 1007
CONTROL_BYTES_MAX: Final = 125
REASON_BYTES_MAX: Final = CONTROL_BYTES_MAX - 2
# RFC 6455 §7.4 and the IANA registry: what may stand in a Close. 1005, 1006 and 1015 never do, 1004 has no meaning.
_CLOSE_CODES: Final = frozenset((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013))
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_FINAL, _RESERVED, _OPCODE, _MASKED = 0x80, 0x70, 0x0F, 0x80
_FINAL_TEXT: Final = 0x81
_MASK_BYTES: Final = 4


class Opcode(IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


_OPCODES: Final = frozenset(int(each) for each in Opcode)


class Violation(Exception):
    """The client broke the protocol; `code` and `reason` are for the Close."""

    def __init__(self, reason: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class TooLong(Exception):
    """A message is longer than the limit. Its rest is still to come."""


class TooManyFragments(Exception):
    """A message was cut into more pieces than anybody needs."""


class Control:
    """A ping, a pong, or a Close, whose payload has been checked."""

    __slots__ = ("opcode", "payload")

    def __init__(self, opcode: int, payload: bytes) -> None:
        self.opcode = opcode
        self.payload = payload


class Decoder:
    """The input of one connection."""

    __slots__ = ("_bytes_max", "_data", "_fragments_max", "_need", "_opcode", "_partial", "_pieces", "_size", "_start")

    def __init__(self, message_bytes_max: int, fragments_max: int) -> None:
        self._bytes_max = message_bytes_max
        self._fragments_max = fragments_max
        # Whole frames, from `_start` on; a frame that is not complete waits in `_partial` until it has `_need` bytes.
        self._data = b""
        self._start = 0
        self._partial = bytearray()
        self._need = 0
        # The message that is coming in fragments.
        self._opcode: int | None = None
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        """More input, after `next_item` has returned None."""
        assert not self._data
        if self._partial:
            self._partial += data
            if len(self._partial) < self._need:
                return
            data = bytes(self._partial)
            self._partial = bytearray()
        self._data = data

    def next_item(self) -> str | bytes | Control | None:
        """The next message or control frame; None if more input is needed.

        Raises Violation, TooLong, TooManyFragments."""
        data, start = self._data, self._start
        need = 2
        while len(data) - start >= need:
            first, second = data[start], data[start + 1]
            if first != _FINAL_TEXT or second < _MASKED:
                _check_head(first, second)
            size = second & 0x7F
            body = start + 2 + _MASK_BYTES
            if size > CONTROL_BYTES_MAX:
                body += 2 if size == 126 else 8
                if len(data) < body - _MASK_BYTES:
                    need = body - _MASK_BYTES - start
                    break
                size = _long_size(data[start + 2 : body - _MASK_BYTES])
            opcode = first & _OPCODE
            if opcode < Opcode.CLOSE:
                self._check_place(opcode, size)
            end = body + size
            if len(data) < end:
                need = end - start
                break
            payload = unmask(data[body:end], data[body - _MASK_BYTES : body])
            start = end
            if first == _FINAL_TEXT:
                self._start = start
                return _text(payload)
            if opcode >= Opcode.CLOSE:
                self._start = start
                return _control(opcode, payload)
            if (whole := self._collect(opcode, payload, final=first >= _FINAL)) is not None:
                self._start = start
                return whole
            need = 2
        if start < len(data):
            self._partial = bytearray(data[start:])
            self._need = need
        self._data, self._start = b"", 0
        return None

    def _check_place(self, opcode: int, size: int) -> None:
        """A data frame must begin a message or continue one, and the message must not become too long."""
        if self._opcode is None:
            if opcode == Opcode.CONTINUATION:
                raise Violation("unexpected CONTINUATION")
        elif opcode != Opcode.CONTINUATION:
            raise Violation(f"expected CONTINUATION, got {Opcode(opcode)!r}")
        if self._size + size > self._bytes_max:
            raise TooLong

    def _collect(self, opcode: int, payload: bytes, *, final: bool) -> str | bytes | None:
        """One fragment, or a whole binary message."""
        if self._opcode is None:
            if final:
                return payload
            self._opcode = opcode
        pieces = self._pieces
        pieces.append(payload)
        self._size += len(payload)
        if len(pieces) > self._fragments_max:
            pieces.clear()
            raise TooManyFragments
        if not final:
            return None
        whole, binary = b"".join(pieces), self._opcode == Opcode.BINARY
        self._opcode, self._pieces, self._size = None, [], 0
        return whole if binary else _text(whole)


def unmask(payload: bytes, mask: bytes) -> bytes:
    """RFC 6455 §5.3. As one large number: three calls for the whole payload, 1 to 3 ns a byte."""
    size = len(payload)
    key = int.from_bytes((mask * ((size + 3) >> 2))[:size], "little")
    return (int.from_bytes(payload, "little") ^ key).to_bytes(size, "little")


def close_frame(code: int, reason: str) -> bytes:
    """A Close of ours; a reason that is too long is cut at a character."""
    text = reason.encode()
    if len(text) > REASON_BYTES_MAX:
        text = text[:REASON_BYTES_MAX].decode(errors="ignore").encode()
    return ws_frame(code.to_bytes(2, "big") + text, Opcode.CLOSE)


def accept_token(key: bytes) -> bytes:
    """The answer to a Sec-WebSocket-Key (RFC 6455 §4.2.2); SHA-1 protects nothing here."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def _check_head(first: int, second: int) -> None:
    opcode = first & _OPCODE
    if opcode not in _OPCODES:
        raise Violation(f"Invalid opcode {opcode:#x}")
    if opcode >= Opcode.CLOSE:
        if first < _FINAL:
            raise Violation("Invalid attempt to fragment control frame")
        if second & 0x7F > CONTROL_BYTES_MAX:
            raise Violation("Control frame with payload len > 125")
    if first & _RESERVED:
        raise Violation("Reserved bit set unexpectedly")
    if second < _MASKED:
        raise Violation("server received unexpected unmasked frame")


def _long_size(field: bytes) -> int:
    """RFC 6455 §5.2: the shortest form, and no top bit."""
    size = int.from_bytes(field, "big")
    if len(field) == 2:
        if size <= CONTROL_BYTES_MAX:
            raise Violation("Payload length used 2 bytes when 1 would have sufficed")
    elif size < 1 << 16:
        raise Violation("Payload length used 8 bytes when 2 would have sufficed")
    elif size >> 63:
        raise Violation("8-byte payload length with non-zero MSB")
    return size


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise Violation(str(error), NOT_UTF8) from None


def _control(opcode: int, payload: bytes) -> Control:
    if opcode == Opcode.CLOSE and payload:
        if len(payload) == 1:
            raise Violation("CLOSE with 1 byte payload")
        code = int.from_bytes(payload[:2], "big")
        if not (code in _CLOSE_CODES or 3000 <= code <= 4999):
            raise Violation("CLOSE with invalid code")
        try:
            payload[2:].decode()
        except UnicodeDecodeError as error:
            raise Violation(f"Error decoding CLOSE reason: {error}", NOT_UTF8) from None
    return Control(opcode, payload)
