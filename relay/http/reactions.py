"""`GET /api/messages/{event_id}/reactions`: who reacted to a message, grouped by emoji.

Two statements: the caller, and the page. A cursor is the last emoji of the page, in hex.
"""

from __future__ import annotations

import time
from typing import Any, Final

from quart import Blueprint, Response

from relay.access.scopes import MESSAGES_READ
from relay.http.auth import NOT_A_MEMBER, authenticate, permit_channel, services
from relay.http.hex_values import hex_bytes
from relay.http.refusals import ApiError, json_response
from relay.http.values import Query
from relay.nostr.kinds import P_GATED
from relay.store import reaction_list
from relay.store.reaction_list import Group, Reactor

PAGE: Final = 50
PAGE_MAX: Final = 200
_NAME_DIGITS: Final = 8
"""What stands for somebody without a name: so many digits of the key."""

routes = Blueprint("reactions", __name__)


@routes.get("/api/messages/<event_id>/reactions")
async def list_reactions(event_id: str) -> Response:
    query = Query(("limit", "cursor"))
    size, cursor = query.limit(PAGE, PAGE_MAX), query.text("cursor")
    caller = await authenticate(MESSAGES_READ)
    target = _event_id(event_id)
    after = None if cursor is None else _emoji(cursor)
    found = await reaction_list.page(
        services().pool,
        target,
        caller.pubkey,
        now=int(time.time()),
        limit=size + 1 if size else 0,
        after=after,
    )
    if found is None or found.kind in P_GATED:
        raise ApiError(404, "event not found")
    if found.channel_id is not None:
        permit_channel(caller, found.channel_id)
    if not found.readable:
        raise ApiError(403, NOT_A_MEMBER)
    groups = found.groups[:size]
    following = groups[-1].emoji.encode().hex() if len(found.groups) > size else None
    return json_response({"reactions": [_row(group) for group in groups], "next_cursor": following})


def _row(group: Group) -> dict[str, Any]:
    return {"emoji": group.emoji, "count": group.count, "users": [_user(user) for user in group.users]}


def _user(user: Reactor) -> dict[str, str]:
    name = user.pubkey[:_NAME_DIGITS] if user.display_name is None else user.display_name
    row = {"pubkey": user.pubkey, "display_name": name}
    return row if user.reaction_id is None else row | {"reaction_event_id": user.reaction_id}


def _event_id(text: str) -> str:
    """Raises ApiError (400)."""
    found = hex_bytes(text)
    if found is None:
        raise ApiError(400, "invalid event_id: not valid hex")
    if len(found) != 32:
        raise ApiError(400, "invalid event_id: must be 32 bytes (64 hex chars)")
    return found.hex()


def _emoji(cursor: str) -> str:
    """Raises ApiError (400). PostgreSQL has no text with a NUL in it, so none was ever given out."""
    try:
        emoji = (hex_bytes(cursor) or b"\0").decode()
    except UnicodeDecodeError:
        emoji = "\0"
    if "\0" in emoji:
        raise ApiError(400, "invalid cursor")
    return emoji
