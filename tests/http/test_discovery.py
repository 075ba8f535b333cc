"""The relay's document as it is served: what it promises, and its type for those who ask and those who do not."""

from __future__ import annotations

import pytest

from relay import __version__
from tests.support.http import Rig

_TRIED_ABOVE = {"supported_nips", "limitation", "rates_per_minute"}


@pytest.mark.parametrize("accept", ["Application/Nostr+JSON", "text/html, APPLICATION/NOSTR+JSON;q=0.1"])
async def test_a_type_is_asked_for_in_any_case(rig: Rig, accept: str) -> None:
    found = await rig.get("/", headers={"Accept": accept})
    assert found.headers["content-type"] == "application/nostr+json"
    assert found.json == (await rig.get("/info")).json


async def test_the_whole_limitation(rig: Rig) -> None:
    assert (await rig.get("/")).json["limitation"] == {
        "max_message_length": 131_072,
        "max_subscriptions": 1024,
        "max_filters": 10,
        "max_limit": 10_000,
        "default_limit": 500,
        "max_subid_length": 256,
        "max_content_length": 262_144,
        "min_pow_difficulty": None,
        "auth_required": True,
        "payment_required": False,
        "restricted_writes": True,
        "created_at_lower_limit": 900,
        "created_at_upper_limit": 900,
        "created_at_lower_limit_exempt_kinds": [1059],
    }


async def test_every_number_is_the_one_that_was_set(rig: Rig) -> None:
    numbers = {
        "max_frame_bytes": ("limitation", "max_message_length", 70_000),
        "max_subscriptions": ("limitation", "max_subscriptions", 7),
        "max_filters": ("limitation", "max_filters", 3),
        "max_limit": ("limitation", "max_limit", 99),
        "default_limit": ("limitation", "default_limit", 9),
        "max_content_bytes": ("limitation", "max_content_length", 1234),
        "rate_messages": ("rates_per_minute", "messages_per_connection", 11),
        "rate_events": ("rates_per_minute", "events_per_key", 12),
        "rate_requests": ("rates_per_minute", "requests_per_key", 13),
        "rate_connections": ("rates_per_minute", "connections_per_address", None),
    }
    app = rig.with_settings(
        max_clock_drift_seconds=60.5, **{setting: value or 0 for setting, (_, _, value) in numbers.items()}
    )
    document = (await rig.get("/info", app=app)).json
    assert {setting: document[where][key] for setting, (where, key, _) in numbers.items()} == {
        setting: value for setting, (_, _, value) in numbers.items()
    }
    # Rounded so that whoever keeps to it is not refused.
    assert document["limitation"]["created_at_lower_limit"] == 60
    assert document["limitation"]["created_at_upper_limit"] == 60


async def test_the_nips_that_are_spoken(rig: Rig) -> None:
    spoken = (await rig.get("/")).json["supported_nips"]
    assert spoken == [1, 2, 9, 10, 11, 16, 17, 23, 25, 29, 33, 40, 42, 45, 50, 59, 70]


async def test_the_rest_of_the_document(rig: Rig) -> None:
    for path in ("/", "/info"):
        found = await rig.get(path)
        assert (found.status, found.headers["content-type"]) == (200, "application/json")
        fixed = {key: value for key, value in found.json.items() if key not in _TRIED_ABOVE}
        assert fixed == {
            "name": "relay",
            "description": "A self-hosted Nostr relay for teams of people and agents",
            "pubkey": None,
            "self": rig.services.relay_key.public_hex,
            "contact": None,
            "software": "relay",
            "version": __version__,
        }
