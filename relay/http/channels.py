"""`/api/channels`: the channels that the caller sees, and of one of them what it is, who is in it, and its canvas.

The list is at most three statements, however many channels and DMs there are: the caller, the channels, the
participants. One channel's routes are two: the caller, and what is asked for with the access check in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from quart import Blueprint, Response

from relay.access.scopes import CHANNELS_READ
from relay.http.auth import NOT_A_MEMBER, authenticate, permitted_channel, services
from relay.http.refusals import ApiError, json_response
from relay.http.values import U32_MAX, Query, rfc3339, rfc3339_seconds
from relay.store import channel_details, channel_list, dm_list
from relay.store.channel_details import ChannelDetails
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
        pool,
        caller.pubkey,
        now=int(time.time()),
        visibility=visibility,
        member_only=member is True,
        allowed=caller.channel_ids,
    )
    dms = [channel.id for channel in found if channel.channel_type == "dm"]
    people = await dm_list.participants(pool, dms) if dms else {}
    return json_response([_row(channel, people.get(channel.id, ())) for channel in found])


@routes.get("/api/channels/<channel_id>")
async def channel_detail(channel_id: str) -> Response:
    caller = await authenticate(CHANNELS_READ)
    wanted = permitted_channel(caller, channel_id, "invalid channel_id")
    found = await channel_details.details(services().pool, wanted, caller.pubkey)
    if found is None:
        raise ApiError(403, NOT_A_MEMBER)
    return json_response(_details(found))


@routes.get("/api/channels/<channel_id>/members")
async def list_members(channel_id: str) -> Response:
    """In the order in which they joined, a thousand at a time; `next_cursor` is null on the last page."""
    cursor = Query(("cursor",)).text("cursor")
    caller = await authenticate(CHANNELS_READ)
    wanted = permitted_channel(caller, channel_id, "invalid channel_id")
    after = None
    if cursor is not None and (after := channel_details.parse_cursor(cursor)) is None:
        raise ApiError(400, "invalid cursor")
    found = await channel_details.members(services().pool, wanted, caller.pubkey, after=after)
    if found is None:
        raise ApiError(403, NOT_A_MEMBER)
    members, last = found
    rows = [
        {
            "pubkey": member.pubkey,
            "role": member.role,
            "joined_at": rfc3339(member.joined_at),
            "display_name": member.display_name,
        }
        for member in members
    ]
    return json_response({"members": rows, "next_cursor": None if last is None else last.cursor})


@routes.get("/api/channels/<channel_id>/canvas")
async def read_canvas(channel_id: str) -> Response:
    """The newest one. It is by who signed it; one that the relay signed is by the first whom it names."""
    caller = await authenticate(CHANNELS_READ)
    wanted = permitted_channel(caller, channel_id)
    parts = services()
    found = await channel_details.canvas(parts.pool, wanted, caller.pubkey, now=int(time.time()))
    if found is None:
        raise ApiError(403, NOT_A_MEMBER)
    (canvas,) = found
    if canvas is None:
        return json_response({"content": None})
    named = canvas.first_named if canvas.pubkey == parts.relay_key.public_hex else None
    return json_response({"content": canvas.content, "updated_at": canvas.created_at, "author": named or canvas.pubkey})


def _details(channel: ChannelDetails) -> dict[str, Any]:
    return {
        "id": channel.id,
        "name": channel.name,
        "channel_type": channel.channel_type,
        "visibility": channel.visibility,
        "description": channel.description,
        "topic": channel.topic,
        "topic_set_by": channel.topic_set_by,
        "topic_set_at": rfc3339(channel.topic_set_at),
        "purpose": channel.purpose,
        "purpose_set_by": channel.purpose_set_by,
        "purpose_set_at": rfc3339(channel.purpose_set_at),
        "created_by": channel.created_by,
        "created_at": rfc3339(channel.created_at),
        "updated_at": rfc3339(channel.updated_at),
        "archived_at": rfc3339(channel.archived_at),
        "member_count": channel.member_count,
        "topic_required": channel.topic_required,
        "max_members": channel.max_members,
        # The channel's id is the group's; the original kept a second one and never filled it.
        "nip29_group_id": None,
        "ttl_seconds": channel.ttl_seconds,
        "ttl_deadline": rfc3339(channel.ttl_deadline),
    }


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
        "created_at": _moment(channel.created_at),
        "updated_at": _moment(channel.updated_at),
        "archived_at": _moment(channel.archived_at),
        "member_count": channel.member_count,
        "last_message_at": _seconds(channel.last_message),
        "participants": [*map(_name, people)],
        "participant_pubkeys": [person.pubkey for person in people] if people else [],
        "is_member": channel.is_member,
        "ttl_seconds": channel.ttl_seconds,
        "ttl_deadline": _moment(channel.ttl_deadline),
    }


def _name(person: Participant) -> str:
    return person.pubkey[:_NAME_DIGITS] if person.display_name is None else person.display_name


# A list may have a thousand rows, and writing its times out was half of the work on each. The JSON encoder writes six
# fraction digits or none, in the form of `rfc3339`: what needs three, or is in no year of the calendar, goes the long
# way.


def _moment(moment: datetime | None) -> datetime | str | None:
    if moment is None or moment.microsecond == 0 or moment.microsecond % 1000:
        return moment
    return rfc3339(moment)


def _seconds(seconds: int | None) -> datetime | str | None:
    if seconds is not None and 0 <= seconds <= U32_MAX:
        return datetime.fromtimestamp(seconds, UTC)
    return rfc3339_seconds(seconds)
