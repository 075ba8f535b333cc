"""Asking for tokens over HTTP: bodies, and signatures of requests (NIP-98)."""

from __future__ import annotations

import secrets
import time
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from typing import Any

import orjson
from quart_trio import QuartTrio

from relay.access.authenticate import Authenticator
from relay.config import Settings
from relay.http.app import create_app
from relay.nostr.event import sign_event
from relay.nostr.keys import SecretKey
from tests.support.http import Answer, Rig

URL = "http://localhost:3000/api/tokens"
AGENT_SCOPES = ["users:read", "messages:read", "messages:write", "channels:read"]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def wanted(**changes: Any) -> dict[str, Any]:
    """A body that is all right, with these changes."""
    return {"name": "bot", "scopes": ["messages:read"]} | changes


def authorization(key: SecretKey, body: bytes, **changes: Any) -> str:
    """The header of a signed request. `payload=None` leaves that tag out; `at` is its time."""
    tags = {"u": URL, "method": "POST", "payload": sha256(body).hexdigest(), "nonce": secrets.token_hex(8)} | changes
    at = tags.pop("at", int(time.time()))
    kind = tags.pop("kind", 27235)
    listed = [[name, value] for name, value in tags.items() if value is not None]
    event = sign_event(key, created_at=at, kind=kind, tags=listed, content="")
    return "Nostr " + b64encode(event.json).decode()


async def ask(rig: Rig, app: QuartTrio | None = None, *, token: str | None = None, **changes: Any) -> Answer:
    """Asks with a token."""
    return await rig.post("/api/tokens", token=token, json=wanted(**changes), app=app)


async def ask_signed(rig: Rig, key: SecretKey, app: QuartTrio | None = None, **changes: Any) -> Answer:
    """Asks with a signature of the request."""
    body = orjson.dumps(wanted(**changes))
    return await rig.post("/api/tokens", data=body, headers={"Authorization": authorization(key, body)}, app=app)


def app_with(rig: Rig, clock: Clock | None = None, **changes: Any) -> QuartTrio:
    """An app of the same parts whose authenticator has other settings, and perhaps a clock of the test's."""
    settings: Settings = rig.services.settings.model_copy(update=changes)
    authenticator = Authenticator(rig.services.pool, settings, settings.relay_url, clock or time.monotonic)
    return create_app(replace(rig.services, settings=settings, authenticator=authenticator))
