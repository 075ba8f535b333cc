"""`feed`, described."""

from __future__ import annotations

from relay.http.openapi.parts import (
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
    enum,
    operation,
    query,
    record,
    ref,
)

_DESCRIPTION = """\
Only events of channels that the caller may read. Every category is newest first and has at most `limit` items:
`mentions` (messages that name the caller), `needs_action` (reminders and requests for approval that do), `activity`
(messages) and `agent_activity` (jobs of agents)."""

PATHS: Paths = {
    "/api/feed": {
        "get": operation(
            "showFeed",
            "What happened lately",
            tag="feed",
            scope="messages:read",
            description=_DESCRIPTION,
            parameters=[
                query("since", UNIX, "Nothing older than this. Absent, or no time at all: the last seven days."),
                query(
                    "limit",
                    {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "default": 20},
                    "Items of each category, at most 50.",
                ),
                query("types", STRING, "The categories wanted, with commas between them; absent: all."),
            ],
            answers={200: answer("The four categories; those that are not wanted are empty.", ref("Feed"))},
        )
    }
}

SCHEMAS: dict[str, Schema] = {
    "Feed": record(
        {
            "feed": record(
                {
                    name: array(ref("FeedItem"), maxItems=50)
                    for name in ("mentions", "needs_action", "activity", "agent_activity")
                }
            ),
            "meta": record({"since": UNIX, "total": INTEGER, "generated_at": UNIX}),
        }
    ),
    "FeedItem": record(
        {
            "id": HEX64,
            "kind": INTEGER,
            "pubkey": HEX64,
            "content": STRING,
            "created_at": UNIX,
            "channel_id": UUID,
            "channel_name": STRING,
            "channel_type": enum("stream", "forum", "dm", "workflow"),
            "tags": TAGS,
            "category": enum("mention", "needs_action", "activity", "agent_activity"),
        }
    ),
}
