"""TLS without a socket: bytes from the wire go in, bytes for the wire come out.

The protocol's `write()` is synchronous, so TLS has to be too: `ssl.SSLObject` over two memory BIOs never waits. The
connector drives the handshake (`step`), afterwards the wire calls `encrypt` and `decrypt`. Nothing here knows a task.
"""

from __future__ import annotations

import ssl

_READ_BYTES = 262_144


class TLS:
    """One TLS session as a client. Raises `ssl.SSLError` where the peer breaks the rules."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def step(self, received: bytes) -> bool:
        """Feed handshake bytes; return true once the handshake is done. Send `take_output()` after each step."""
        if received:
            self._incoming.write(received)
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def take_output(self) -> bytes:
        """Return what has to be sent: handshake records, alerts, answers to a key update; often empty."""
        return self._outgoing.read()

    def encrypt(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the records that carry `data`."""
        self.object.write(data)
        return self._outgoing.read()

    def decrypt(self, received: bytes) -> bytes:
        """Return the plain bytes that `received` completes; empty for part of a record or a session ticket."""
        self._incoming.write(received)
        parts = []
        try:
            # A clean close_notify reads as b"": the end of the TCP stream follows and is what the wire reports.
            while part := self.object.read(_READ_BYTES):
                parts.append(part)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        return b"".join(parts)
