"""`bridge`, described."""

from __future__ import annotations

from typing import Final

from relay.http.openapi.parts import (
    API_OR_NIP98,
    HEX64,
    INTEGER,
    STRING,
    TAGS,
    Paths,
    Schema,
    answer,
    array,
    nullable,
    operation,
    record,
    ref,
)

_NIP98: Final = (
    "Signed requests (NIP-98): `Authorization: Nostr <base64 of an event of kind 27235>`, whose `u` is this address, "
    "`method` this method and `payload`, if there is one, the SHA-256 of this body. Each is good once and for a "
    'minute: whoever sends the same request twice within a second adds a tag like `["nonce", "…"]`.'
)
_TOO_LARGE: Final = "The body is larger than a message on the WebSocket may be."
_BUSY: Final = "This key asks too often."
_MAY_NOT_ASK: Final = (
    "The token lacks the scope `messages:read`, the key may not come in at all, or a filter could show what is only "
    "for its receiver (kinds 1059, 44100 and 44101; one that names neither `kinds` nor `ids` could) without `#p` "
    "naming the caller."
)

_FILTER: Final[Schema] = {
    "type": "object",
    "description": (
        "A filter of NIP-01, or with `search` of NIP-50. A condition that is there but empty matches nothing; null is "
        "as good as none. `#` with one letter asks for the second elements of the tags of that name; other keys are "
        "ignored."
    ),
    "properties": {
        "ids": nullable(array({"type": "string", "description": "64 hex digits, or NIP-19."})),
        "authors": nullable(array({"type": "string", "description": "64 hex digits, or NIP-19."})),
        "kinds": nullable(array({"type": "integer", "minimum": 0, "maximum": 65535})),
        "since": nullable(ref("Unsigned")),
        "until": nullable(ref("Unsigned")),
        "limit": nullable(ref("Unsigned")),
        "search": nullable({"type": "string", "description": "Words. Either all filters of a request search or none."}),
        "before_id": nullable(
            {
                "type": "string",
                "pattern": "^[0-9A-Fa-f]{64}$",
                "description": (
                    "Only `/query`: go on behind the event of this id, whose `created_at` is `until`. So nothing of "
                    "that second is skipped or sent twice."
                ),
            }
        ),
    },
    "patternProperties": {"^#[A-Za-z]$": array(STRING)},
}
_FILTERS: Final[Schema] = array(ref("Filter"))

PATHS: Paths = {
    "/query": {
        "post": operation(
            "queryEvents",
            "Stored events that match any of the filters",
            tag="bridge",
            description=(
                "For each filter in turn its newest events, at most `limit`: `created_at` descending, of equals the "
                "lowest id first; a search gives its best first. Each event comes once. Channels that the caller may "
                f"not read have none.\n\n{_NIP98}"
            ),
            security=API_OR_NIP98,
            scope="messages:read",
            body=_FILTERS,
            body_is_raw=True,
            answers={200: answer("The events.", array(ref("SignedEvent")))},
            refusals={403: _MAY_NOT_ASK, 413: _TOO_LARGE, 429: _BUSY},
            problems=True,
        )
    },
    "/count": {
        "post": operation(
            "countEvents",
            "How many stored events match any of the filters",
            tag="bridge",
            description=f"Exactly, and each event once; `limit` does not matter.\n\n{_NIP98}",
            security=API_OR_NIP98,
            scope="messages:read",
            body=_FILTERS,
            body_is_raw=True,
            answers={200: answer("The number.", record({"count": {**INTEGER, "minimum": 0}}))},
            refusals={403: _MAY_NOT_ASK, 413: _TOO_LARGE, 429: _BUSY},
            problems=True,
        )
    },
    "/events": {
        "post": operation(
            "publishEvent",
            "One signed event",
            tag="bridge",
            description=(
                "The same as `POST /api/events`: 200 for everything that is not refused, with `accepted` false where "
                f"it was so already.\n\n{_NIP98}"
            ),
            security=API_OR_NIP98,
            body=ref("EventToPublish"),
            body_is_raw=True,
            answers={
                200: answer(
                    "What became of it.",
                    record({"event_id": HEX64, "accepted": {"type": "boolean"}, "message": STRING}),
                )
            },
            refusals={400: "The body is no event, or not one that is taken.", 429: "This key sends too many events."},
            problems=True,
        )
    },
}

SCHEMAS: dict[str, Schema] = {
    "Unsigned": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
    "Filter": _FILTER,
    "SignedEvent": record(
        {
            "id": HEX64,
            "pubkey": HEX64,
            "created_at": ref("Unsigned"),
            "kind": {"type": "integer", "minimum": 0, "maximum": 65535},
            "tags": TAGS,
            "content": STRING,
            "sig": {"type": "string", "pattern": "^[0-9a-f]{128}$"},
        }
    ),
    "EventToPublish": {
        "type": "object",
        "description": "A signed event of NIP-01. Other keys are ignored.",
        "properties": {
            "id": STRING,
            "pubkey": STRING,
            "created_at": ref("Unsigned"),
            "kind": {"type": "integer", "minimum": 0, "maximum": 65535},
            "tags": TAGS,
            "content": STRING,
            "sig": {"type": "string", "pattern": "^[0-9A-Fa-f]{128}$"},
        },
        "required": ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"],
    },
}
