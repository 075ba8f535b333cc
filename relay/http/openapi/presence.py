"""`/api/presence`, described."""

from __future__ import annotations

from relay.http.openapi.parts import INTEGER, STRING, Paths, Schema, answer, enum, operation, query, record, ref
from relay.http.presence import PUBKEYS_MAX, STATUSES

SCHEMAS: dict[str, Schema] = {
    "Presence": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9a-f]{64}$"},
        "additionalProperties": STRING | {"description": "`offline`, or what the key said last: `online`, `away` …"},
        "maxProperties": PUBKEYS_MAX,
    },
    "SetPresence": record({"status": enum(*STATUSES)}, closed=False),
    "PresenceSet": record(
        {
            "status": enum(*STATUSES),
            "ttl_seconds": INTEGER | {"minimum": 0, "description": "How long it holds without being said again."},
        }
    ),
}

PATHS: Paths = {
    "/api/presence": {
        "get": operation(
            "getPresence",
            "Who says that he is there",
            tag="presence",
            scope="channels:read",
            parameters=[
                query(
                    "pubkeys", STRING, f"Up to {PUBKEYS_MAX} keys in hex with commas between; others are passed over."
                )
            ],
            answers={200: answer("Key by key, what it said.", ref("Presence"))},
        ),
        "put": operation(
            "setPresence",
            "Say whether one is there",
            tag="presence",
            scope="channels:read",
            description="Kept in memory until it ends or is said anew; no event is made of it.",
            body=ref("SetPresence"),
            answers={200: answer("It is known.", ref("PresenceSet"))},
        ),
    }
}
