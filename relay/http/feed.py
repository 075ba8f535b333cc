"""`GET /api/feed`: mentions, what waits for an answer, and what went on lately, for the caller's start page.

Two statements, whatever is asked: the caller, and the feed with its access in it. `limit` holds for each category; the
original let the activities of people and of agents share one.
"""

from __future__ import annotations

import time
from typing import Any, Final

import orjson
from quart import Blueprint, Response

from relay.access.scopes import MESSAGES_READ
from relay.http.auth import authenticate, services
from relay.http.refusals import json_response
from relay.http.values import Query
from relay.store import feed
from relay.store.feed import CATEGORIES, MENTIONS, FeedRow
from relay.store.places import SECONDS_MAX

_LIMIT: Final = 20
_LIMIT_MAX: Final = 50
_WEEK_SECONDS: Final = 7 * 86_400

routes = Blueprint("feed", __name__)


@routes.get("/api/feed")
async def show_feed() -> Response:
    """All four categories are always there; those that `types` leaves out are empty and not asked for."""
    query = Query(("since", "limit", "types"))
    since, limit, types = query.signed("since"), query.limit(_LIMIT, _LIMIT_MAX), query.text("types")
    caller = await authenticate(MESSAGES_READ)
    now = int(time.time())
    if since is None or abs(since) > SECONDS_MAX:
        since = now - _WEEK_SECONDS
    found: dict[str, list[FeedRow]] = {}
    if wanted := _categories(types):
        found = await feed.rows(
            services().pool,
            caller.pubkey,
            since=since,
            limit=limit,
            categories=wanted,
            now=now,
            allowed=caller.channel_ids,
        )
    items = {category: [_item(row, category) for row in found.get(category, ())] for category in CATEGORIES}
    total = sum(map(len, items.values()))
    return json_response({"feed": items, "meta": {"since": since, "total": total, "generated_at": now}})


def _categories(types: str | None) -> list[str]:
    if types is None:
        return list(CATEGORIES)
    named = {text.strip() for text in types.split(",")}
    return [category for category in CATEGORIES if category in named]


def _item(row: FeedRow, category: str) -> dict[str, Any]:
    event = orjson.loads(row.signed_json)
    return {
        "id": event["id"],
        "kind": event["kind"],
        "pubkey": event["pubkey"],
        "content": event["content"],
        "created_at": event["created_at"],
        "channel_id": row.channel_id,
        "channel_name": row.channel_name,
        "channel_type": row.channel_type,
        "tags": event["tags"],
        # In the singular here and only here: clients of the original compare it so.
        "category": "mention" if category == MENTIONS else category,
    }
