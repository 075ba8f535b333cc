"""JSON Web Tokens of an OpenID Connect provider: does this token say, of this relay and now, which key it belongs to?

In: the text of a token and the time. Out: a `Grant`, or which check failed. Keys come from `jwks`. A token proves only
what the provider says of a key; that its bearer holds the key is proved by NIP-42 (the WebSocket) or not at all (HTTP).

Rules, after RFC 8725:
1. The algorithms are a list of ours: signatures with a public key. `none` is not on it, and neither is any with a
   shared secret (a public key would do as the secret).
2. The key is looked up in the provider's set, and must be of the algorithm's kind. What a token brings along or points
   at (`jwk`, `x5c`, `jku`, `x5u`) is not looked at. An extension that must be understood (`crit`) is not;
   nor is a payload that is not in base64url (`b64`, which RFC 7797 §7 forbids here).
3. Issuer and audience must be ours, and there must be an end.
4. No part of a token is ever logged; a `JwtProblem` names a check, and nothing of what was checked.
"""

from __future__ import annotations

import binascii
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import orjson
import structlog
from joserfc import jws
from joserfc.errors import ClaimError, ExpiredTokenError, UnsupportedAlgorithmError
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from relay.access.jwks import KeyCache, KeysUnavailable, SigningKey
from relay.access.scopes import MESSAGES_READ
from relay.config import Settings
from relay.nostr.ids import parse_pubkey

log = structlog.get_logger(__name__)

PREFIX: Final = "eyJ"
"""How every JSON object begins in base64url; no other credential of ours does."""

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)
LEEWAY_SECONDS: Final = 60
# Providers put lists of groups into tokens; what HTTP servers take in a header is about as much.
TEXT_BYTES_MAX: Final = 16 << 10
HEADER_BYTES_MAX: Final = 4096
_FAR_FUTURE: Final = 1 << 53


class JwtProblem(Enum):
    """Which check a token did not pass; the value is for logs and the audit."""

    MALFORMED = "jwt: malformed"
    ALGORITHM = "jwt: algorithm not allowed"
    UNKNOWN_KEY = "jwt: unknown key"
    SIGNATURE = "jwt: wrong signature"
    ISSUER = "jwt: another issuer"
    AUDIENCE = "jwt: another audience"
    EXPIRED = "jwt: expired"
    NOT_YET = "jwt: not valid yet"
    CLAIMS = "jwt: claims missing or malformed"
    PUBKEY = "jwt: names no key"
    NO_KEYS = "jwt: the issuer's keys are unavailable"


_CLAIM_PROBLEMS: Final = {
    "iss": JwtProblem.ISSUER,
    "aud": JwtProblem.AUDIENCE,
    "nbf": JwtProblem.NOT_YET,
    "iat": JwtProblem.NOT_YET,
}


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token that holds says: `expires_at` in Unix seconds, unknown scopes kept."""

    pubkey: str
    scopes: frozenset[str]
    expires_at: int


class _Algorithms(JWSRegistry):
    """joserfc's, with our list in place of its recommendations, and without its word limit on headers."""

    max_header_length = HEADER_BYTES_MAX

    def get_alg(self, name: str) -> Any:
        if name not in ALGORITHMS:
            raise UnsupportedAlgorithmError("not on the list")
        return self.algorithms[name]


# Header fields that nobody knows must be ignored (RFC 7515 §4), except those that `crit` lists.
_REGISTRY: Final = _Algorithms(strict_check_header=False)


class TokenVerifier:
    """Checks the tokens of one issuer for one audience. Made once; holds nothing but the issuer's keys."""

    def __init__(
        self, *, issuer: str, audience: str, jwks_uri: str, jwks_seconds: float, pubkey_claim: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Raises ConfigError where `jwks_uri` cannot be trusted."""
        assert issuer
        assert audience
        self._keys = KeyCache(jwks_uri, seconds=jwks_seconds, clock=clock)
        self._issuer = issuer
        self._audience = audience
        self._pubkey_claim = pubkey_claim

    @classmethod
    def from_settings(cls, settings: Settings, clock: Callable[[], float] = time.monotonic) -> TokenVerifier | None:
        """None where no issuer is configured. Raises ConfigError."""
        if not settings.okta_issuer:
            return None
        return cls(
            issuer=settings.okta_issuer,
            audience=settings.okta_audience,
            jwks_uri=settings.okta_jwks_uri,
            jwks_seconds=settings.jwks_seconds,
            pubkey_claim=settings.okta_pubkey_claim,
            clock=clock,
        )

    async def verify(self, text: str, *, now: float) -> Grant | JwtProblem:
        """Decides on a token; `now` in seconds since the epoch. Waits only where keys have to be fetched (≤ 5 s)."""
        header = _header(text)
        if header is None:
            return JwtProblem.MALFORMED
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            return JwtProblem.ALGORITHM
        if "crit" in header or "b64" in header or not (kid is None or isinstance(kid, str)):
            return JwtProblem.MALFORMED
        try:
            key = await self._keys.find(kid, algorithm)
        except KeysUnavailable:
            return JwtProblem.NO_KEYS
        if key is None:
            return JwtProblem.UNKNOWN_KEY
        claims = _signed_claims(text, key)
        if isinstance(claims, JwtProblem):
            return claims
        return self._check(claims, now) or self._grant(claims, now)

    def _check(self, claims: dict[str, Any], now: float) -> JwtProblem | None:
        """The registered claims; the signature holds already, so that who fails here is no stranger."""
        expected = JWTClaimsRegistry(
            now=int(now),
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "value": self._audience},
            exp={"essential": True},
        )
        try:
            expected.validate(claims)
        except ExpiredTokenError:
            return JwtProblem.EXPIRED
        except ClaimError as error:
            return _CLAIM_PROBLEMS.get(error.claim, JwtProblem.CLAIMS)
        return None

    def _grant(self, claims: dict[str, Any], now: float) -> Grant | JwtProblem:
        named = claims.get(self._pubkey_claim)
        pubkey = parse_pubkey(named) if isinstance(named, str) else None
        if pubkey is None:
            return JwtProblem.PUBKEY
        end = int(min(claims["exp"], _FAR_FUTURE))
        # Who came in on the leeway stays to its end; otherwise every login of that minute would be cut off at once.
        return Grant(pubkey, _scopes(claims), end if end > now else end + LEEWAY_SECONDS)


def _header(text: str) -> dict[str, Any] | None:
    """The header of what looks like a signed token in compact form, not yet verified."""
    if len(text) > TEXT_BYTES_MAX or not text.isascii() or text.count(".") != 2:
        return None
    encoded = text.partition(".")[0]
    if len(encoded) > HEADER_BYTES_MAX:
        return None
    try:
        found = orjson.loads(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (binascii.Error, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _signed_claims(text: str, key: SigningKey) -> dict[str, Any] | JwtProblem:
    try:
        payload = jws.deserialize_compact(text, key, registry=_REGISTRY).payload
    except Exception as error:  # a library on a stranger's bytes: whatever it says, the token does not hold
        log.debug("a JSON Web Token was refused", error=type(error).__name__)
        return JwtProblem.SIGNATURE
    try:
        claims = orjson.loads(payload or b"")
    except orjson.JSONDecodeError:
        return JwtProblem.CLAIMS
    return claims if isinstance(claims, dict) else JwtProblem.CLAIMS


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """Okta's list `scp`, else the text `scope` of RFC 8693, else the right to read."""
    listed = claims.get("scp")
    if isinstance(listed, list):
        return frozenset(scope for scope in listed if isinstance(scope, str))
    text = claims.get("scope")
    return frozenset(text.split()) if isinstance(text, str) else frozenset({MESSAGES_READ})
