"""`events`, described."""

from __future__ import annotations

from typing import Final

from relay.http.openapi.parts import (
    BOOLEAN,
    HEX64,
    STRING,
    TAGS,
    UNIX,
    Paths,
    Schema,
    answer,
    operation,
    path,
    record,
    ref,
)

_KIND: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 65535}

PATHS: Paths = {
    "/api/events": {
        "post": operation(
            "submitEvent",
            "Publish a signed event",
            tag="events",
            description=(
                "A Nostr event (NIP-01), signed by the caller. What it may do depends on its kind, and so does the "
                "scope that a token needs. 200 also stands for what was stored before or is so already: `accepted` and "
                "`message` tell."
            ),
            body=ref("SignedEvent"),
            body_is_raw=True,
            answers={200: answer("What became of it.", ref("Submitted"))},
            refusals={
                400: "The body is no event, or an event that is not accepted; the text says why.",
                403: "The caller may not publish this: another signer, or a missing scope or channel.",
                429: "Too many events of this key within a minute.",
            },
        )
    },
    "/api/events/{id}": {
        "get": operation(
            "showEvent",
            "One event by its id",
            tag="events",
            description=(
                "Needs `messages:read`; for profiles and contact lists `users:read`. Of events outside of channels "
                "only kinds 0, 1, 3 and 30023 are shown."
            ),
            parameters=[path("id", STRING, "64 hex digits of either case.")],
            answers={200: answer("The event as it was signed.", ref("SignedEvent"))},
            refusals={
                400: "The id cannot be read.",
                404: "There is no such event, or the caller may not read it.",
            },
        )
    },
}

SCHEMAS: dict[str, Schema] = {
    "SignedEvent": record(
        {
            "id": HEX64,
            "pubkey": HEX64,
            "created_at": UNIX,
            "kind": _KIND,
            "tags": TAGS,
            "content": STRING,
            "sig": {"type": "string", "pattern": "^[0-9a-f]{128}$"},
        }
    ),
    "Submitted": record(
        {
            "event_id": HEX64,
            "accepted": BOOLEAN,
            "message": STRING
            | {
                "description": (
                    "Empty; `channel: <id>` where the relay chose the id of a new channel; else why nothing was "
                    "stored, such as `duplicate:`."
                )
            },
        }
    ),
}
