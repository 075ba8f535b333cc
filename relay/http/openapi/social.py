"""`social`, described."""

from __future__ import annotations

from relay.http.openapi.parts import (
    HEX64,
    INTEGER,
    STRING,
    TAGS,
    UNIX,
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
from relay.http.openapi.users import BAD_PUBKEY, PUBKEY

SCHEMAS: dict[str, Schema] = {
    "Note": record({"id": HEX64, "pubkey": HEX64, "created_at": UNIX, "content": STRING}),
    "NotesCursor": record({"before": INTEGER, "before_id": HEX64}),
    "ContactList": record({"id": HEX64, "pubkey": HEX64, "created_at": UNIX, "tags": TAGS, "content": STRING}),
}

PATHS: Paths = {
    "/api/users/{pubkey}/notes": {
        "get": operation(
            "listNotes",
            "Somebody's notes",
            tag="social",
            description=(
                "Notes (kind 1) that were published for everybody, outside of channels: newest first, within a second "
                "by id. To go on, send both values of `next_cursor` as parameters."
            ),
            scope="messages:read",
            parameters=[
                PUBKEY,
                query(
                    "limit",
                    {"type": "integer", "minimum": 0, "maximum": 4_294_967_295, "default": 50},
                    "How many; moved into 1 to 100.",
                ),
                query(
                    "before",
                    {"type": "integer", "minimum": -8_334_601_228_800, "maximum": 8_210_266_876_799},
                    "Only notes from before this second (seconds since 1970).",
                ),
                query(
                    "before_id",
                    {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
                    "With `before`: also notes of that very second, behind the one with this id.",
                ),
            ],
            answers={
                200: answer(
                    "A page.",
                    record({"notes": array(ref("Note"), maxItems=100), "next_cursor": nullable(ref("NotesCursor"))}),
                )
            },
            refusals={400: "A parameter cannot be read, or the path names no public key."},
        ),
    },
    "/api/users/{pubkey}/contact-list": {
        "get": operation(
            "getContactList",
            "Somebody's contact list",
            tag="social",
            description="The newest one (kind 3, NIP-02) that was published outside of channels, tags and all.",
            scope="users:read",
            parameters=[PUBKEY],
            answers={200: answer("The list as it was signed.", ref("ContactList"))},
            refusals={400: BAD_PUBKEY, 404: "There is none."},
        ),
    },
}
