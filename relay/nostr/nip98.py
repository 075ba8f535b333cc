"""NIP-98: does a signed event prove that its author sends this HTTP request, now?

The value of an `Authorization` header goes in and comes out as an event (`parse`); the event, the address, method and
body of the request and the time go in and nothing comes out (`verify`), or `Nip98Refused` by the first check that
fails. That an event is not used twice is not known here: see `access.replays`.

The address is the one under which clients know the relay, never the `Host` header: behind a proxy that says something
else, and whoever sends the request chooses it.
"""

from __future__ import annotations

from base64 import b64decode
from enum import Enum
from hashlib import sha256
from typing import Final

import orjson

from relay.errors import ProtocolError
from relay.nostr import kinds
from relay.nostr.event import Event, InvalidEvent, parse_event
from relay.nostr.event import verify as verify_event
from relay.nostr.nip42 import normalise_url

SCHEME: Final = "Nostr "
# As NIP-98 suggests. An event is good for this long before and after its own time, hence twice as long in all.
SKEW_SECONDS_MAX: Final = 60
VALID_SECONDS: Final = 2 * SKEW_SECONDS_MAX
"""How long a copy of an event may be good after its first use: what a cache of used ones has to remember."""

_HTTP_SCHEMES: Final = {"ws": "http", "wss": "https"}


class Nip98Cause(Enum):
    """Why an event proves nothing, in the order of the checks."""

    NOT_BASE64 = "invalid base64"
    NOT_AN_EVENT = "invalid event JSON"
    WRONG_KIND = "wrong event kind"
    INVALID_SIGNATURE = "invalid signature"
    EXPIRED = "timestamp outside of the allowed window"
    URL_MISMATCH = "URL mismatch"
    METHOD_MISMATCH = "method mismatch"
    PAYLOAD_MISMATCH = "payload hash mismatch"
    PAYLOAD_MISSING = "payload tag required"


class Nip98Refused(ProtocolError):
    """The event proves nothing, for this `cause`."""

    def __init__(self, cause: Nip98Cause) -> None:
        super().__init__(cause.value)
        self.cause = cause


def parse(header_value: str) -> Event:
    """The event of an `Authorization` header, with or without the scheme in front. Nothing about it is verified.

    Raises:
        Nip98Refused: NOT_BASE64 (standard alphabet, with padding) or NOT_AN_EVENT.
    """
    try:
        text = b64decode(header_value.removeprefix(SCHEME).strip(" \t"), validate=True)
    except ValueError:  # also: characters that are not ASCII
        raise Nip98Refused(Nip98Cause.NOT_BASE64) from None
    try:
        return parse_event(orjson.loads(text))
    except (orjson.JSONDecodeError, InvalidEvent):
        raise Nip98Refused(Nip98Cause.NOT_AN_EVENT) from None


def verify(
    event: Event, *, url: str, method: str, body: bytes | None, now: float, payload_required: bool = False
) -> None:
    """Returns if the author of `event` sends this request.

    Args:
        url: What the `u` tag has to name, with the query string if there is one. Spellings that mean the same are the
            same (`nip42.normalise_url`): case of scheme and host, default port, slashes at the end of the path, names
            of the local host.
        method: In either case.
        body: As it came, before any decoding. None: unknown, or there can be none; then a `payload` tag says nothing.
        now: Seconds since the epoch.
        payload_required: Whether the event must be about this very body. Without it an event says nothing about the
            body unless it has a `payload` tag.

    Raises:
        Nip98Refused: by the first check that fails, in the order of `Nip98Cause`.
    """
    if event.kind != kinds.HTTP_AUTH:
        raise Nip98Refused(Nip98Cause.WRONG_KIND)
    try:
        verify_event(event)
    except InvalidEvent:
        raise Nip98Refused(Nip98Cause.INVALID_SIGNATURE) from None
    if abs(now - event.created_at) > SKEW_SECONDS_MAX:
        raise Nip98Refused(Nip98Cause.EXPIRED)
    named = event.first_tag("u")
    if named is None or normalise_url(named) != normalise_url(url):
        raise Nip98Refused(Nip98Cause.URL_MISMATCH)
    if (event.first_tag("method") or "").upper() != method.upper():
        raise Nip98Refused(Nip98Cause.METHOD_MISMATCH)
    _verify_payload(event, body, required=payload_required)


def _verify_payload(event: Event, body: bytes | None, *, required: bool) -> None:
    payload = event.first_tag("payload")
    if payload is None:
        if required:
            raise Nip98Refused(Nip98Cause.PAYLOAD_MISSING)
    elif body is not None and payload != sha256(body).hexdigest():
        raise Nip98Refused(Nip98Cause.PAYLOAD_MISMATCH)


def canonical_url(relay_url: str, path: str) -> str:
    """The address of a route: that of the relay (`ws` or `wss`) as HTTP says it, then `path`, which begins with a slash
    and brings its query string along."""
    assert path.startswith("/")
    scheme, separator, rest = relay_url.partition("://")
    return f"{_HTTP_SCHEMES.get(scheme.lower(), scheme)}{separator}{rest.rstrip('/')}{path}"
