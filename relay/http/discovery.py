"""What anybody may ask: the NIP-11 document at `/` and `/info`, whose handle a name is (NIP-05), and whether the relay
lives and is ready.

An upgrade to WebSocket never gets here: the listener takes it before HTTP begins.
"""

from __future__ import annotations

from typing import Final

from quart import Blueprint, Response, request

from relay import __version__
from relay.config import Settings
from relay.http.auth import services
from relay.http.readiness import answer as answer_readiness
from relay.http.refusals import json_response
from relay.http.values import Query
from relay.nostr import nip11
from relay.store import user_lookups

NAME: Final = "relay"
DESCRIPTION: Final = "A self-hosted Nostr relay for teams of people and agents"
# NIP-11 wants the address of the project here; ours has none yet that is the same for everybody who runs it.
SOFTWARE: Final = "relay"

HANDLES_PATH: Final = "/.well-known/nostr.json"

routes = Blueprint("discovery", __name__)


@routes.get("/")
@routes.get("/info")
async def relay_information() -> Response:
    """The same document under both addresses; its type is Nostr's own for those who ask for it by name."""
    parts = services()
    body = document(parts.settings, parts.relay_key.public_hex)
    wanted = nip11.CONTENT_TYPE in request.headers.get("Accept", "").lower()
    return Response(body, 200, content_type=nip11.CONTENT_TYPE if wanted else "application/json")


@routes.get(HANDLES_PATH)
async def handle() -> Response:
    """NIP-05: the key behind `<name>@<our host>`, and where to find it. An unknown name is an empty answer."""
    name = Query(("name",)).text("name")
    parts = services()
    if not name:
        return json_response({"names": {}, "relays": {}})
    name = name.lower()
    pubkey = await user_lookups.by_handle(parts.pool, f"{name}@{parts.settings.relay_host}")
    if pubkey is None:
        return json_response({"names": {}, "relays": {}})
    return json_response({"names": {name: pubkey}, "relays": {pubkey: [parts.settings.relay_url]}})


@routes.after_request
async def _for_every_origin(response: Response) -> Response:
    """Any page may check a handle, whatever `SPROUT_CORS_ORIGINS` allows; its errors too, or it could not read them."""
    if request.path == HANDLES_PATH:
        response.headers["Access-Control-Allow-Origin"] = "*"
    return response


@routes.get("/health")
@routes.get("/_liveness")
async def liveness() -> Response:
    return Response("ok", 200, content_type="text/plain; charset=utf-8")


@routes.get("/_readiness")
async def readiness() -> Response:
    return await answer_readiness(services())


def document(settings: Settings, relay_pubkey: str) -> bytes:
    """The NIP-11 document, with the limits that are enforced."""
    drift = int(settings.max_clock_drift_seconds)
    return nip11.document(
        name=NAME,
        description=DESCRIPTION,
        version=__version__,
        software=SOFTWARE,
        self_key=relay_pubkey,
        limits=nip11.Limits(
            max_message_length=settings.max_frame_bytes,
            max_subscriptions=settings.max_subscriptions,
            max_filters=settings.max_filters,
            max_limit=settings.max_limit,
            default_limit=settings.default_limit,
            max_content_length=settings.max_content_bytes,
            created_at_lower_limit=drift,
            created_at_upper_limit=drift,
        ),
        rates=nip11.Rates(
            messages_per_connection=settings.rate_messages or None,
            events_per_key=settings.rate_events or None,
            requests_per_key=settings.rate_requests or None,
            connections_per_address=settings.rate_connections or None,
        ),
    )
