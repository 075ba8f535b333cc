"""Three writers with fixed keys, and what a test needs to make their events."""

from __future__ import annotations

from relay.nostr.event import Event, sign_event
from relay.nostr.keys import SecretKey

ALICE = SecretKey.from_bytes(bytes(31) + b"\x01")
BOB = SecretKey.from_bytes(bytes(31) + b"\x02")
CAROL = SecretKey.from_bytes(bytes(31) + b"\x03")

CHANNEL = "11111111-2222-4333-8444-5555aaaa6666"
OTHER_CHANNEL = "99999999-2222-4333-8444-5555aaaa6666"


def event(
    secret: SecretKey = ALICE,
    *,
    created_at: int = 1_700_000_000,
    kind: int = 9,
    tags: list[list[str]] | None = None,
    content: str = "hello",
) -> Event:
    return sign_event(secret, created_at=created_at, kind=kind, tags=[] if tags is None else tags, content=content)
