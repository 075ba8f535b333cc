"""`threads`, described."""

from __future__ import annotations

from relay.http.openapi.messages import CHANNEL_ID, COUNT, EVENT_KEYS, REACTIONS, UNSIGNED
from relay.http.openapi.parts import (
    BOOLEAN,
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
    "/api/channels/{channel_id}/threads/{event_id}": {
        "get": operation(
            "showThread",
            "A message and everything that answers it",
            tag="threads",
            scope="messages:read",
            description="Answers of all levels, the oldest first; `parent_event_id` says which answers which.",
            parameters=[
                CHANNEL_ID,
                path("event_id", STRING, "The root's id, 64 hex digits of either case."),
                query("depth_limit", UNSIGNED, "Only answers of at most this depth; 1 answers the root."),
                query(
                    "limit",
                    UNSIGNED,
                    "Answers of a page: 100 if not given, at most 500; fewer if very large.",
                ),
                query("cursor", STRING, "The `next_cursor` of the page before."),
            ],
            answers={200: answer("The root, and a page of answers.", ref("Thread"))},
            refusals={
                400: "A parameter, the channel, the event's id or the cursor cannot be read; or the event belongs to a "
                "different channel.",
                403: "The token lacks the scope or the channel, or the caller is not a member of the channel.",
                404: "There is no such event in this channel.",
            },
        )
    }
}

SCHEMAS: dict[str, Schema] = {
    "ThreadRoot": record(
        EVENT_KEYS | {"thread_summary": nullable(ref("ThreadSummary")), "reactions": REACTIONS}, optional=("reactions",)
    ),
    "Reply": record(
        EVENT_KEYS
        | {
            "parent_event_id": nullable(HEX64),
            "root_event_id": nullable(HEX64),
            "depth": COUNT,
            "broadcast": BOOLEAN | {"description": "Whether it was sent to the channel as well."},
            "reactions": REACTIONS,
        },
        optional=("reactions",),
    ),
    "Thread": record(
        {
            "root": ref("ThreadRoot"),
            "replies": array(ref("Reply"), maxItems=500),
            "total_replies": COUNT,
            "next_cursor": nullable(
                {
                    "type": "string",
                    "pattern": "^[0-9a-f]{16}([0-9a-f]{64})?$",
                    "description": "Hex of the second after which to go on, in 8 bytes; with the last id behind it "
                    "where the page ends within a second. Null on the last page.",
                }
            ),
        }
    ),
}
