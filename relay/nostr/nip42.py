"""NIP-42: does an AUTH event prove that its author sits at the other end of this connection, now?

The event, the connection's challenge, the relay's address and the time go in; nothing comes out, or `AuthRefused`. The
cause is for logs and metrics: every client hears the same `auth-required: verification failed`, so that nobody learns
which check to work on next. Whether the key is welcome (token, allow-list) is decided elsewhere.
"""

from __future__ import annotations

from enum import Enum
from ipaddress import IPv6Address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from relay.errors import ProtocolError
from relay.nostr import kinds
from relay.nostr.event import Event, InvalidEvent, verify

# NIP-42 suggests ten minutes; a minute is what the original allows, and a challenge is answered within seconds.
SKEW_SECONDS_MAX: Final = 60

_DEFAULT_PORTS: Final = {"ws": 80, "http": 80, "wss": 443, "https": 443}


class AuthCause(Enum):
    """Why an AUTH event proves nothing, in the order of the checks."""

    INVALID_SIGNATURE = "invalid signature"  # also: the wrong kind
    CHALLENGE_MISMATCH = "challenge mismatch"
    RELAY_URL_MISMATCH = "relay URL mismatch"
    EVENT_EXPIRED = "event expired"


class AuthRefused(ProtocolError):
    """The AUTH event proves nothing, for this `cause`."""

    def __init__(self, cause: AuthCause) -> None:
        super().__init__(cause.value)
        self.cause = cause


def verify_auth(event: Event, *, challenge: str, relay_url: str, now: float) -> None:
    """`now` in seconds since the epoch. Returns if the author of the event is authenticated.

    Raises:
        AuthRefused: by the first check that fails.
    """
    assert challenge, "an empty challenge could be answered in advance"
    if event.kind != kinds.AUTH:
        raise AuthRefused(AuthCause.INVALID_SIGNATURE)
    try:
        verify(event)
    except InvalidEvent:
        raise AuthRefused(AuthCause.INVALID_SIGNATURE) from None
    if event.first_tag("challenge") != challenge:
        raise AuthRefused(AuthCause.CHALLENGE_MISMATCH)
    named = event.first_tag("relay")
    if named is None or normalise_url(named) != normalise_url(relay_url):
        raise AuthRefused(AuthCause.RELAY_URL_MISMATCH)
    if abs(now - event.created_at) > SKEW_SECONDS_MAX:
        raise AuthRefused(AuthCause.EVENT_EXPIRED)


def auth_token(event: Event) -> str | None:
    """The API token or JWT that came along in the first `auth_token` tag."""
    return event.first_tag("auth_token")


def normalise_url(url: str) -> str:
    """One spelling for all spellings of an address, only for comparing.

    Scheme and host in lower case, the default port and slashes at the end of the path dropped, every name of the local
    host (`localhost`, `[::1]`) the same; the query is kept. What cannot be parsed is returned as it is.
    """
    try:
        parts = urlsplit(url)
        if not parts.scheme or not parts.hostname:
            return url
        authority = _authority(parts)
    except ValueError:  # a bad port, half an IPv6 address, a name that IDNA cannot write
        return url
    return parts._replace(netloc=authority, path=parts.path.rstrip("/")).geturl()


def _authority(parts: SplitResult) -> str:
    host = _host(parts.hostname or "")
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    user, at, _ = parts.netloc.rpartition("@")
    return f"{user}{at}{host}{port}"


def _host(host: str) -> str:
    if ":" in host:
        address = IPv6Address(host)
        return "127.0.0.1" if address.is_loopback else f"[{address.compressed}]"
    if not host.isascii():
        return host.encode("idna").decode()
    return "127.0.0.1" if host == "localhost" else host
