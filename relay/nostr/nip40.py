"""NIP-40: when an event expires.

Pure: an event goes in, seconds since the epoch come out. What is done with an event whose time is over is decided where
events are admitted, stored and delivered.
"""

from __future__ import annotations

from typing import Final

from relay.nostr.event import Event
from relay.nostr.numbers import parse_decimal

# All numbers of 18 digits; they fit PostgreSQL's bigint.
_LATEST: Final = 10**18 - 1


def expires_at(event: Event) -> int | None:
    """The first `expiration` tag that is a decimal number, in seconds since the epoch; None: the event stays.

    From that second on the event is not to be shown.
    """
    for tag in event.tags:
        if tag[0] == "expiration" and len(tag) > 1:
            end = parse_decimal(tag[1], _LATEST)
            if end is not None:
                return end
    return None
