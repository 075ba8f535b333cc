"""`GET /audit/...`: checkpoints of the audit log, and proofs of them, for auditors.

In: a token that the operator has made with the scope `audit:read`. Out: the signed note as text, proofs as JSON
(relay/audit/proofs.py); each can be checked without this relay, by `relay audit check` or by a program of the auditor's
own. Nothing here makes a checkpoint. Refusals are problem details.

A log that is no longer what was signed is told to the auditor as it is, in a 500 with the sentence: it is for whoever
runs the relay to be ashamed of, and for nobody to hide.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from quart import Blueprint, Response, request

from relay.access.identity import AUDIT_READ, AuthMethod, Caller
from relay.asyncpg_trio import Connection
from relay.audit import proofs
from relay.audit.proofs import NotCovered
from relay.errors import AuditError, Refused
from relay.http.auth import authenticate, services
from relay.http.problems import answer_with_problems
from relay.http.refusals import ApiError, from_refusal, json_response
from relay.http.values import INT64_MAX, Query

DISAGREES: Final = "the audit log is not what was signed"

_SEQ: Final = re.compile("[1-9][0-9]{0,18}", re.ASCII)

routes = Blueprint("audit", __name__)
answer_with_problems(routes)

log = structlog.get_logger(__name__)


@routes.after_request
async def _keep_nowhere(response: Response) -> Response:
    """An entry of the log is nothing for a cache on the way."""
    response.headers["Cache-Control"] = "no-store"
    return response


@routes.get("/audit/checkpoint")
async def show_checkpoint() -> Response:
    """The newest note, or that of `size` entries, with the cosignatures that there are by now."""
    caller = await _auditor()
    size = _size("size")
    async with _log_of(caller) as con:
        found = await proofs.find_checkpoint(con, _pubkey(), size)
    return Response(found.checkpoint.note, 200, content_type="text/plain; charset=utf-8")


@routes.get("/audit/proof/<seq>")
async def show_proof(seq: str) -> Response:
    """That one entry is in the log: the entry, its path, and the note whose root it leads to."""
    caller = await _auditor()
    size = _size("size")
    if _SEQ.fullmatch(seq) is None or int(seq) > INT64_MAX:
        raise ApiError(400, "invalid sequence number")
    async with _log_of(caller) as con:
        proof = await proofs.prove(con, _pubkey(), int(seq), size)
    return json_response(proof.as_dict())


@routes.get("/audit/consistency")
async def show_consistency() -> Response:
    """That the log at the checkpoint `to` begins with the log at the checkpoint `from`."""
    caller = await _auditor()
    old, new = _size("from", required=True), _size("to", required=True)
    assert old is not None
    assert new is not None
    async with _log_of(caller) as con:
        proof = await proofs.prove_consistency(con, _pubkey(), old, new)
    return json_response(proof.as_dict())


async def _auditor() -> Caller:
    """Raises ApiError (401, 403).

    An API token, and nothing else: an identity provider may put any scope into its tokens, and a token that is
    restricted to some channels must not read about all of them.
    """
    # The development header has no scope that counts here: asking for a token says more than a 403 would.
    if not request.headers.get("Authorization", ""):
        raise ApiError(401, "an API token is required")
    caller = await authenticate(AUDIT_READ)
    if caller.method is not AuthMethod.API_TOKEN or caller.channel_ids is not None:
        raise ApiError(403, "insufficient_scope", f"only an unrestricted API token may have the scope {AUDIT_READ}")
    return caller


@asynccontextmanager
async def _log_of(caller: Caller) -> AsyncIterator[Connection]:
    """A connection to ask with, in this caller's turn; what the log has to say becomes an answer. Raises ApiError."""
    try:
        async with services().asking(caller, long=False), services().pool.acquire() as con:
            yield con
    except Refused as refused:
        raise from_refusal(refused.refusal) from None
    except NotCovered as error:
        raise ApiError(404, "not covered by a checkpoint", str(error)) from None
    except AuditError as error:
        log.critical("the audit log does not fit its checkpoint", error=str(error))
        raise ApiError(500, DISAGREES, str(error)) from None


def _pubkey() -> str:
    return services().relay_key.public_hex


def _size(key: str, *, required: bool = False) -> int | None:
    """Raises ApiError (400)."""
    query = Query([key])
    if required:
        query.required(key)
    size = query.signed(key)
    if size is not None and size < 0:
        raise ApiError(400, f"{key} must not be negative")
    return size
