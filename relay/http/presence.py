"""`/api/presence`: who says that he is there, and saying so oneself without a WebSocket.

Both work on the hub's memory: what kind 20001 said over a socket is read here too. A status set here is told to nobody
(no event is made of it) and ends by itself; with the last connection of its key it is forgotten like any other.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from quart import Blueprint, Response

from relay.access.scopes import CHANNELS_READ
from relay.fanout.presence import OFFLINE
from relay.http.auth import authenticate, services
from relay.http.refusals import ApiError, NotWellFormed, json_response
from relay.http.values import Query, bad_shape, json_object, string
from relay.nostr.ids import parse_hex64

STATUSES: Final = ("online", "away", OFFLINE)
PUBKEYS_MAX: Final = 200  # the original's

routes = Blueprint("presence", __name__)


@routes.get("/api/presence")
async def read_presence() -> Response:
    """An object of the first 200 keys asked for; what is no key is passed over."""
    text = Query(("pubkeys",)).text("pubkeys") or ""
    await authenticate(CHANNELS_READ)
    named = islice(filter(None, (part.strip() for part in text.split(","))), PUBKEYS_MAX)
    pubkeys = list(filter(None, map(parse_hex64, named)))
    said = services().hub.presence.status(pubkeys)
    return json_response({pubkey: said.get(pubkey, OFFLINE) for pubkey in pubkeys})


@routes.put("/api/presence")
async def set_presence() -> Response:
    """Clients of this route read every no in the envelope, also what other routes say in plain text."""
    try:
        status = _status(await json_object())
    except NotWellFormed as error:
        raise ApiError(error.status, error.error) from None
    caller = await authenticate(CHANNELS_READ)
    parts = services()
    parts.hub.presence.update(caller.pubkey, status)
    seconds = 0 if status == OFFLINE else max(1, int(parts.settings.presence_seconds))
    return json_response({"status": status, "ttl_seconds": seconds})


def _status(body: dict[str, Any]) -> str:
    """Raises: NotWellFormed (422)."""
    status = string(body, "status")
    if status not in STATUSES:
        expected = ", ".join(f"`{each}`" for each in STATUSES)
        raise bad_shape(f"status: unknown variant `{status}`, expected one of {expected}")
    return status
