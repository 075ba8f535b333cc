"""`/api/users/{pubkey}/notes` and `/contact-list`: what somebody has published for everybody, outside of channels."""

from __future__ import annotations

import time
from typing import Final

import orjson
from quart import Blueprint, Response

from relay.access.scopes import MESSAGES_READ, USERS_READ
from relay.http.auth import authenticate, services
from relay.http.refusals import ApiError, json_response
from relay.http.values import Query
from relay.nostr.ids import parse_hex64
from relay.store import notes
from relay.store.notes import Before

_PAGE: Final = 50
_PAGE_MAX: Final = 100

# The seconds that the original's calendar has: from the year -262143 to 262142.
_SECONDS_MIN: Final = -8_334_601_228_800
_SECONDS_MAX: Final = 8_210_266_876_799

routes = Blueprint("social", __name__)


@routes.get("/api/users/<pubkey>/notes")
async def list_notes(pubkey: str) -> Response:
    """Newest first. `next_cursor` holds the two parameters that the next page begins with; null on the last one."""
    query = Query(("limit", "before", "before_id"))
    size, seconds, text = max(1, query.limit(_PAGE, _PAGE_MAX)), query.signed("before"), query.text("before_id")
    await authenticate(MESSAGES_READ)
    author = _key(pubkey)
    before = _before(seconds, text)
    found, more = await notes.page(services().pool, author, before=before, limit=size, now=int(time.time()))
    listed = [
        {"id": note.event_id, "pubkey": author, "created_at": note.created_at, "content": note.content}
        for note in found
    ]
    cursor = {"before": found[-1].created_at, "before_id": found[-1].event_id} if more else None
    return json_response({"notes": listed, "next_cursor": cursor})


@routes.get("/api/users/<pubkey>/contact-list")
async def contact_list(pubkey: str) -> Response:
    await authenticate(USERS_READ)
    found = await notes.contact_list(services().pool, _key(pubkey), now=int(time.time()))
    if found is None:
        raise ApiError(404, "contact list not found")
    event = orjson.loads(found)
    return json_response({name: event[name] for name in ("id", "pubkey", "created_at", "tags", "content")})


def _before(seconds: int | None, text: str | None) -> Before | None:
    event_id = None
    if text is not None and (event_id := parse_hex64(text)) is None:
        raise ApiError(400, "invalid before_id hex")
    if seconds is None:
        if event_id is not None:
            raise ApiError(400, "before_id requires before")
        return None
    if not _SECONDS_MIN <= seconds <= _SECONDS_MAX:
        raise ApiError(400, "invalid before timestamp")
    return Before(seconds, event_id)


def _key(text: str) -> str:
    key = parse_hex64(text)
    if key is None:
        raise ApiError(400, "invalid pubkey hex")
    return key
