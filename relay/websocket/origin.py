"""Which web pages may open a WebSocket to this relay.

Flows in: the head of an upgrade. Flows out: yes or no. A browser sends the Origin of the page and lets no script change
it, so this keeps other sites' pages from acting with a visitor's network position. Programs send none and may pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from relay.websocket.head import RequestHead

__all__ = ["OriginPolicy", "same_host_or"]

OriginPolicy = Callable[[RequestHead], bool]

_DEFAULT_PORTS = {"http": 80, "https": 443}


def same_host_or(allowed: Collection[str] = ()) -> OriginPolicy:
    """Allow no Origin, an Origin in `allowed` (`https://app.example`, or `*` for all), and our own host's pages."""
    listed = {origin.rstrip("/").lower() for origin in allowed}

    def allows(head: RequestHead) -> bool:
        origin = head.headers.get("origin")
        if origin is None or "*" in listed or origin.rstrip("/").lower() in listed:
            return True
        return _same_host(origin, head.headers.get("host", ""))

    return allows


def _same_host(origin: str, host: str) -> bool:
    """Compare host and port. TLS may end in front of us, so a missing port is that of the Origin's scheme."""
    try:
        page, own = urlsplit(origin), urlsplit(f"//{host}")
        default = _DEFAULT_PORTS.get(page.scheme)
        if default is None or not page.hostname:
            return False
        return (page.hostname, page.port or default) == (own.hostname, own.port or default)
    except ValueError:  # no number, or out of range
        return False
