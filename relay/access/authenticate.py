"""From a credential to a caller: NIP-42 on the WebSocket, API tokens and JSON Web Tokens on both doors, NIP-98 and the
development header on HTTP.

In: an AUTH event with the challenge it must answer, a bearer token, a signed request, or a key that the HTTP door has
already decided to believe. Out: a `Caller`, or why not. Every decision is made on what the database says now: a revoked
token is refused from the next look-up on. What the client hears does not tell it which check failed; `cause` does, for
the logs.

Not done here: what to do with the connections of a token that ends later (see `token_watch`).
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import structlog

from relay import metrics
from relay.access import allowlist
from relay.access.debounce import Debounce
from relay.access.identity import KNOWN_SCOPES, AuthMethod, Caller
from relay.access.key_windows import KeyedWindows
from relay.access.oidc import PREFIX as JWT_PREFIX
from relay.access.oidc import Grant, JwtProblem, TokenVerifier
from relay.access.replays import ReplayCache
from relay.access.scopes import CHANNELS_READ
from relay.asyncpg_trio import Pool
from relay.config import Settings
from relay.nostr import nip98
from relay.nostr.event import Event
from relay.nostr.nip42 import AuthRefused, auth_token, verify_auth
from relay.nostr.nip98 import Nip98Cause, Nip98Refused
from relay.store import tokens, users
from relay.store.failures import STORE_FAILURES

log = structlog.get_logger(__name__)

LAST_USED_SECONDS: Final = 300  # the original's
_KEYS_REMEMBERED: Final = 10_000

VERIFICATION_FAILED: Final = "auth-required: verification failed"
INVALID_TOKEN: Final = "auth-required: invalid token"  # noqa: S105  # what the client reads
NIP98_FAILED: Final = "NIP-98 verification failed"
PAYLOAD_REQUIRED: Final = "NIP-98 payload tag required for POST /api/tokens"
NEEDS_TOKEN: Final = "token required"  # noqa: S105
NOT_LISTED: Final = "not in the allow-list"
USED_BEFORE: Final = "used before"
MINT_PATH: Final = "/api/tokens"
MINT_SECONDS: Final = 3600.0


class TokenProblem(Enum):
    """Why a token opens nothing; the value is the code that HTTP clients read."""

    INVALID = "invalid_token"
    REVOKED = "token_revoked"
    EXPIRED = "token_expired"


@dataclass(frozen=True, slots=True)
class AuthRefusal:
    """`text` goes to the client, prefix included; `cause` is for logs and the audit and never does."""

    text: str
    cause: str


class Authenticator:
    """Holds no sessions, only what debounces its writes, and what was used up: signed requests and turns to mint.

    `relay_url` is the address that signed events must name.

    Attributes:
        mints: How often each key has asked for a token within the last hour.

    Raises: ConfigError where the settings of JSON Web Tokens make no sense.
    """

    def __init__(
        self, pool: Pool, settings: Settings, relay_url: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._relay_url = relay_url
        self._jwt = TokenVerifier.from_settings(settings, clock)
        self._stamped = Debounce(seconds=LAST_USED_SECONDS, capacity=_KEYS_REMEMBERED, clock=clock)
        self._seen = Debounce(seconds=LAST_USED_SECONDS, capacity=_KEYS_REMEMBERED, clock=clock)
        self._used = ReplayCache(nip98.VALID_SECONDS)
        self.mints = KeyedWindows(settings.mint_rate_limit, MINT_SECONDS, clock)

    async def websocket(self, event: Event, *, challenge: str, now: float) -> Caller | AuthRefusal:
        """Decides on an AUTH event; `now` in seconds since the epoch. Counts the attempt. At most one statement each
        for a token or the allow-list, and for a key that was not seen lately.

        With a JSON Web Token it may wait for the issuer's keys (≤ 5 s).
        """
        text = auth_token(event)
        with_token = text is not None and text.startswith(tokens.PREFIX)
        metrics.AUTH_ATTEMPTS.labels("api_token" if with_token else "nip42").inc()
        try:
            verify_auth(event, challenge=challenge, relay_url=self._relay_url, now=now)
        except AuthRefused as refused:
            return _refuse("nip42_invalid", refused.cause.value)
        try:
            if text is None:
                return await self._with_key_alone(event.pubkey)
            if with_token:
                return await self._with_token(event.pubkey, text)
            if text.startswith(JWT_PREFIX) and self._jwt is not None:
                return await self._with_grant(event.pubkey, await self._jwt.verify(text, now=now))
        except STORE_FAILURES as error:
            log.error("authentication could not ask the store", error=repr(error))
            return _refuse("nip42_internal", "store unavailable")
        return _refuse("nip42_invalid", "unknown kind of auth_token")

    async def bearer(self, text: str) -> Caller | TokenProblem:
        """Decides on an API token. One statement, and none for what cannot be a token.

        Raises: one of STORE_FAILURES.
        """
        if not tokens.is_well_formed(text):
            return TokenProblem.INVALID
        digest = tokens.digest(text)
        stamp = self._stamped.due(digest)
        token = await tokens.look_up(self._pool, digest, touch=stamp)
        # The index has already found the row by this hash; comparing costs nothing and does not rely on that.
        if token is None or not hmac.compare_digest(token.hash, digest):
            return TokenProblem.INVALID
        if token.revoked_at is not None:
            return TokenProblem.REVOKED
        if token.expired:
            return TokenProblem.EXPIRED
        # Only a token that exists is remembered: guesses push nothing out.
        if stamp:
            self._stamped.done(digest)
        return Caller(
            token.owner,
            frozenset(token.scopes),
            AuthMethod.API_TOKEN,
            None if token.channel_ids is None else frozenset(token.channel_ids),
            token.id,
            # Up, not down: until then the database calls the token valid.
            None if token.expires_at is None else math.ceil(token.expires_at.timestamp()),
        )

    async def json_web_token(self, text: str, *, now: float) -> Caller | None:
        """Decides on a bearer token of the identity provider, for HTTP: reading channels is granted to all of them.

        `now` in seconds since the epoch. One statement, if the key was not seen lately. None: refused, or no identity
        provider is configured.
        """
        if self._jwt is None:
            return None
        found = await self._jwt.verify(text, now=now)
        if isinstance(found, JwtProblem):
            log.info("a JSON Web Token was refused", cause=found.value)
            return None
        await self._note_user(found.pubkey)
        return Caller(found.pubkey, found.scopes | {CHANNELS_READ}, AuthMethod.OIDC, expires_at=found.expires_at)

    async def mint_request(self, header: str, body: bytes, *, now: float) -> Caller | AuthRefusal:
        """Decides on a POST for a token that is signed itself (NIP-98): it proves the key and brings no scopes.

        `header` is the value of `Authorization`, `now` in seconds since the epoch. The event must be about this body,
        and is good once. At most one statement each for the allow-list and for a key that was not seen lately.

        Raises: one of STORE_FAILURES.
        """
        found = await self._signer(header, MINT_PATH, "POST", body, now, payload_required=True)
        if isinstance(found, AuthRefusal):
            missing = found.cause == Nip98Cause.PAYLOAD_MISSING.value
            return replace(found, text=PAYLOAD_REQUIRED if missing else NIP98_FAILED)
        return Caller(found, frozenset(), AuthMethod.NIP98)

    async def signed_request(
        self, header: str, *, path: str, method: str, body: bytes, now: float
    ) -> Caller | AuthRefusal:
        """Decides on any other request that is signed itself (NIP-98), for the routes that allow it: the key is there
        in person and has all scopes, as after a NIP-42 login without a token, and by the same rules.

        As `mint_request`; `path` with the query string. The event need not be about the body.
        """
        found = await self._signer(header, path, method, body, now, instead_of_token=True)
        if isinstance(found, AuthRefusal):
            return found
        return Caller(found, KNOWN_SCOPES, AuthMethod.NIP98)

    async def _signer(
        self,
        header: str,
        path: str,
        method: str,
        body: bytes,
        now: float,
        *,
        payload_required: bool = False,
        instead_of_token: bool = False,
    ) -> str | AuthRefusal:
        """The key that has signed the request. Where the allow-list rules it does here too, also over requests for
        tokens: else any key could make itself a token, and no list measures that.
        """
        url = nip98.canonical_url(self._relay_url, path)
        try:
            event = nip98.parse(header)
            nip98.verify(event, url=url, method=method, body=body, now=now, payload_required=payload_required)
        except Nip98Refused as refused:
            return AuthRefusal(NIP98_FAILED, refused.cause.value)
        if instead_of_token and self._settings.require_auth_token:
            return AuthRefusal(NIP98_FAILED, NEEDS_TOKEN)
        if self._settings.pubkey_allowlist and not await users.is_allowed(self._pool, event.pubkey):
            return AuthRefusal(NIP98_FAILED, NOT_LISTED)
        if not self._used.first_use(event.id, now):
            return AuthRefusal(NIP98_FAILED, USED_BEFORE)
        await self._note_user(event.pubkey)
        return event.pubkey

    async def trusted_header(self, pubkey: str) -> Caller:
        """The caller for a key that the development header names. One statement, if the key was not seen lately."""
        await self._note_user(pubkey)
        return Caller(pubkey, KNOWN_SCOPES, AuthMethod.X_PUBKEY)

    async def _note_user(self, pubkey: str) -> None:
        if not self._seen.due(pubkey):
            return
        try:
            await users.ensure(self._pool, [pubkey])
        except STORE_FAILURES as error:
            # The row is a convenience for later; what the request really needs of the store will tell.
            log.warning("could not note a user", error=repr(error))
        else:
            self._seen.done(pubkey)

    async def _with_key_alone(self, pubkey: str) -> Caller | AuthRefusal:
        if self._settings.require_auth_token:
            return _refuse("nip42_invalid", NEEDS_TOKEN)
        if self._settings.pubkey_allowlist and not await allowlist.admits(self._pool, pubkey):
            return _refuse("allowlist_denied", NOT_LISTED)
        await self._note_user(pubkey)
        return Caller(pubkey, KNOWN_SCOPES, AuthMethod.PUBKEY)

    async def _with_token(self, pubkey: str, text: str) -> Caller | AuthRefusal:
        found = await self.bearer(text)
        match found:
            case TokenProblem.INVALID | TokenProblem.REVOKED:
                return _refuse("api_token_invalid", found.value, INVALID_TOKEN)
            case TokenProblem.EXPIRED:
                return _refuse("api_token_invalid", found.value)
            case Caller():
                # Somebody else's token would make the signer somebody else.
                if found.pubkey != pubkey:
                    return _refuse("api_token_invalid", "token of another key")
                return found

    async def _with_grant(self, pubkey: str, found: Grant | JwtProblem) -> Caller | AuthRefusal:
        if isinstance(found, JwtProblem):
            return _refuse("nip42_internal" if found is JwtProblem.NO_KEYS else "nip42_invalid", found.value)
        # As with tokens: somebody else's must not make the signer somebody else.
        if found.pubkey != pubkey:
            return _refuse("nip42_invalid", "jwt: of another key")
        await self._note_user(pubkey)
        return Caller(pubkey, found.scopes, AuthMethod.OIDC, expires_at=found.expires_at)


def _refuse(reason: str, cause: str, text: str = VERIFICATION_FAILED) -> AuthRefusal:
    metrics.AUTH_FAILURES.labels(reason).inc()
    return AuthRefusal(text, cause)
