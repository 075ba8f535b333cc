"""`reactions`, described."""

from __future__ import annotations

from relay.http.openapi.messages import UNSIGNED
from relay.http.openapi.parts import (
    HEX64,
    STRING,
    Paths,
    Schema,
    answer,
    array,
    nullable,
    operation,
    path,
    query,
    record,
    ref,
)

PATHS: Paths = {
    "/api/messages/{event_id}/reactions": {
        "get": operation(
            "listReactions",
            "Who reacted to a message",
            tag="reactions",
            scope="messages:read",
            description="Grouped by emoji, in the order of their bytes; within a group, the earliest first.",
            parameters=[
                path("event_id", STRING, "The message's id, 64 hex digits of either case."),
                query("limit", UNSIGNED, "Emoji of a page: 50 if not given, at most 200."),
                query("cursor", STRING, "The `next_cursor` of the page before."),
            ],
            answers={200: answer("A page.", ref("Reactions"))},
            refusals={
                400: "A parameter, the event's id or the cursor cannot be read.",
                403: "The token lacks the scope or the channel, or the caller is not a member of the channel.",
                404: "There is no such event.",
            },
        )
    }
}

SCHEMAS: dict[str, Schema] = {
    "Reactor": record(
        {
            "pubkey": HEX64,
            "display_name": STRING | {"description": "Without a name, the first 8 digits of the key."},
            "reaction_event_id": HEX64,
        },
        optional=("reaction_event_id",),
    ),
    "ReactionGroup": record(
        {
            "emoji": STRING,
            "count": {"type": "integer", "minimum": 1},
            "users": array(ref("Reactor"), minItems=1, maxItems=1000, description="The first 1000 of them."),
        }
    ),
    "Reactions": record(
        {
            "reactions": array(ref("ReactionGroup"), maxItems=200),
            "next_cursor": nullable(STRING | {"description": "To be sent back as it is; null on the last page."}),
        }
    ),
}
