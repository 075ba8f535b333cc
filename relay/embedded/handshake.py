"""Is the server ready? Asked with a StartupMessage, since a socket that listens proves nothing.

Only the first step of PostgreSQL's protocol (documentation, "Message Formats"): a startup message goes out, messages
of one type byte and a length come back until ReadyForQuery or ErrorResponse. Whoever wants to talk to the database
uses a real client.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from relay.embedded.cluster import ROLE, socket_path

_PROTOCOL_3_0 = 196608
_MESSAGE_BYTES_MAX = 65_536  # the longest honest one, an ErrorResponse, has a few hundred

STARTING_OR_STOPPING = "57P03"
TOO_MANY_CONNECTIONS = "53300"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said: `sqlstate` is empty when it is ready for queries."""

    sqlstate: str
    text: str

    @property
    def serves(self) -> bool:
        """Ready, or so busy that it refuses one more connection: in both cases it is up."""
        return self.sqlstate in ("", TOO_MANY_CONNECTIONS)


async def ask(socket_dir: Path, database: str = ROLE) -> Answer | None:
    """Knock once; None if nobody answers (no socket, refused, broken off). The caller bounds the time."""
    try:
        stream = await trio.open_unix_socket(str(socket_path(socket_dir)))
    except OSError:
        return None
    async with stream:
        try:
            await stream.send_all(_startup(database))
            answer = await _read_answer(stream)
        except trio.BrokenResourceError:
            return None
        if answer is not None and not answer.sqlstate:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"X\0\0\0\x04")  # Terminate: a polite end, without a line in the server's log
        return answer


def _startup(database: str) -> bytes:
    parameters = b"".join(part.encode() + b"\0" for part in ("user", ROLE, "database", database)) + b"\0"
    return struct.pack("!ii", len(parameters) + 8, _PROTOCOL_3_0) + parameters


async def _read_answer(stream: trio.SocketStream) -> Answer | None:
    buffer = bytearray()
    while chunk := await stream.receive_some(_MESSAGE_BYTES_MAX):
        buffer += chunk
        while len(buffer) >= 5:
            length = int.from_bytes(buffer[1:5], "big")
            if not 4 <= length <= _MESSAGE_BYTES_MAX:
                return Answer("08P01", "what answers on the socket is not PostgreSQL")
            if len(buffer) < length + 1:
                break
            kind, body = buffer[:1], bytes(buffer[5 : length + 1])
            del buffer[: length + 1]
            if kind == b"Z":
                return Answer("", "ready")
            if kind == b"E":
                return _refusal(body)
    return None


def _refusal(body: bytes) -> Answer:
    fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    return Answer(fields.get(b"C", "XX000"), fields.get(b"M", ""))
