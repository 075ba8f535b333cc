"""`POST /api/events`: the HTTP door of ingest. One signed event in, what became of it out. And `GET /api/events/{id}`:
one stored event out, as it was signed.

Going in, the caller is known first, the event read second, and everything after that is the same as on a WebSocket.
Coming out, every no sounds the same: whether an event exists is not told to those who may not read it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import orjson
from quart import Blueprint, Response

from relay.access.identity import Caller
from relay.access.scopes import MESSAGES_READ, USERS_READ
from relay.errors import Refusal, Refused
from relay.http.auth import authenticate, services
from relay.http.refusals import ApiError, from_refusal, json_response
from relay.http.undecided import answered_in_time
from relay.http.values import raw_body
from relay.ingest.types import Door, Outcome, Route
from relay.nostr import kinds
from relay.nostr.event import Event, InvalidEvent, parse_event
from relay.nostr.ids import parse_hex64
from relay.store import event_access
from relay.store.event_access import FoundEvent

# What may be read of no channel, and with which scope. Anything else that is global was sent to somebody.
GLOBAL_KINDS: Final[Mapping[int, str]] = MappingProxyType(
    {
        kinds.PROFILE: USERS_READ,
        kinds.CONTACT_LIST: USERS_READ,
        kinds.TEXT_NOTE: MESSAGES_READ,
        kinds.LONG_FORM: MESSAGES_READ,
    }
)

routes = Blueprint("events", __name__)


@routes.post("/api/events")
async def submit_event() -> Response:
    body = await raw_body()
    return await accept(body, await authenticate())


async def accept(body: bytes, caller: Caller) -> Response:
    """One signed event in. 200 for everything that the relay has an opinion on without refusing it: stored, duplicate,
    already so. Raises ApiError."""
    event = _event(body)
    limited = services().refuse_event(caller)
    if limited is not None:
        raise from_refusal(limited)
    with answered_in_time():
        outcome = await _submit(event, caller)
    if outcome.refusal is not None:
        raise from_refusal(outcome.refusal)
    return json_response({"event_id": event.id, "accepted": outcome.accepted, "message": outcome.message})


async def _submit(event: Event, caller: Caller) -> Outcome:
    ingest = services().ingest
    try:
        async with services().handling(caller):
            admission = await ingest.admit(event, caller, Door.HTTP)
            if isinstance(admission, Refusal):
                return Outcome.refused(admission)
            if admission.route is not Route.PLAIN:
                return await ingest.perform(admission)
    except Refused as refused:
        return Outcome.refused(refused.refusal)
    # Not among those that are handled: a full queue holds back who sends, and nobody else.
    return await ingest.perform(admission)


@routes.get("/api/events/<id>")
async def show_event(id: str) -> Response:  # noqa: A002  # the route's pattern is a label of the metrics
    """The seven signed fields. Needs `messages:read`, or for a profile or contact list `users:read`."""
    caller = await authenticate()
    named = parse_hex64(id)
    if named is None:
        raise ApiError(400, "invalid event ID")
    found = await event_access.find(services().pool, named, caller.pubkey, now=int(time.time()))
    if found is None or not _may_read(caller, found):
        raise ApiError(404, "event not found")
    return Response(found.signed_json, 200, content_type="application/json")


def _may_read(caller: Caller, found: FoundEvent) -> bool:
    if found.channel_id is None:
        scope = GLOBAL_KINDS.get(found.kind)
        return scope is not None and caller.has(scope)
    if found.kind in kinds.P_GATED:
        return False
    return caller.has(MESSAGES_READ) and caller.may_enter(found.channel_id) and found.readable


def _event(body: bytes) -> Event:
    """Raises ApiError (400). The id and the signature are not checked here."""
    try:
        return parse_event(orjson.loads(body))
    except (orjson.JSONDecodeError, InvalidEvent) as error:
        raise ApiError(400, f"invalid event JSON: {error}") from None
