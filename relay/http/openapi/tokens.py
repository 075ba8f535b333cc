"""`tokens`, described."""

from __future__ import annotations

from typing import Final

from relay.http.openapi.parts import (
    API_OR_NIP98,
    INTEGER,
    RFC3339,
    STRING,
    UUID,
    Paths,
    Schema,
    answer,
    array,
    nullable,
    operation,
    path,
    record,
    ref,
)

_TAG: Final = "tokens"

# The owner's view of a token that an operator made may have scopes that no key can give itself.
_SCOPES: Final = array(STRING, description="What the token may do, such as `messages:read`.")
_CHANNELS: Final = array(UUID, description="The channels that the token is restricted to; empty: not restricted.")

SCHEMAS: dict[str, Schema] = {
    "Token": record(
        {
            "id": UUID,
            "name": STRING,
            "scopes": _SCOPES,
            "channel_ids": _CHANNELS,
            "created_at": RFC3339,
            "expires_at": nullable(RFC3339),
            "last_used_at": nullable(RFC3339),
            "revoked_at": nullable(RFC3339),
        }
    ),
    "NewToken": record(
        {
            "id": UUID,
            "token": {"type": "string", "pattern": "^sprout_[0-9a-f]{64}$", "description": "Shown only here."},
            "name": STRING,
            "scopes": _SCOPES,
            "channel_ids": _CHANNELS,
            "created_at": RFC3339,
            "expires_at": nullable(RFC3339),
        }
    ),
    "TokenRequest": record(
        {
            "name": {"type": "string", "minLength": 1, "maxLength": 100, "description": "At most 100 bytes."},
            "scopes": array(
                {
                    "type": "string",
                    "enum": [
                        "messages:read",
                        "messages:write",
                        "channels:read",
                        "channels:write",
                        "users:read",
                        "users:write",
                        "files:read",
                        "files:write",
                    ],
                },
                minItems=1,
            ),
            "channel_ids": nullable(array(UUID, description="Channels that the key is a member of.")),
            "expires_in_days": nullable({"type": "integer", "minimum": 1, "maximum": 365}),
            "owner_pubkey": nullable(
                {
                    "type": "string",
                    "pattern": "^[0-9a-fA-F]{64}$",
                    "description": "The key that owns this agent from now on. Only with NIP-98.",
                }
            ),
        },
        optional=("channel_ids", "expires_in_days", "owner_pubkey"),
        closed=False,
    ),
}

_TOKEN_ID: Final = path("id", STRING, "The token's UUID in any usual spelling.")

PATHS: Paths = {
    "/api/tokens": {
        "post": operation(
            "mintToken",
            "Make an API token",
            tag=_TAG,
            description=(
                "For the key that asks. With NIP-98 the signed event needs a `payload` tag and is good once; a token "
                "can make only tokens that reach no further than itself."
            ),
            security=API_OR_NIP98,
            body=ref("TokenRequest"),
            body_is_raw=True,
            answers={201: answer("The token, shown only now.", ref("NewToken"))},
            refusals={
                403: "The caller may not give these scopes, these channels, or an owner.",
                409: "The key has ten active tokens, or the agent has another owner.",
                429: "Too many within the last hour; `retry_after_seconds` says when to try again.",
            },
        ),
        "get": operation(
            "listTokens",
            "List the caller's tokens",
            tag=_TAG,
            description="Newest first, dead ones too. Of more than a thousand the oldest dead ones are left out.",
            answers={200: answer("The tokens.", record({"tokens": array(ref("Token"))}))},
        ),
        "delete": operation(
            "revokeAllTokens",
            "Revoke all of the caller's tokens",
            tag=_TAG,
            description="The one that asks among them. Connections that use them are closed.",
            answers={200: answer("How many this has ended.", record({"revoked_count": INTEGER}))},
        ),
    },
    "/api/tokens/{id}": {
        "delete": operation(
            "revokeToken",
            "Revoke one of the caller's tokens",
            tag=_TAG,
            description="A token may revoke itself. Connections that use it are closed.",
            parameters=[_TOKEN_ID],
            answers={204: answer("It has ended.")},
            refusals={
                400: "The id is no UUID.",
                404: "The caller has no such token.",
                409: "It was revoked before.",
            },
        ),
    },
}
