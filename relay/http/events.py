"""`POST /api/events`: the HTTP door of ingest. One signed event in, what became of it out.

The caller is known first, the event read second. Everything after that is the same as on a WebSocket.
"""

from __future__ import annotations

import orjson
from quart import Blueprint, Response

from relay.http.auth import authenticate, services
from relay.http.refusals import ApiError, from_refusal, json_response
from relay.http.values import raw_body
from relay.ingest.types import Door
from relay.nostr.event import Event, InvalidEvent, parse_event

routes = Blueprint("events", __name__)


@routes.post("/api/events")
async def submit_event() -> Response:
    """200 for everything that the relay has an opinion on without refusing it: stored, duplicate, already so."""
    body = await raw_body()
    caller = await authenticate()
    event = _event(body)
    limited = services().refuse_event(caller)
    if limited is not None:
        raise from_refusal(limited)
    outcome = await services().ingest.submit(event, caller, Door.HTTP)
    if outcome.refusal is not None:
        raise from_refusal(outcome.refusal)
    return json_response({"event_id": event.id, "accepted": outcome.accepted, "message": outcome.message})


def _event(body: bytes) -> Event:
    """Raises ApiError (400). The id and the signature are not checked here."""
    try:
        return parse_event(orjson.loads(body))
    except (orjson.JSONDecodeError, InvalidEvent) as error:
        raise ApiError(400, f"invalid event JSON: {error}") from None
