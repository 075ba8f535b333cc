"""`users`, described."""

from __future__ import annotations

from typing import Final

from relay.http.openapi.parts import (
    HEX64,
    STRING,
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

_NAMES: Final[dict[str, Schema]] = {
    "display_name": nullable(STRING),
    "avatar_url": nullable(STRING),
    "nip05_handle": nullable(STRING),
}
_POLICY: Final = enum("anyone", "owner_only", "nobody")

PUBKEY: Final = path("pubkey", {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"}, "A public key in hex.")
BAD_PUBKEY: Final = "The path names no public key."

SCHEMAS: dict[str, Schema] = {
    "Profile": record(
        {"pubkey": HEX64, **_NAMES, "about": nullable(STRING), "agent_owner_pubkey": nullable(HEX64)},
    ),
    "ListedUser": record({"pubkey": HEX64, **_NAMES}),
    "UserNames": record(_NAMES),
}

PATHS: Paths = {
    "/api/users/me/profile": {
        "get": operation(
            "getOwnProfile",
            "The caller's profile",
            tag="users",
            scope="users:read",
            answers={200: answer("The profile.", ref("Profile"))},
            refusals={404: "The relay does not know this key yet."},
        ),
    },
    "/api/users/{pubkey}/profile": {
        "get": operation(
            "getProfile",
            "Somebody's profile",
            tag="users",
            description=(
                "A key is known from its first sign-in, its first token or its first profile (kind 0) on. What is null "
                "was never said."
            ),
            scope="users:read",
            parameters=[PUBKEY],
            answers={200: answer("The profile.", ref("Profile"))},
            refusals={400: BAD_PUBKEY, 404: "The relay does not know this key."},
        ),
    },
    "/api/users/batch": {
        "post": operation(
            "getProfiles",
            "The names of many people",
            tag="users",
            scope="users:read",
            body=record({"pubkeys": array(STRING, maxItems=200)}, closed=False),
            answers={
                200: answer(
                    "What is known.",
                    record(
                        {
                            "profiles": {
                                "type": "object",
                                "description": "By public key, in lower case.",
                                "propertyNames": HEX64,
                                "additionalProperties": ref("UserNames"),
                            },
                            "missing": array(
                                STRING, description="Unknown keys in order, then what is no key, as it was sent."
                            ),
                        }
                    ),
                )
            },
        ),
    },
    "/api/users/search": {
        "get": operation(
            "searchUsers",
            "People by a part of their name, handle or key",
            tag="users",
            description=(
                "Upper and lower case alike. Exact matches first, then what begins with the text, then the rest; of "
                "each, names before handles before keys."
            ),
            scope="users:read",
            parameters=[
                query(
                    "q",
                    STRING | {"maxLength": 200},
                    "The text, at most 200 bytes; a blank one finds nobody.",
                    required=True,
                ),
                query(
                    "limit",
                    {"type": "integer", "minimum": 0, "maximum": 4_294_967_295, "default": 8},
                    "How many; moved into 1 to 50.",
                ),
            ],
            answers={200: answer("The best matches.", record({"users": array(ref("ListedUser"), maxItems=50)}))},
        ),
    },
    "/api/users/me/channel-add-policy": {
        "put": operation(
            "setChannelAddPolicy",
            "Say who may add the caller to a channel",
            tag="users",
            description="`owner_only` is for agents: only the key that owns the agent may add it.",
            scope="users:write",
            body=record({"channel_add_policy": _POLICY}, closed=False),
            answers={
                200: answer(
                    "The policy as it is now.",
                    record({"channel_add_policy": _POLICY, "agent_owner_pubkey": nullable(HEX64)}),
                )
            },
        ),
    },
}
