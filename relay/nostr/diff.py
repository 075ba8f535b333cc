"""Kind 40008: a unified diff as a message, with tags that say what it changes.

Pure: an event goes in, what is wrong with it comes out. Nobody reads the diff itself.
"""

from __future__ import annotations

import re
from typing import Final

from relay.nostr.event import Event
from relay.nostr.numbers import parse_decimal

CONTENT_BYTES_MAX: Final = 61_440
UINT32_MAX: Final = 2**32 - 1

_COMMIT: Final = re.compile(r"[0-9a-fA-F]{7,}")
_REPOSITORY: Final = re.compile(r"https?://.", re.IGNORECASE | re.DOTALL)


def refuse_diff(event: Event) -> str | None:
    """Why this is no diff message, in the client's words; None if it is one. A tag without a value is skipped."""
    size = len(event.content) if event.content.isascii() else len(event.content.encode())
    if size > CONTENT_BYTES_MAX:
        return f"diff content exceeds 60KB limit (got {size} bytes)"
    for tag in event.tags:
        if len(tag) > 1 and (wrong := _refuse_tag(tag)) is not None:
            return wrong
    for name in ("repo", "commit"):
        if event.first_tag(name) is None:
            return f"diff event requires a {name} tag"
    return None


def _refuse_tag(tag: list[str]) -> str | None:
    value = tag[1]
    match tag[0]:
        case "repo" if not _REPOSITORY.match(value):
            return "repo URL must be http or https"
        case "commit" if not _COMMIT.fullmatch(value):
            return "commit SHA must be at least 7 hex characters"
        case "parent-commit" if not _COMMIT.fullmatch(value):
            return "parent-commit SHA must be at least 7 hex characters"
        case "branch" if len(tag) < 3 or not value or not tag[2]:
            return "branch tag requires both source and target"
        case "pr" if not parse_decimal(value, UINT32_MAX):
            return "pr number must be a positive integer"
    return None
