"""`GET /api/channels/{channel_id}/threads/{event_id}`: a message and everything that answers it.

Three statements: the caller, the root, the answers. A cursor is hex: 8 bytes of the second after which to go on, and,
where a page ends within a second, the 32 bytes of the last id behind them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from quart import Blueprint, Response

from relay.access.scopes import MESSAGES_READ
from relay.http.auth import NOT_A_MEMBER, authenticate, permitted_channel, services
from relay.http.hex_values import hex_bytes
from relay.http.message_rows import event_row, reactions_row, summary_row, written
from relay.http.refusals import ApiError, json_response
from relay.http.values import Query
from relay.nostr.kinds import P_GATED
from relay.store import thread_list
from relay.store.message_list import with_text
from relay.store.thread_list import NotReadable, Reply, Root

PAGE: Final = 100
PAGE_MAX: Final = 500
_SECOND_BYTES: Final = 8
_ID_BYTES: Final = 32

routes = Blueprint("threads", __name__)


@routes.get("/api/channels/<channel_id>/threads/<event_id>")
async def show_thread(channel_id: str, event_id: str) -> Response:
    """The checks stand in the order of the contract: who may not read the channel is told nothing about the rest."""
    query = Query(("depth_limit", "limit", "cursor"))
    depth_limit, size, cursor = query.unsigned("depth_limit"), query.limit(PAGE, PAGE_MAX), query.text("cursor")
    caller = await authenticate(MESSAGES_READ)
    channel = permitted_channel(caller, channel_id)
    named, now = hex_bytes(event_id), int(time.time())
    try:
        root = await thread_list.root(services().pool, channel, caller.pubkey, named or b"", now=now)
    except NotReadable:
        raise ApiError(403, NOT_A_MEMBER) from None
    if named is None:
        raise ApiError(400, "invalid event_id hex")
    if root is None or root.kind in P_GATED:
        raise ApiError(404, "event not found")
    if root.channel_id != channel:
        raise _filed_elsewhere(root, known=root.channel_id is None or caller.may_enter(root.channel_id))
    found = await thread_list.replies(
        services().pool,
        channel,
        caller.pubkey,
        named,
        now=now,
        limit=size + 1 if size else 0,
        depth_limit=depth_limit,
        after=None if cursor is None else _place(cursor),
    )
    replies, size = with_text(found, size, 1)
    return json_response(
        {
            "root": _root_row(root, channel),
            "replies": await written(_reply_row(reply, channel) for reply in replies[:size]),
            "total_replies": root.summary.descendant_count if root.summary is not None else 0,
            "next_cursor": _cursor(replies, size),
        }
    )


def _filed_elsewhere(root: Root, *, known: bool) -> ApiError:
    """That an event exists is only told to those who could read it; `known`: the token reaches to where it is."""
    if known and (root.channel_id is None or root.elsewhere):
        return ApiError(400, "event belongs to a different channel")
    return ApiError(404, "event not found")


def _place(cursor: str) -> tuple[int, bytes | None]:
    """Raises ApiError (400)."""
    found = hex_bytes(cursor)
    if found is None:
        raise ApiError(400, "invalid cursor hex")
    if len(found) not in (_SECOND_BYTES, _SECOND_BYTES + _ID_BYTES):
        raise ApiError(400, "cursor must be 8 bytes (timestamp)")
    return int.from_bytes(found[:_SECOND_BYTES], "big", signed=True), found[_SECOND_BYTES:] or None


def _cursor(replies: Sequence[Reply], size: int) -> str | None:
    """The short form wherever it says enough; None at the end. `replies` has one more than the page if there is one."""
    if len(replies) <= size:
        return None
    last, following = replies[size - 1], replies[size]
    second = last.created_at.to_bytes(_SECOND_BYTES, "big", signed=True).hex()
    return second if following.created_at > last.created_at else second + last.event_id


def _root_row(root: Root, channel_id: str) -> dict[str, Any]:
    summary = None if root.summary is None else summary_row(root.summary)
    return event_row(root.signed_json, channel_id) | reactions_row(root.reactions) | {"thread_summary": summary}


def _reply_row(reply: Reply, channel_id: str) -> dict[str, Any]:
    place = {
        "parent_event_id": reply.parent,
        "root_event_id": reply.root,
        "depth": reply.depth,
        "broadcast": reply.broadcast,
    }
    return event_row(reply.signed_json, channel_id) | reactions_row(reply.reactions) | place
