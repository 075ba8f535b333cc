"""Who is asking: the identity that a connection or a request has proved, and what it may do.

Made by `authenticate.py` (WebSocket, NIP-42) and by the HTTP resolution of credentials; read by everything that
decides. Immutable: losing a right makes a new connection or closes the old one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

KNOWN_SCOPES = frozenset(
    {
        "messages:read",
        "messages:write",
        "channels:read",
        "channels:write",
        "admin:channels",
        "users:read",
        "users:write",
        "admin:users",
        "jobs:read",
        "jobs:write",
        "subscriptions:read",
        "subscriptions:write",
        "files:read",
        "files:write",
    }
)
PROXY_SUBMIT = "proxy:submit"
AUDIT_READ = "audit:read"
"""Reading the audit log, which tells of every channel: only in a token that the operator has made for an auditor. Not
among those above, which a key that logs in without a token has all of."""


class AuthMethod(Enum):
    """How the key was proved."""

    PUBKEY = "pubkey"
    """NIP-42 signature alone."""
    API_TOKEN = "api_token"  # noqa: S105
    X_PUBKEY = "x_pubkey"
    """The development header on loopback."""
    OIDC = "oidc"
    """A JSON Web Token of the operator's identity provider."""
    NIP98 = "nip98"
    """A signature for one HTTP request."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated key with its rights.

    Attributes:
        pubkey: 64 lowercase hex characters.
        scopes: Granted scopes; unknown strings grant nothing.
        channel_ids: Canonical UUIDs that a token is restricted to; None = no restriction, empty = no channel at all.
        token_id: The API token used, for revocation.
        expires_at: Unix seconds at which the credential ends; None = never. At the login, what is known later of an API
            token counts more.
    """

    pubkey: str
    scopes: frozenset[str]
    method: AuthMethod
    channel_ids: frozenset[str] | None = None
    token_id: str | None = None
    expires_at: int | None = None

    def has(self, scope: str) -> bool:
        return scope in self.scopes

    @property
    def is_proxy(self) -> bool:
        return PROXY_SUBMIT in self.scopes

    def may_enter(self, channel_id: str) -> bool:
        """Whether the token's own restriction lets this channel through (membership is another question)."""
        return self.channel_ids is None or channel_id in self.channel_ids
