"""`/api/dms`: open or extend a direct message, list them, hide one.

Opening makes members and events, so it is ingest's; the rest is a list and a private mark. Unlike the original, a
token's list of channels holds here too: such a token sees and opens the DMs in that list, and makes no new ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from quart import Blueprint, Response

from relay.access.identity import Caller
from relay.access.scopes import MESSAGES_READ, MESSAGES_WRITE
from relay.errors import Refusal
from relay.http.auth import authenticate, permit_channel, services
from relay.http.hex_values import hex_bytes
from relay.http.refusals import ApiError, from_refusal, json_response
from relay.http.undecided import answered_in_time
from relay.http.values import Query, json_object, rfc3339, rfc3339_seconds, strings
from relay.ingest.dms import PARTICIPANTS_MAX, participant_hash
from relay.nostr.ids import parse_uuid
from relay.store import dm_list, dms, members
from relay.store.dm_list import Hiding, Participant

PAGE: Final = 50
PAGE_MAX: Final = 200
_NOTE: Final = "A new DM was created with the expanded participant set. The original DM is unchanged."

routes = Blueprint("dms", __name__)


@routes.post("/api/dms")
async def open_dm() -> Response:
    """The DM of the caller and these people, made if there is none; the caller sees it in the lists again."""
    pubkeys = strings(await json_object(), "pubkeys")
    caller = await authenticate(MESSAGES_WRITE)
    if not pubkeys:
        raise ApiError(400, "pubkeys must contain at least 1 other participant")
    if len(pubkeys) >= PARTICIPANTS_MAX:
        raise ApiError(400, "pubkeys may contain at most 8 other participants (9 total including self)")
    others = {_pubkey(text) for text in pubkeys} - {caller.pubkey}
    if not others:
        raise ApiError(400, "pubkeys must contain at least 1 participant other than yourself")
    return await _open(caller, others)


@routes.post("/api/dms/<channel_id>/members")
async def add_members(channel_id: str) -> Response:
    """The DM of everybody in this one and the people named; this one stays as it is."""
    added = strings(await json_object(), "pubkeys")
    caller = await authenticate(MESSAGES_WRITE)
    dm_id = _channel_id(channel_id)
    if not added:
        raise ApiError(400, "pubkeys must contain at least 1 new participant")
    permit_channel(caller, dm_id)
    directory = services().directory
    if not await directory.is_member(dm_id, caller.pubkey):
        raise ApiError(403, "not a member of this DM")
    channel = await directory.channel(dm_id)
    if channel is None:
        raise ApiError(404, "DM not found")
    if channel.channel_type != "dm":
        raise ApiError(400, "channel is not a DM")
    wanted = {_pubkey(text) for text in added}
    present = {member.pubkey for member in await members.active(services().pool, dm_id)}
    # Memory may be some seconds behind another process; what the table says of the caller now is free to look at.
    if caller.pubkey not in present:
        raise ApiError(403, "not a member of this DM")
    if len(present | wanted) > PARTICIPANTS_MAX:
        raise ApiError(422, f"DM supports at most {PARTICIPANTS_MAX} participants")
    others = (present | wanted) - {caller.pubkey}
    if not others:
        raise ApiError(400, "pubkeys must contain at least 1 participant other than yourself")
    return await _open(caller, others, note=_NOTE)


@routes.get("/api/dms")
async def list_dms() -> Response:
    """Last active first. `next_cursor` is the last item's id while there is more, then null."""
    query = Query(("limit", "cursor"))
    size, cursor = query.limit(PAGE, PAGE_MAX), query.text("cursor")
    caller = await authenticate(MESSAGES_READ)
    start = None
    if cursor is not None and (start := parse_uuid(cursor)) is None:
        raise ApiError(400, "invalid cursor format")
    pool = services().pool
    page = await dm_list.page(
        pool, caller.pubkey, now=int(time.time()), cursor=start, limit=size, allowed=caller.channel_ids
    )
    if not page.cursor_known:
        raise ApiError(400, "invalid cursor")
    people = await dm_list.participants(pool, [dm.id for dm in page.dms]) if page.dms else {}
    found = [
        {
            "channel_id": dm.id,
            "participants": _participants(people.get(dm.id, ())),
            "last_message_at": rfc3339_seconds(dm.last_active),
            "created_at": rfc3339(dm.created_at),
        }
        for dm in page.dms
    ]
    return json_response({"dms": found, "next_cursor": page.dms[-1].id if page.more and page.dms else None})


@routes.post("/api/dms/<channel_id>/hide")
async def hide_dm(channel_id: str) -> Response:
    caller = await authenticate(MESSAGES_WRITE)
    dm_id = _channel_id(channel_id)
    permit_channel(caller, dm_id)
    match await dm_list.hide(services().pool, dm_id, caller.pubkey):
        case Hiding.NO_CHANNEL:
            raise ApiError(404, "DM not found")
        case Hiding.NOT_A_DM:
            raise ApiError(400, "channel is not a DM")
        case Hiding.NOT_A_MEMBER:
            raise ApiError(403, "not a member of this DM")
        case Hiding.DONE:
            response = Response(b"", 204)
            del response.headers["Content-Type"]
            return response


async def _open(caller: Caller, others: set[str], note: str | None = None) -> Response:
    parts = services()
    if caller.channel_ids is not None:
        existing = await dms.find(parts.pool, participant_hash({caller.pubkey, *others}))
        # A new channel would be outside of what the token was made for.
        permit_channel(caller, existing or "")
    with answered_in_time():
        opened = await parts.ingest.open_dm(caller, sorted(others))
    if isinstance(opened, Refusal):
        raise from_refusal(opened)
    people = (await dm_list.participants(parts.pool, [opened.channel_id])).get(opened.channel_id, ())
    body: dict[str, Any] = {
        "channel_id": opened.channel_id,
        "created": opened.created,
        "participants": _participants(people),
    }
    if note is not None:
        body["note"] = note
    return json_response(body, 201 if opened.created else 200)


def _participants(people: Sequence[Participant]) -> list[dict[str, str | None]]:
    return [{"pubkey": each.pubkey, "display_name": each.display_name, "role": each.role} for each in people]


def _channel_id(text: str) -> str:
    channel_id = parse_uuid(text)
    if channel_id is None:
        raise ApiError(400, "invalid channel_id format")
    return channel_id


def _pubkey(text: str) -> str:
    """32 bytes in hex of either case; whether they are a point on the curve is not asked, as in the original."""
    key = hex_bytes(text)
    if key is None:
        raise ApiError(400, f"invalid pubkey hex: {text}")
    if len(key) != 32:
        raise ApiError(400, f"pubkey must be 32 bytes (64 hex chars): {text}")
    return key.hex()
