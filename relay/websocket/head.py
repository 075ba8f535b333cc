"""The head of a request, read before anybody has taken it: what is asked for, and by which door it must go.

Flows in: the first bytes of a connection. Flows out: a `RequestHead`, whether it is a WebSocket upgrade, why an upgrade
cannot succeed or the answer that accepts it, and the same head without its upgrade. No I/O.

The parser is that of Hypercorn, h11, which will read the same bytes again where they are no upgrade: one that disagreed
with it about an odd header would send a request through the wrong door. Heads as browsers and libraries write them are
taken apart by a pattern, in a tenth of the time; it accepts only what h11 reads in the same way, and the tests hold the
two against each other.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote, urlsplit

import h11

from relay.websocket.frames import accept_token

__all__ = ["Refusal", "RequestHead", "head_end", "parse_head", "switch_protocols", "upgrade_fault", "without_upgrade"]

# h11 accepts bare line feeds, so we must see the same end as it does.
_END = re.compile(rb"\n\r?\n")
# Dropped with the upgrade: both speak to HTTP/2's abandoned h2c upgrade.
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")

# A GET whose lines end in CR LF, whose names are tokens and whose values are printable ASCII: no folded lines, no
# obsolete text, no empty lines before it.
_NAME, _VALUE = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", r"(?:[!-~](?:[ -~\t]*[!-~])?)?"
_FIELD: Final = re.compile(rf"({_NAME}):[ \t]*({_VALUE})[ \t]*\r\n")
_PLAIN: Final = re.compile(rf"GET ([!-~]+) HTTP/1\.1\r\n((?:{_NAME}:[ \t]*{_VALUE}[ \t]*\r\n)*)\r\n")
# h11 looks closer at these.
_FRAMING: Final = frozenset(("content-length", "transfer-encoding"))
_NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request line and its headers: names in lower case, repeated ones joined with a comma (RFC 9110 §5.3).

    `path` is percent-decoded, `query` is not."""

    path: str
    query: str
    headers: dict[str, str]
    method: str = "GET"
    version: str = "1.1"

    def tokens(self, name: str) -> list[str]:
        """The members of a comma-separated header, in lower case."""
        return [token for part in self.headers.get(name, "").split(",") if (token := part.strip().lower())]

    @property
    def is_websocket_upgrade(self) -> bool:
        """RFC 6455 §4.1 and RFC 9110 §7.8: an Upgrade that Connection does not name, or in HTTP/1.0, is none."""
        return (
            self.method == "GET"
            and self.version == "1.1"
            and "upgrade" in self.tokens("connection")
            and "websocket" in self.tokens("upgrade")
        )

    @property
    def wants_relay_document(self) -> bool:
        """NIP-11: the client asks for the relay's information document."""
        return "application/nostr+json" in self.headers.get("accept", "").lower()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A plain answer in place of an upgrade. `error` is the text in the JSON body."""

    status: int
    error: str
    headers: tuple[tuple[str, str], ...] = ()


def head_end(data: bytes, seen: int = 0) -> int | None:
    """Index after the blank line that ends the head; None if it has not come. The first `seen` bytes held no end."""
    found = _END.search(data, max(0, seen - 2))
    return found.end() if found else None


def parse_head(data: bytes) -> RequestHead | None:
    """Parse a whole head. None if it is no HTTP request: then Hypercorn says so to the client."""
    return _parse_plain(data) or _parse_any(data)


def _parse_plain(data: bytes) -> RequestHead | None:
    """A head that needs no second look; None for all others, whatever they are."""
    found = _PLAIN.fullmatch(data.decode("latin-1"))
    if found is None:
        return None
    headers: dict[str, str] = {}
    for name, value in _FIELD.findall(found[2]):
        lowered = name.lower()
        if lowered in headers:
            if lowered == "host":
                return None
            value = f"{headers[lowered]}, {value}"
        headers[lowered] = value
    if "host" not in headers or not _FRAMING.isdisjoint(headers):
        return None
    path, query = _split_target(found[1])
    return RequestHead(path, query, headers)


def _parse_any(data: bytes) -> RequestHead | None:
    request = _read_request(data)
    if request is None:
        return None
    headers: dict[str, str] = {}
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    path, query = _split_target(request.target.decode("ascii"))
    return RequestHead(path, query, headers, request.method.decode(), request.http_version.decode())


def _read_request(data: bytes) -> h11.Request | None:
    connection = h11.Connection(h11.SERVER)
    try:
        connection.receive_data(data)
        request = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    return request if isinstance(request, h11.Request) else None


def _split_target(target: str) -> tuple[str, str]:
    if target.startswith("/"):
        path, _, query = target.partition("?")
    else:
        try:
            parts = urlsplit(target)  # absolute form, as to a proxy (RFC 9112 §3.2.2)
        except ValueError:
            return target, ""
        path, query = parts.path or ("/" if parts.netloc else target), parts.query
    return unquote(path), query


def upgrade_fault(head: RequestHead) -> Refusal | None:
    """Why this upgrade cannot succeed (RFC 6455 §4.2.1); None if `switch_protocols` may answer it."""
    headers = head.headers
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return Refusal(400, "a WebSocket upgrade has no body")
    version = headers.get("sec-websocket-version")
    if version != "13":
        fault = "bad WebSocket handshake: Missing header, 'Sec-WebSocket-Version'"
        return Refusal(426 if version else 400, fault, (("Sec-WebSocket-Version", "13"),))
    if "sec-websocket-key" not in headers:
        return Refusal(400, "bad WebSocket handshake: Missing header, 'Sec-WebSocket-Key'")
    if headers["upgrade"].lower() != "websocket":
        return Refusal(400, "bad WebSocket handshake: Missing header, 'Upgrade: websocket'")
    if not _is_host(headers["host"]):  # HTTP/1.1 is not read without one
        return Refusal(400, "bad WebSocket handshake: malformed Host")
    try:
        nonce = base64.b64decode(headers["sec-websocket-key"], validate=True)
    except (binascii.Error, ValueError):
        nonce = b""
    if len(nonce) != _NONCE_BYTES:
        return Refusal(400, "bad WebSocket handshake: malformed Sec-WebSocket-Key")
    return None


@lru_cache(maxsize=64)
def _is_host(value: str) -> bool:
    """Remembered: nearly all clients of a relay name the same one, and IDNA takes its time."""
    try:
        value.encode("latin-1").decode("idna")
    except UnicodeError:
        return False
    return True


def switch_protocols(head: RequestHead) -> bytes:
    """The answer to an upgrade without fault: neither a subprotocol nor an extension is ever taken."""
    token = accept_token(head.headers["sec-websocket-key"].encode("ascii"))
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + token + b"\r\n\r\n"
    )


def without_upgrade(data: bytes) -> bytes:
    """The same head, written anew without its upgrade; ignoring one is always allowed (RFC 9110 §7.8)."""
    request = _read_request(data)
    assert request is not None, "only a head that was read names an upgrade"
    lines = [b"%s %s HTTP/%s\r\n" % (request.method, request.target, request.http_version)]
    lines += [
        b"%s: %s\r\n" % (name, value)
        for name, value in request.headers.raw_items()
        if name.lower() not in _UPGRADE_HEADERS
    ]
    return b"".join(lines) + b"\r\n"
