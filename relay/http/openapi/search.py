"""`search`, described."""

from __future__ import annotations

from relay.http.openapi.parts import (
    HEX64,
    INTEGER,
    STRING,
    UNIX,
    UUID,
    Paths,
    Schema,
    answer,
    array,
    nullable,
    operation,
    query,
    record,
    ref,
)

_DESCRIPTION = """\
Whole words, upper and lower case alike; the last word may be the beginning of one. Scripts that are written without
blanks (Chinese, Japanese, Korean, Thai …) are found by any part. Messages with all words come before those with some.
The best `limit` are chosen by rank and returned newest first. There are no further pages."""

PATHS: Paths = {
    "/api/search": {
        "get": operation(
            "searchMessages",
            "Search the messages that the caller may read",
            tag="search",
            scope="messages:read",
            description=_DESCRIPTION,
            parameters=[
                query("q", STRING, "Words. Empty, absent or `*`: the newest messages."),
                query("limit", {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "default": 20}, "At most 100."),
                query(
                    "channel_id", STRING, "Only in this channel, a UUID. One that the caller may not read has no hits."
                ),
            ],
            answers={200: answer("What was found, newest first.", ref("SearchResult"))},
            refusals={429: "The key asks too often."},
        )
    }
}

SCHEMAS: dict[str, Schema] = {
    "SearchResult": record(
        {"hits": array(ref("SearchHit"), maxItems=100), "found": INTEGER | {"description": "How many hits are here."}}
    ),
    "SearchHit": record(
        {
            "event_id": HEX64,
            "content": STRING,
            "kind": INTEGER,
            "pubkey": HEX64,
            "channel_id": nullable(UUID),
            "channel_name": nullable(STRING),
            "created_at": UNIX,
            "score": {
                "type": "number",
                "minimum": 0,
                "description": "How well it fits; 0 where no word was asked for.",
            },
        }
    ),
}
