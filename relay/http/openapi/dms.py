"""`/api/dms`, described."""

from __future__ import annotations

from typing import Any, Final

from relay.http.dms import PAGE, PAGE_MAX
from relay.http.openapi.parts import (
    BOOLEAN,
    HEX64,
    RFC3339,
    STRING,
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
from relay.http.values import U32_MAX
from relay.ingest.dms import PARTICIPANTS_MAX
from relay.store.members import ROLES

_TAG: Final = "dms"
_CHANNEL_ID: Final = path("channel_id", STRING, "The DM's UUID in any usual spelling.")
_PUBKEYS: Final = record({"pubkeys": array(STRING, description="64 hex digits each.", minItems=1)}, closed=False)
_NO_MEMBER: Final = "The caller is not in this DM, or the token lacks the scope `messages:write` or the channel."
_OPENED: Final[dict[str, Schema]] = {
    "channel_id": UUID,
    "created": BOOLEAN,
    "participants": array(ref("Participant"), description="The caller included, in the order in which they joined."),
}


def _opened(schema: Schema) -> dict[int, Any]:
    return {200: answer("The DM was there already.", schema), 201: answer("The DM is new.", schema)}


SCHEMAS: dict[str, Schema] = {
    "Participant": record({"pubkey": HEX64, "display_name": nullable(STRING), "role": enum(*ROLES)}),
    "ListedDm": record(
        {
            "channel_id": UUID,
            "participants": array(ref("Participant")),
            "last_message_at": RFC3339 | {"description": "Without messages: when it was made."},
            "created_at": RFC3339,
        }
    ),
    "Dms": record(
        {
            "dms": array(ref("ListedDm"), maxItems=PAGE_MAX),
            "next_cursor": nullable(UUID | {"description": "The `cursor` of the next page; null on the last one."}),
        }
    ),
    "OpenedDm": record(_OPENED),
    "ExtendedDm": record(_OPENED | {"note": STRING}),
}

PATHS: Paths = {
    "/api/dms": {
        "get": operation(
            "listDms",
            "The caller's direct messages",
            tag=_TAG,
            scope="messages:read",
            description="Last active first, without those that the caller has hidden.",
            parameters=[
                query(
                    "limit",
                    {"type": "integer", "minimum": 0, "maximum": U32_MAX, "default": PAGE},
                    f"How many; more than {PAGE_MAX} count as {PAGE_MAX}.",
                ),
                query("cursor", STRING, "The `next_cursor` of the page before: a UUID."),
            ],
            answers={200: answer("A page of DMs.", ref("Dms"))},
            refusals={400: "A parameter cannot be read, or the cursor names no DM of the caller."},
        ),
        "post": operation(
            "openDm",
            "Open a direct message",
            tag=_TAG,
            scope="messages:write",
            description=f"The DM of the caller and these people, 2 to {PARTICIPANTS_MAX} in all; made if there is "
            "none, shown again if the caller had hidden it.",
            body=_PUBKEYS,
            answers=_opened(ref("OpenedDm")),
            refusals={
                400: "The body is no JSON, or what it names are no people to write to.",
                403: "The token lacks the scope `messages:write`, or is restricted to other channels.",
            },
        ),
    },
    "/api/dms/{channel_id}/members": {
        "post": operation(
            "extendDm",
            "Open a direct message with more people",
            tag=_TAG,
            scope="messages:write",
            description="The DM of everybody in this one and the people named; this one stays as it is.",
            parameters=[_CHANNEL_ID],
            body=_PUBKEYS,
            answers=_opened(ref("ExtendedDm")),
            refusals={
                400: "The body or the id cannot be read, the channel is no DM, or nobody is added.",
                403: _NO_MEMBER,
                404: "There is no such DM any more.",
                422: f"The body has another shape, or they would be more than {PARTICIPANTS_MAX}.",
            },
        )
    },
    "/api/dms/{channel_id}/hide": {
        "post": operation(
            "hideDm",
            "Take a direct message out of the caller's lists",
            tag=_TAG,
            scope="messages:write",
            description="Until the caller opens it again. Nobody else is told. A body is not looked at.",
            parameters=[_CHANNEL_ID],
            answers={204: answer("It is hidden.")},
            refusals={
                400: "The id is no UUID, or the channel is no DM.",
                403: _NO_MEMBER,
                404: "There is no such DM.",
            },
        )
    },
}
