"""Signatures that were found right: an event that comes again is not verified again.

Clients send an event once more when they have lost its OK, and bridges send what others have sent. The id is computed
each time; it covers every signed field, so the same id with the same signature is the same event. Another signature
under a known id proves nothing and is verified.
"""

from __future__ import annotations

from relay.nostr.event import Event, verify_id, verify_signature

REMEMBERED = 8192
"""Newest ones; an entry takes 0.4 KiB. What comes again comes soon."""


class Verified:
    """The signatures by id. Synchronous; one per process."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._signatures: dict[str, str] = {}
        self._remembered = remembered

    def verify(self, event: Event) -> None:
        """As `relay.nostr.event.verify`, errors and their order included."""
        digest = verify_id(event)
        if self._signatures.get(event.id) == event.sig:
            return
        verify_signature(event, digest)
        if len(self._signatures) >= self._remembered:
            del self._signatures[next(iter(self._signatures))]
        self._signatures[event.id] = event.sig
