"""NIP-40: when an event expires.

Pure: an event goes in, seconds since the epoch come out. What is done with an event whose time is over is decided where
events are admitted, stored and delivered.
"""

from __future__ import annotations

from typing import Final

from relay.nostr.event import Event

# 18 digits always fit PostgreSQL's bigint.
_DIGITS_MAX: Final = 18


def expires_at(event: Event) -> int | None:
    """The first `expiration` tag that is a decimal number, in seconds since the epoch; None: the event stays.

    From that second on the event is not to be shown.
    """
    for tag in event.tags:
        if tag[0] == "expiration" and len(tag) > 1:
            text = tag[1]
            if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX:
                return int(text)
    return None
