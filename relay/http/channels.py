"""`GET /api/channels`: the channels that the caller sees, with counts, last messages and the people in its DMs.

At most three statements, however many channels and DMs there are: the caller, the channels, the participants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quart import Blueprint, Response

from relay.access.scopes import CHANNELS_READ
from relay.http.auth import authenticate, services
from relay.http.refusals import json_response
from relay.http.values import Query, rfc3339, rfc3339_seconds
from relay.store import channel_list, dm_list
from relay.store.channel_list import ListedChannel
from relay.store.dm_list import Participant

_NAME_DIGITS = 8
"""What stands for somebody without a name: so many digits of the key."""

routes = Blueprint("channels", __name__)


@routes.get("/api/channels")
async def list_channels() -> Response:
    query = Query(("visibility", "member"))
    visibility, member = query.text("visibility"), query.boolean("member")
    caller = await authenticate(CHANNELS_READ)
    pool = services().pool
    found = await channel_list.visible(
        pool, caller.pubkey, visibility=visibility, member_only=member is True, allowed=caller.channel_ids
    )
    dms = [channel.id for channel in found if channel.channel_type == "dm"]
    people = await dm_list.participants(pool, dms) if dms else {}
    return json_response([_row(channel, people.get(channel.id, ())) for channel in found])


def _row(channel: ListedChannel, people: Sequence[Participant]) -> dict[str, Any]:
    return {
        "id": channel.id,
        "name": channel.name,
        "channel_type": channel.channel_type,
        "visibility": channel.visibility,
        "description": channel.description or "",
        "topic": channel.topic,
        "purpose": channel.purpose,
        "created_by": channel.created_by,
        "created_at": rfc3339(channel.created_at),
        "updated_at": rfc3339(channel.updated_at),
        "archived_at": rfc3339(channel.archived_at),
        "member_count": channel.member_count,
        "last_message_at": rfc3339_seconds(channel.last_message),
        "participants": [
            each.pubkey[:_NAME_DIGITS] if each.display_name is None else each.display_name for each in people
        ],
        "participant_pubkeys": [each.pubkey for each in people],
        "is_member": channel.is_member,
        "ttl_seconds": channel.ttl_seconds,
        "ttl_deadline": rfc3339(channel.ttl_deadline),
    }
