"""`discovery`, described: the relay's own document, NIP-05, and the questions of orchestrators."""

from __future__ import annotations

from typing import Final

from relay.http.openapi.parts import (
    BOOLEAN,
    HEX64,
    INTEGER,
    JSON,
    NOBODY,
    STRING,
    TEXT,
    Operation,
    Paths,
    Schema,
    answer,
    array,
    enum,
    nullable,
    operation,
    query,
    record,
    ref,
)
from relay.nostr import nip11

_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_PER_MINUTE: Final[Schema] = nullable({"type": "integer", "minimum": 1})

SCHEMAS: dict[str, Schema] = {
    "RelayInformation": record(
        {
            "name": STRING,
            "description": STRING,
            "pubkey": nullable(HEX64),
            "self": HEX64,
            "contact": nullable(STRING),
            "supported_nips": array(INTEGER),
            "software": STRING,
            "version": STRING,
            "limitation": record(
                {
                    "max_message_length": _COUNT,
                    "max_subscriptions": _COUNT,
                    "max_filters": _COUNT,
                    "max_limit": _COUNT,
                    "default_limit": _COUNT,
                    "max_subid_length": _COUNT,
                    "max_content_length": _COUNT,
                    "min_pow_difficulty": nullable(_COUNT),
                    "auth_required": BOOLEAN,
                    "payment_required": BOOLEAN,
                    "restricted_writes": BOOLEAN,
                    "created_at_lower_limit": _COUNT,
                    "created_at_upper_limit": _COUNT,
                    "created_at_lower_limit_exempt_kinds": array(INTEGER),
                }
            ),
            "rates_per_minute": record(
                {
                    "messages_per_connection": _PER_MINUTE,
                    "events_per_key": _PER_MINUTE,
                    "requests_per_key": _PER_MINUTE,
                    "connections_per_address": _PER_MINUTE,
                }
            ),
        }
    ),
    "Handles": record(
        {
            "names": {
                "type": "object",
                "description": "The name, in lower case, and its public key.",
                "additionalProperties": HEX64,
            },
            "relays": {
                "type": "object",
                "description": "The key, and the relays where it is found.",
                "propertyNames": HEX64,
                "additionalProperties": array(STRING),
            },
        }
    ),
    "Ready": record({"status": enum("ready")}),
    "NotReady": record(
        {
            "status": enum("shutting_down", "not_ready"),
            "postgres": BOOLEAN,
            "redis": BOOLEAN,
            "audit": BOOLEAN,
            "pool": BOOLEAN,
        },
        optional=("postgres", "redis", "audit", "pool"),
    ),
}


def _information(operation_id: str, media_types: tuple[str, ...]) -> Operation:
    found = operation(
        operation_id,
        "What this relay is and what it allows (NIP-11)",
        tag="discovery",
        security=NOBODY,
        answers={200: answer("The document.", ref("RelayInformation"))},
    )
    content = {media_type: {"schema": ref("RelayInformation")} for media_type in media_types}
    found["responses"]["200"]["content"] = content
    return found


def _alive(operation_id: str) -> Operation:
    return operation(
        operation_id,
        "Whether the process lives",
        tag="discovery",
        security=NOBODY,
        answers={200: answer("It does.", enum("ok"), TEXT)},
    )


# Both types under both addresses: which one is sent depends on `Accept`.
_TYPES: Final = (JSON, nip11.CONTENT_TYPE)

_READINESS: Final = operation(
    "getReadiness",
    "Whether requests may be sent here",
    tag="discovery",
    security=NOBODY,
    answers={200: answer("They may.", ref("Ready"))},
)
# Its 503 is an answer to the question, not a refusal.
_READINESS["responses"]["503"] = answer("They may not.", {"anyOf": [ref("NotReady"), ref("Error")]})

PATHS: Paths = {
    "/": {"get": _information("getRelay", _TYPES)},
    "/info": {"get": _information("getRelayInformation", _TYPES)},
    "/.well-known/nostr.json": {
        "get": operation(
            "getHandle",
            "The key behind a handle (NIP-05)",
            tag="discovery",
            description="Any page of any origin may ask. An unknown name is an empty answer.",
            security=NOBODY,
            parameters=[query("name", STRING, "What stands before the `@`, in any case.")],
            answers={200: answer("The key, if there is one.", ref("Handles"))},
        ),
    },
    "/health": {"get": _alive("getHealth")},
    "/_liveness": {"get": _alive("getLiveness")},
    "/_readiness": {"get": _READINESS},
}
