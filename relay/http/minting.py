"""What a request for an API token has to be, in the order in which it is looked at.

In: the body of `POST /api/tokens` and the caller. Out: a `NewToken` that may be made (`checked`), or the ApiError of
the first thing that is wrong. The order is part of the contract: it decides what a client is told that has got several
things wrong, and what counts for the limit of an hour. What only the database can decide while the token is made, and
the audit entry, are in `Mint`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from relay.access import minting
from relay.access.authenticate import TokenProblem
from relay.access.identity import AUDIT_READ, KNOWN_SCOPES, PROXY_SUBMIT, AuthMethod, Caller
from relay.access.minting import ACTIVE_MAX, NAME_BYTES_MAX, SELF_MINTABLE, MintProblem, NewToken
from relay.audit.entry import Action
from relay.errors import Refusal
from relay.http.auth import failed, services
from relay.http.hex_values import hex_bytes
from relay.http.refusals import ApiError
from relay.http.values import U32_MAX
from relay.ingest.effects import Effect, Ended
from relay.ingest.types import STORED, Outcome
from relay.nostr.ids import parse_uuid
from relay.store import tokens
from relay.store.tokens import Token

DAYS_MAX: Final = 365

_RESTRICTED: Final = "Your token is channel-restricted; minted tokens must"


@dataclass(frozen=True, slots=True)
class MintRequest:
    """The body as it was sent: types are right, nothing else is known."""

    name: str
    scopes: tuple[str, ...]
    channel_ids: tuple[str, ...] | None
    expires_in_days: int | None
    owner_pubkey: str | None


# -- the shape -------------------------------------------------------------------------------------------------------


def parse(body: bytes) -> MintRequest:
    """Raises ApiError (400)."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _bad_body(str(error)) from None
    if not isinstance(value, dict):
        raise _bad_body("expected an object")
    scopes = _strings(value, "scopes")
    if scopes is None:
        raise _bad_body("missing field `scopes`")
    return MintRequest(
        _name(value), scopes, _strings(value, "channel_ids"), _days(value), _optional_text(value, "owner_pubkey")
    )


def _name(value: dict[str, Any]) -> str:
    name = _optional_text(value, "name")
    if name is None:
        raise _bad_body("missing field `name`")
    return name


def _strings(value: dict[str, Any], key: str) -> tuple[str, ...] | None:
    found = value.get(key)
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise _bad_body(f"{key}: expected an array of strings")
    return tuple(found)


def _optional_text(value: dict[str, Any], key: str) -> str | None:
    found = value.get(key)
    if found is not None and not isinstance(found, str):
        raise _bad_body(f"{key}: expected a string")
    return found


def _days(value: dict[str, Any]) -> int | None:
    found = value.get("expires_in_days")
    if found is None:
        return None
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= U32_MAX:
        raise _bad_body(f"expires_in_days: expected an integer from 0 to {U32_MAX}")
    return found


def _bad_body(detail: str) -> ApiError:
    return ApiError(400, f"invalid request body: {detail}")


# -- what may be asked for -------------------------------------------------------------------------------------------


async def checked(wanted: MintRequest, caller: Caller) -> NewToken:
    """The token that this caller may have. One statement at most, if there are channels. Counts the attempt.

    Raises: ApiError with 400, 403 or 429; what the store raises.
    """
    _check_name(wanted.name)
    scopes = _scopes(wanted.scopes, caller)
    _check_reach(wanted.channel_ids, caller)
    _count(caller)
    channel_ids = await _channel_ids(wanted.channel_ids, caller)
    owner = None if wanted.owner_pubkey is None else _owner(wanted.owner_pubkey, caller)
    if wanted.expires_in_days is not None and not 1 <= wanted.expires_in_days <= DAYS_MAX:
        raise ApiError(400, f"invalid expires_in_days: must be 1–{DAYS_MAX}")
    return NewToken(
        tokens.new_text(),
        caller.pubkey,
        wanted.name,
        scopes,
        channel_ids,
        wanted.expires_in_days,
        agent_owner=owner,
        active_max=ACTIVE_MAX,
        self_minted=True,
        asked_with=caller.token_id,
    )


def _check_name(name: str) -> None:
    if not 1 <= len(name.encode()) <= NAME_BYTES_MAX:
        raise ApiError(400, f"invalid_name: name must be 1–{NAME_BYTES_MAX} characters")
    if "\0" in name:  # PostgreSQL cannot keep one
        raise ApiError(400, "invalid_name: name must not contain NUL")


def _scopes(wanted: Sequence[str], caller: Caller) -> tuple[str, ...]:
    if not wanted:
        raise ApiError(400, "invalid_scopes: scopes must not be empty")
    for scope in wanted:
        if scope not in SELF_MINTABLE:
            what = "scope requires admin" if scope in (*KNOWN_SCOPES, PROXY_SUBMIT, AUDIT_READ) else "unknown scope"
            raise ApiError(400, "invalid_scopes", f"{what}: {scope}")
    for scope in wanted:
        if caller.method is not AuthMethod.NIP98 and not caller.has(scope):
            raise ApiError(403, "scope_escalation", f"Cannot mint scope '{scope}' — not in your token's scopes")
    return tuple(dict.fromkeys(wanted))


def _check_reach(wanted: Sequence[str] | None, caller: Caller) -> None:
    """Whether a token with this list would reach no further than the caller's own."""
    if caller.channel_ids is None:
        return
    if wanted is None:
        raise ApiError(403, "channel_escalation", f"{_RESTRICTED} also specify channel_ids (subset of yours)")
    for text in wanted:
        channel_id = parse_uuid(text)
        # What is no id at all is told so later.
        if channel_id is not None and channel_id not in caller.channel_ids:
            message = f"Cannot mint access to channel {channel_id} — not in your token's channel_ids"
            raise ApiError(403, "channel_escalation", message)


def _count(caller: Caller) -> None:
    parts = services()
    mints = parts.authenticator.mints
    if not mints.take(caller.pubkey):
        parts.ingest.note(Action.RATE_LIMIT_EXCEEDED, caller.pubkey, "minting")
        seconds = max(1, math.ceil(mints.seconds_left(caller.pubkey)))
        message = f"Mint limit exceeded: {mints.limit} per hour. Try again in {seconds} seconds."
        raise ApiError(429, "rate_limited", message, retry_after_seconds=seconds)


async def _channel_ids(wanted: Sequence[str] | None, caller: Caller) -> tuple[str, ...] | None:
    """The canonical ids, sorted; None for no restriction. The caller must be a member of every one."""
    if not wanted:
        if wanted is not None and caller.channel_ids is not None:
            message = f"{_RESTRICTED} specify non-empty channel_ids (subset of yours)"
            raise ApiError(403, "channel_escalation", message)
        return None
    parsed = {text: parse_uuid(text) for text in wanted}
    asked = {channel_id for channel_id in parsed.values() if channel_id is not None}
    found = await tokens.memberships(services().pool, caller.pubkey, asked) if asked else {}
    # The first that is wrong is told, whatever is wrong with it.
    for text, channel_id in parsed.items():
        if channel_id is None:
            raise ApiError(400, "invalid_channel_ids", f"malformed UUID: {text}")
        if channel_id not in found:
            raise ApiError(400, "invalid_channel_ids", f"channel not found: {channel_id}")
        if not found[channel_id]:
            raise ApiError(403, "not_channel_member", f"not a member of channel: {channel_id}")
    return tuple(sorted(asked))


def _owner(text: str, caller: Caller) -> str:
    if caller.method is not AuthMethod.NIP98:
        raise ApiError(403, "owner_pubkey can only be set via NIP-98 auth (bootstrap mint)")
    key = hex_bytes(text)
    if key is None:
        raise ApiError(400, "invalid owner_pubkey hex")
    if len(key) != 32:
        raise ApiError(400, "owner_pubkey must be 32 bytes (64 hex chars)")
    return key.hex()


# -- making it -------------------------------------------------------------------------------------------------------


class Mint:
    """The transaction that makes the token; `result` is set when it has been run."""

    def __init__(self, new: NewToken) -> None:
        self.new = new
        self.result: Token | MintProblem | None = None

    async def __call__(self, effect: Effect) -> Outcome:
        self.result = await minting.mint(effect.con, self.new)
        if isinstance(self.result, MintProblem):
            # An owner that was set for it is not set then.
            raise Ended(Outcome.refused(Refusal(self.result.name)))
        effect.audit(Action.TOKEN_CREATED, None, None, metadata=minting.told(self.result) | {"by": "http"})
        return STORED

    def problem(self) -> ApiError | None:
        """What the database decided against it."""
        match self.result:
            case MintProblem.TOKEN_REVOKED:
                return failed(TokenProblem.REVOKED.value)
            case MintProblem.OWNED_NEEDS_SCOPES:
                missing = minting.missing_scopes(self.new.scopes)[0]
                return ApiError(400, f"owned agents require the '{missing}' scope for controllability")
            case MintProblem.OTHER_OWNER:
                return ApiError(409, "agent already has a different owner")
            case MintProblem.TOO_MANY:
                return ApiError(409, "token_limit_exceeded", f"Maximum of {ACTIVE_MAX} active tokens per pubkey")
        return None
