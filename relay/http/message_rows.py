"""A stored event as the lists of messages show it: its author, thread and reactions in plain keys.

What the original's relay signed in somebody's name (its older clients could not sign) is shown as that person's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import orjson
import trio

from relay.http.auth import services
from relay.ingest.targets import effective_author
from relay.store.events import StoredEvent
from relay.store.message_list import Summary

# A page of the largest messages is 50 MB: others get their turn after every so many bytes of it.
_TURN_BYTES: Final = 64 << 10


async def written(rows: Iterable[dict[str, Any]]) -> list[orjson.Fragment]:
    """The rows as pieces of JSON, read and written one by one. `rows` may be a generator that makes them only now."""
    found: list[orjson.Fragment] = []
    size = 0
    for row in rows:
        text = orjson.dumps(row)
        found.append(orjson.Fragment(text))
        size += len(text)
        if size >= _TURN_BYTES:
            size = 0
            await trio.lowlevel.checkpoint()
    return found


def event_row(signed_json: bytes, channel_id: str) -> dict[str, Any]:
    """The keys that a message, a root and a reply have in common."""
    event = orjson.loads(signed_json)
    return {
        "event_id": event["id"],
        "pubkey": _author(event, channel_id, signed_json),
        "content": event["content"],
        "kind": event["kind"],
        "created_at": event["created_at"],
        "channel_id": channel_id,
        "tags": event["tags"],
    }


def reactions_row(reactions: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    """The key `reactions`, which is left out where there are none."""
    if not reactions:
        return {}
    return {"reactions": [{"emoji": emoji, "count": count} for emoji, count in reactions]}


def summary_row(summary: Summary) -> dict[str, Any]:
    return {
        "reply_count": summary.reply_count,
        "descendant_count": summary.descendant_count,
        "last_reply_at": summary.last_reply_at,
        "participants": summary.participants,
    }


def _author(event: dict[str, Any], channel_id: str, signed_json: bytes) -> str:
    signer: str = event["pubkey"]
    relay = services().relay_key.public_hex
    if signer != relay:
        return signer
    stored = StoredEvent(event["id"], signer, event["kind"], channel_id, event["created_at"], signed_json, False)
    return effective_author(stored, relay)
