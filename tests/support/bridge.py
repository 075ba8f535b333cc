"""Asking the bridge, and events in the table that ingest would not take."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from quart_trio import QuartTrio

from relay.http.app import create_app
from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from relay.store.events import Row
from relay.websocket.guests import Guests
from relay.websocket.limits import Limits
from relay.websocket.shares import Shares
from tests.support.http import Answer, Rig, signed
from tests.support.storing import insert_batch

NOW = int(time.time())


async def query(rig: Rig, key: SecretKey, *filters: dict[str, Any], app: QuartTrio | None = None) -> list[str]:
    """The ids of an answer that is one."""
    found = await rig.post("/query", key=key, json=list(filters), app=app)
    assert found.status == 200, found.body
    return [each["id"] for each in found.json]


async def count(rig: Rig, key: SecretKey, *filters: dict[str, Any]) -> int:
    found = await rig.post("/count", key=key, json=list(filters))
    assert found.status == 200, found.body
    number = found.json["count"]
    assert isinstance(number, int)
    return number


async def store(rig: Rig, event: Event, channel_id: str | None = None) -> Event:
    """As ingest would, whatever its kind and time."""
    assert len((await insert_batch(rig.con, [Row(event, channel_id, None)]))[0]) == 1
    return event


async def say(rig: Rig, key: SecretKey, channel_id: str, at: int, content: str = "", **fields: Any) -> Event:
    tags = [["h", channel_id], ["nonce", uuid.uuid4().hex], *fields.get("tags", [])]
    return await store(rig, signed(key, fields.get("kind", 9), tags, content, at), channel_id)


def bounded(rig: Rig, **changes: Any) -> QuartTrio:
    """An app over the same parts, with bounds of its own."""
    settings = rig.services.settings.model_copy(update=changes)
    limits = Limits(settings, rig.services.ingest.note)
    guests = Guests(limits, Shares(settings.pool_size_max, 0.1))
    parts = replace(
        rig.services,
        settings=settings,
        refuse_event=limits.refuse_event,
        handling=guests.handling,
        asking=guests.asking,
    )
    return create_app(parts)


def is_problem(found: Answer, status: int, error: str) -> None:
    """Asserts that it is one, and which."""
    assert (found.status, found.json["status"], found.json["error"]) == (status, status, error)
    assert found.headers["content-type"] == "application/problem+json"
    assert found.json["type"] == "about:blank"
