"""`GET /api/search`: messages that contain words, in the channels that the caller may read and outside of all channels.

The same search as a subscription's (`query.search`): the best are chosen by rank, and shown by time. Three statements
at most: the caller, the channels that it may read, the search. Unlike the original, a database that does not answer is
an error and not an empty result: nothing found is an answer of its own.
"""

from __future__ import annotations

import time
from typing import Any, Final

import orjson
import trio
from quart import Blueprint, Response

from relay.access.identity import Caller
from relay.access.scopes import MESSAGES_READ
from relay.errors import Refused
from relay.http.auth import authenticate, services
from relay.http.refusals import ApiError, from_refusal, json_response, unavailable
from relay.http.values import Query
from relay.nostr.filter import Filter
from relay.nostr.ids import parse_uuid
from relay.query.conditions import Reach
from relay.query.replay import Limits
from relay.query.search import Hit, scored

_LIMIT: Final = 20
_LIMIT_MAX: Final = 100
_EVERYTHING: Final = ("", "*")

routes = Blueprint("search", __name__)


@routes.get("/api/search")
async def search() -> Response:
    """Nothing that somebody types is an error: what has no words finds nothing, and no text at all the newest."""
    query = Query(("q", "limit", "channel_id"))
    text, limit, channel = (query.text("q") or "").strip(), query.limit(_LIMIT, _LIMIT_MAX), query.text("channel_id")
    caller = await authenticate(MESSAGES_READ)
    channel_id = None
    if channel is not None and (channel_id := parse_uuid(channel)) is None:
        raise ApiError(400, "invalid channel UUID")
    wanted = Filter(search=text, limit=limit)
    try:
        found = await _search(caller, wanted, channel_id)
    except Refused as refused:
        raise from_refusal(refused.refusal) from None
    except trio.TooSlowError:
        raise unavailable() from None
    found.sort(key=lambda hit: (-hit.row.created_at, hit.row.id))
    return json_response({"hits": [_hit(hit) for hit in found], "found": len(found)})


async def _search(caller: Caller, wanted: Filter, channel_id: str | None) -> list[Hit]:
    """Raises `Refused` and what the store raises."""
    parts = services()
    reach = Reach(
        await parts.directory.readable_now(caller),
        # A token that is bound to channels was not given for what stands outside of all of them.
        global_events=caller.channel_ids is None and channel_id is None,
        channels=None if channel_id is None else frozenset((channel_id,)),
    )
    async with parts.asking(caller, long=True):
        found = await scored(
            parts.pool,
            wanted,
            reach,
            Limits.from_settings(parts.settings),
            now=int(time.time()),
            newest=wanted.search in _EVERYTHING,
        )
    # What the caller lost while the store was searching is not shown any more.
    still = await parts.directory.readable_now(caller)
    return [hit for hit in found if hit.row.channel_id is None or hit.row.channel_id in still]


def _hit(hit: Hit) -> dict[str, Any]:
    event = orjson.loads(hit.row.json)
    return {
        "event_id": event["id"],
        "content": event["content"],
        "kind": event["kind"],
        "pubkey": event["pubkey"],
        "channel_id": hit.row.channel_id,
        "channel_name": hit.channel_name,
        "created_at": event["created_at"],
        "score": hit.score,
    }
