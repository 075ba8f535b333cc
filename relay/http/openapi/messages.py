"""`messages`, described; with the parts of a message that threads have as well."""

from __future__ import annotations

from typing import Final

from relay.http.openapi.parts import (
    BOOLEAN,
    HEX64,
    INTEGER,
    STRING,
    TAGS,
    UNIX,
    UUID,
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

COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
UNSIGNED: Final[Schema] = {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**32 - 1}
SIGNED: Final[Schema] = {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1}

CHANNEL_ID: Final = path("channel_id", STRING, "The channel, as a UUID in any of its spellings.")

# What every row of messages has. `pubkey` is the author: of what the relay signed for somebody, that person.
EVENT_KEYS: Final[dict[str, Schema]] = {
    "event_id": HEX64,
    "pubkey": HEX64 | {"description": "The author; of what the relay signed in somebody's name, that key."},
    "content": STRING,
    "kind": INTEGER,
    "created_at": UNIX,
    "channel_id": UUID,
    "tags": TAGS,
}
REACTIONS: Final[Schema] = array(ref("ReactionCount"), minItems=1, description="By emoji; left out where it is empty.")

PATHS: Paths = {
    "/api/channels/{channel_id}/messages": {
        "get": operation(
            "listMessages",
            "The messages of a channel",
            tag="messages",
            scope="messages:read",
            description=(
                "The newest first; the oldest first where `since` is given without `before`. Answers within threads "
                "are left out unless they were sent to the channel as well. Without `kinds`, every kind that is filed "
                "under the channel comes: system messages, state of the group, edits and reactions too."
            ),
            parameters=[
                CHANNEL_ID,
                query("limit", UNSIGNED, "Rows of a page: 50 if not given, at most 200; fewer if very large."),
                query("before", SIGNED, "Only what is older than this second; or a `next_cursor`."),
                query("since", SIGNED, "Only what is newer than this second; or a `next_cursor`."),
                query("kinds", STRING, "Only these kinds: numbers with commas between them."),
                query("with_threads", BOOLEAN, "Changes nothing: threads always come."),
            ],
            answers={200: answer("A page.", ref("Messages"))},
            refusals={
                400: "A parameter cannot be read, or the channel is no UUID.",
                403: "The token lacks the scope or the channel, or the caller is not a member of the channel.",
            },
        )
    }
}

SCHEMAS: dict[str, Schema] = {
    "ReactionCount": record({"emoji": STRING, "count": {"type": "integer", "minimum": 1}}),
    "ThreadSummary": record(
        {
            "reply_count": COUNT | {"description": "Direct answers."},
            "descendant_count": COUNT | {"description": "Answers of all levels; counted at the root."},
            "last_reply_at": nullable(UNIX),
            "participants": array(
                HEX64, maxItems=10, description="Who signed the newest 100 answers, the latest first; at most ten."
            ),
        }
    ),
    "Message": record(
        EVENT_KEYS | {"thread_summary": ref("ThreadSummary"), "reactions": REACTIONS},
        optional=("thread_summary", "reactions"),
    ),
    "Messages": record(
        {
            "messages": array(ref("Message"), maxItems=204),
            "next_cursor": nullable(
                {
                    "type": "integer",
                    "format": "int64",
                    "description": "To be sent back as it is, as `before` (newest first) or `since` (oldest first): a "
                    "second, or a place within one. Null on the last page.",
                }
            ),
        }
    ),
}
