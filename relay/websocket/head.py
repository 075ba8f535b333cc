"""The head of a request, read before anybody has taken it: what is asked for, and by which door it must go.

Flows in: the first bytes of a connection. Flows out: a `RequestHead`, whether it is a WebSocket upgrade, why an upgrade
cannot succeed, and the same head without its upgrade. No I/O.

The parsers are those that will read the same bytes again, h11 (inside Hypercorn) and wsproto (inside trio-websocket):
a parser of our own that disagreed with them about one odd header would send a request through the wrong door.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import h11
import wsproto
from wsproto.events import RejectConnection
from wsproto.utilities import RemoteProtocolError

__all__ = ["Refusal", "RequestHead", "head_end", "parse_head", "upgrade_fault", "without_upgrade"]

# h11 accepts bare line feeds, so we must see the same end as it does.
_END = re.compile(rb"\n\r?\n")
# Dropped with the upgrade: both speak to HTTP/2's abandoned h2c upgrade.
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request line and its headers: names in lower case, repeated ones joined with a comma (RFC 9110 §5.3).

    `path` is percent-decoded, `query` is not."""

    path: str
    query: str
    headers: dict[str, str]
    method: str = "GET"
    version: str = "1.1"
    raw: h11.Request | None = field(default=None, repr=False, compare=False)

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
    connection = h11.Connection(h11.SERVER)
    try:
        connection.receive_data(data)
        request = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(request, h11.Request):
        return None
    headers: dict[str, str] = {}
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    path, query = _split_target(request.target.decode("ascii"))
    return RequestHead(path, query, headers, request.method.decode(), request.http_version.decode(), request)


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


def upgrade_fault(data: bytes, head: RequestHead) -> Refusal | None:
    """Why trio-websocket would not accept this upgrade; None if it will.

    Asked here because it answers a bad handshake itself and then waits for ever for a good one."""
    if "transfer-encoding" in head.headers or head.headers.get("content-length", "0") != "0":
        return Refusal(400, "a WebSocket upgrade has no body")
    try:
        wsproto.WSConnection(wsproto.ConnectionType.SERVER).receive_data(data)
    except RemoteProtocolError as error:
        hint = error.event_hint if isinstance(error.event_hint, RejectConnection) else RejectConnection()
        headers = tuple((name.decode(), value.decode()) for name, value in hint.headers)
        return Refusal(hint.status_code, f"bad WebSocket handshake: {error}", headers)
    except UnicodeError:
        return Refusal(400, "bad WebSocket handshake: malformed Host")
    try:
        nonce = base64.b64decode(head.headers["sec-websocket-key"], validate=True)
    except (binascii.Error, ValueError):
        nonce = b""
    if len(nonce) != 16:  # RFC 6455 §4.2.1
        return Refusal(400, "bad WebSocket handshake: malformed Sec-WebSocket-Key")
    return None


def without_upgrade(head: RequestHead) -> bytes:
    """The same head, written anew without its upgrade; ignoring one is always allowed (RFC 9110 §7.8)."""
    request = head.raw
    assert request is not None
    lines = [b"%s %s HTTP/%s\r\n" % (request.method, request.target, request.http_version)]
    lines += [
        b"%s: %s\r\n" % (name, value)
        for name, value in request.headers.raw_items()
        if name.lower() not in _UPGRADE_HEADERS
    ]
    return b"".join(lines) + b"\r\n"
