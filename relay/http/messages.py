"""`GET /api/channels/{channel_id}/messages`: a channel as its clients show it, with threads and reactions in numbers.

Two statements: the caller, and the page with everything in it.
"""

from __future__ import annotations

import time
from typing import Any, Final

from quart import Blueprint, Response

from relay.access.scopes import MESSAGES_READ
from relay.http.auth import NOT_A_MEMBER, authenticate, permitted_channel, services
from relay.http.message_rows import event_row, reactions_row, summary_row, written
from relay.http.refusals import ApiError, json_response
from relay.http.values import U32_MAX, Query
from relay.nostr.kinds import KIND_MAX
from relay.nostr.numbers import parse_decimal
from relay.store import message_list, places
from relay.store.message_list import ListedMessage
from relay.store.places import PAIR_ROWS

PAGE: Final = 50
PAGE_MAX: Final = 200
BAD_KINDS: Final = (
    "Invalid 'kinds' parameter — expected comma-separated integers (e.g. '45001' or '9,45001')"
)  # fmt: skip

routes = Blueprint("messages", __name__)


@routes.get("/api/channels/<channel_id>/messages")
async def list_messages(channel_id: str) -> Response:
    """Newest first; oldest first where `since` is given without `before`. `next_cursor` goes on as the one of the two
    that gave the order, and is null at the end."""
    query = Query(("limit", "before", "since", "with_threads", "kinds"))
    size, before, since = query.limit(PAGE, PAGE_MAX), query.signed("before"), query.signed("since")
    query.boolean("with_threads")  # the threads always come; what is no boolean is still refused
    caller = await authenticate(MESSAGES_READ)
    channel = permitted_channel(caller, channel_id)
    kinds = _kinds(query.text("kinds"))
    parts = services()
    rows = await message_list.page(
        parts.pool,
        channel,
        caller.pubkey,
        now=int(time.time()),
        limit=size,
        statement_seconds=parts.settings.statement_seconds,
        before=None if before is None else places.parse(before),
        since=None if since is None else places.parse(since),
        kinds=kinds,
    )
    if rows is None:
        raise ApiError(403, NOT_A_MEMBER)
    complete, size = message_list.with_text(rows, size, PAIR_ROWS)
    end, cursor = places.cut(complete, size)
    messages = await written(_row(row, channel) for row in complete[:end])
    return json_response({"messages": messages, "next_cursor": cursor})


def _row(message: ListedMessage, channel_id: str) -> dict[str, Any]:
    row = event_row(message.signed_json, channel_id) | reactions_row(message.reactions)
    if message.summary is not None:
        row["thread_summary"] = summary_row(message.summary)
    return row


def _kinds(text: str | None) -> list[int] | None:
    """The kinds of a comma list that any event can have. Raises ApiError (400)."""
    if text is None:
        return None
    found = [parse_decimal(item.strip().removeprefix("+"), U32_MAX) for item in text.split(",")]
    if any(kind is None for kind in found):
        raise ApiError(400, BAD_KINDS)
    return sorted({kind for kind in found if kind is not None and kind <= KIND_MAX})
