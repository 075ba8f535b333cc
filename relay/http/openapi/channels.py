"""`/api/channels`, described."""

from __future__ import annotations

from typing import Final

from relay.http.openapi.parts import (
    BOOLEAN,
    HEX64,
    INTEGER,
    RFC3339,
    STRING,
    UNIX,
    UUID,
    Paths,
    Schema,
    answer,
    array,
    enum,
    nullable,
    operation,
    path,
    query,
    record,
    ref,
)
from relay.store.channel_details import MEMBERS_MAX
from relay.store.channel_list import ROWS_MAX
from relay.store.channels import VISIBILITIES
from relay.store.members import ROLES

_TAG: Final = "channels"
_SCOPE: Final = "channels:read"

CHANNEL_ID: Final = path("channel_id", STRING, "The channel's UUID in any usual spelling.")
_BAD_ID: Final = {
    400: "The id is no UUID.",
    403: "The caller is no member and the channel is not open, or there is none; the token lacks the scope "
    f"`{_SCOPE}`, or is restricted to other channels.",
}

_COMMON: Final[dict[str, Schema]] = {
    "id": UUID,
    "name": STRING,
    "channel_type": enum("stream", "forum", "dm", "workflow"),
    "visibility": enum(*VISIBILITIES),
    "topic": nullable(STRING),
    "purpose": nullable(STRING),
    "created_by": HEX64,
    "created_at": RFC3339,
    "updated_at": RFC3339,
    "archived_at": nullable(RFC3339),
    "member_count": INTEGER | {"minimum": 0},
    "ttl_seconds": nullable(INTEGER | {"minimum": 1, "description": "An ephemeral channel's life after each event."}),
    "ttl_deadline": nullable(RFC3339),
}

SCHEMAS: dict[str, Schema] = {
    "ListedChannel": record(
        _COMMON
        | {
            "description": STRING | {"description": "Empty where there is none."},
            "last_message_at": nullable(RFC3339 | {"description": "Of the newest event of any kind."}),
            "participants": array(
                STRING, description="A DM's members by name, or by the first digits of the key; else empty."
            ),
            "participant_pubkeys": array(HEX64, description="The same people in the same order."),
            "is_member": BOOLEAN,
        }
    ),
    "Channel": record(
        _COMMON
        | {
            "description": nullable(STRING),
            "topic_set_by": nullable(HEX64),
            "topic_set_at": nullable(RFC3339),
            "purpose_set_by": nullable(HEX64),
            "purpose_set_at": nullable(RFC3339),
            "topic_required": BOOLEAN,
            "max_members": nullable(INTEGER),
            "nip29_group_id": {"type": "null", "description": "The group's id is the channel's."},
        }
    ),
    "Member": record({"pubkey": HEX64, "role": enum(*ROLES), "joined_at": RFC3339, "display_name": nullable(STRING)}),
    "Members": record(
        {
            "members": array(ref("Member"), maxItems=MEMBERS_MAX),
            "next_cursor": nullable(STRING | {"description": "The `cursor` of the next page; null on the last one."}),
        }
    ),
    "Canvas": record({"content": STRING, "updated_at": UNIX, "author": HEX64}),
    "NoCanvas": record({"content": {"type": "null"}}),
}

PATHS: Paths = {
    "/api/channels": {
        "get": operation(
            "listChannels",
            "The channels that the caller sees",
            tag=_TAG,
            scope=_SCOPE,
            description="Open channels and those that the caller is in, archived ones too, hidden DMs not: streams, "
            "then forums, DMs and workflows, each by name.",
            parameters=[
                query("visibility", STRING, "Only these: `open` or `private`. Any other word matches nothing."),
                query("member", BOOLEAN, "Only those that the caller is in."),
            ],
            answers={200: answer("The channels.", array(ref("ListedChannel"), maxItems=ROWS_MAX))},
        )
    },
    "/api/channels/{channel_id}": {
        "get": operation(
            "getChannel",
            "One channel",
            tag=_TAG,
            scope=_SCOPE,
            parameters=[CHANNEL_ID],
            answers={200: answer("The channel.", ref("Channel"))},
            refusals=_BAD_ID,
        )
    },
    "/api/channels/{channel_id}/members": {
        "get": operation(
            "listMembers",
            "Who is in a channel",
            tag=_TAG,
            scope=_SCOPE,
            description="In the order in which they joined.",
            parameters=[CHANNEL_ID, query("cursor", STRING, "The `next_cursor` of the page before.")],
            answers={200: answer("A page of members.", ref("Members"))},
            refusals=_BAD_ID | {400: "The id is no UUID, or the cursor is none."},
        )
    },
    "/api/channels/{channel_id}/canvas": {
        "get": operation(
            "getCanvas",
            "A channel's canvas",
            tag=_TAG,
            scope=_SCOPE,
            description="The newest event of kind 40100 in the channel.",
            parameters=[CHANNEL_ID],
            answers={200: answer("The canvas, or that there is none.", {"anyOf": [ref("Canvas"), ref("NoCanvas")]})},
            refusals=_BAD_ID,
        )
    },
}
