"""`/api/tokens`: keys make API tokens for their own programs, see them and end them.

The text of a token is in the answer that makes it and nowhere else. Making and ending are transactions of the effect
workers, because each is committed together with its entry in the audit log; what ends a token also tells the
connections that hold it (a trigger of the database does, whoever ended it).
"""

from __future__ import annotations

from typing import Any

from quart import Blueprint, Response

from relay.audit.entry import Action
from relay.errors import INTERNAL_ERROR
from relay.http import minting
from relay.http.auth import authenticate, authenticate_to_mint, services
from relay.http.minting import Mint
from relay.http.refusals import ApiError, NotWellFormed, from_refusal, json_response
from relay.http.undecided import answered_in_time, transact
from relay.http.values import raw_body, rfc3339
from relay.ingest.effects import Effect
from relay.ingest.types import STORED, Outcome
from relay.nostr.ids import parse_uuid
from relay.store import tokens
from relay.store.tokens import Revocation, Token

routes = Blueprint("tokens", __name__)


@routes.post("/api/tokens")
async def mint_token() -> Response:
    """A new token. Its content type is not looked at; see `minting` for the order of what is."""
    body = await raw_body()
    wanted = minting.parse(body)
    caller = await authenticate_to_mint(body)
    mint = Mint(await minting.checked(wanted, caller))
    with answered_in_time():
        outcome = await services().ingest.transact(mint, actor=caller.pubkey)
    if (problem := mint.problem()) is not None:
        raise problem
    if outcome.refusal is not None or not isinstance(mint.result, Token):
        raise from_refusal(outcome.refusal or INTERNAL_ERROR)
    made = _described(mint.result)
    told = {key: made[key] for key in ("id", "name", "scopes", "channel_ids", "created_at", "expires_at")}
    response = json_response(told | {"token": mint.new.text}, 201)
    # A secret: in no cache, not even the client's own.
    response.headers["Cache-Control"] = "no-store"
    return response


@routes.get("/api/tokens")
async def list_tokens() -> Response:
    """The caller's tokens, newest first, ended ones too."""
    caller = await authenticate()
    found = await tokens.newest_of(services().pool, caller.pubkey)
    return json_response({"tokens": [_described(token) for token in found]})


@routes.delete("/api/tokens/<id>")
async def revoke_token(id: str) -> Response:  # noqa: A002  # the route's pattern is a label of the metrics
    canonical = parse_uuid(id)
    if canonical is None:
        text = f"Invalid URL: Cannot parse `id` with value `{id}`: UUID parsing failed: not a UUID"
        raise NotWellFormed(400, text)
    caller = await authenticate()
    revoke = _Revoke(canonical)
    await transact(revoke, caller.pubkey)
    match revoke.result:
        case Revocation.ALREADY:
            raise ApiError(409, "already_revoked", "Token is already revoked")
        case Revocation.UNKNOWN:
            raise ApiError(404, "not_found", "Token not found or not owned by caller")
        case Revocation.DONE:
            response = Response(b"", 204)
            del response.headers["Content-Type"]
            return response


@routes.delete("/api/tokens")
async def revoke_tokens() -> Response:
    """All of the caller's tokens, the one that asks among them."""
    caller = await authenticate()
    revoke = _RevokeAll()
    await transact(revoke, caller.pubkey)
    return json_response({"revoked_count": revoke.count})


class _Revoke:
    """The transaction that ends one token of the actor."""

    def __init__(self, token_id: str) -> None:
        self.token_id = token_id
        self.result = Revocation.UNKNOWN

    async def __call__(self, effect: Effect) -> Outcome:
        self.result = await tokens.revoke(effect.con, self.token_id, owner=effect.actor)
        if self.result is Revocation.DONE:
            _note(effect, self.token_id)
        return STORED


class _RevokeAll:
    """The transaction that ends all tokens of the actor."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, effect: Effect) -> Outcome:
        ended = await tokens.revoke_all(effect.con, effect.actor)
        for token_id in ended:
            _note(effect, token_id)
        self.count = len(ended)
        return STORED


def _note(effect: Effect, token_id: str) -> None:
    effect.audit(Action.TOKEN_REVOKED, None, None, metadata={"token_id": token_id, "by": "http"})


def _described(token: Token) -> dict[str, Any]:
    """A token as its owner sees it: never its text or hash. No channels: not restricted."""
    return {
        "id": token.id,
        "name": token.name,
        "scopes": list(token.scopes),
        "channel_ids": list(token.channel_ids or ()),
        "created_at": rfc3339(token.created_at),
        "expires_at": rfc3339(token.expires_at),
        "last_used_at": rfc3339(token.last_used_at),
        "revoked_at": rfc3339(token.revoked_at),
    }
