"""Remembered signatures: they spare work, and never a check."""

from __future__ import annotations

from typing import Any

import pytest

import relay.ingest.verified as module
from relay.ingest.types import Admission, Door
from relay.ingest.verified import Verified
from relay.nostr.event import Event, InvalidEvent, verify_signature
from tests.support.core import ALICE, BOB


def changed(event: Event, **fields: Any) -> Event:
    names = ("id", "pubkey", "created_at", "kind", "tags", "content", "sig")
    return Event(**{name: fields.get(name, getattr(event, name)) for name in names})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids whose signatures were looked at."""
    ids: list[str] = []

    def noted(event: Event, digest: bytes) -> None:
        ids.append(event.id)
        verify_signature(event, digest)

    monkeypatch.setattr(module, "verify_signature", noted)
    return ids


def test_the_same_event_is_verified_once(asked: list[str]) -> None:
    verified, event = Verified(), ALICE.sign(1, "x")
    for _ in range(3):
        verified.verify(event)
    assert asked == [event.id]


def test_another_signature_under_a_known_id_is_verified(asked: list[str]) -> None:
    verified, event = Verified(), ALICE.sign(1, "x")
    verified.verify(event)
    forged = changed(event, sig=BOB.sign(1, "x").sig)
    for _ in range(2):
        with pytest.raises(InvalidEvent, match="invalid schnorr signature"):
            verified.verify(forged)
    verified.verify(event)
    assert asked == [event.id] * 3, "what was refused is not remembered, and does not drive out what was right"


@pytest.mark.parametrize("field", ["content", "created_at", "kind", "pubkey", "tags"])
def test_a_known_id_and_signature_do_not_cover_other_fields(field: str) -> None:
    verified, event = Verified(), ALICE.sign(1, "x")
    verified.verify(event)
    other = {"content": "y", "created_at": event.created_at + 1, "kind": 9, "pubkey": BOB.pubkey, "tags": [["t", "a"]]}
    with pytest.raises(InvalidEvent, match="invalid event id"):
        verified.verify(changed(event, **{field: other[field]}))


def test_a_refused_event_is_not_remembered(asked: list[str]) -> None:
    verified = Verified()
    forged = changed(ALICE.sign(1, "x"), sig="00" * 64)
    for _ in range(2):
        with pytest.raises(InvalidEvent):
            verified.verify(forged)
    assert len(asked) == 2


def test_the_oldest_are_forgotten(asked: list[str]) -> None:
    verified, events = Verified(remembered=2), [ALICE.sign(1, text) for text in "abc"]
    for event in (*events, events[2], events[0]):
        verified.verify(event)
    assert asked == [events[0].id, events[1].id, events[2].id, events[0].id]


async def test_an_admitted_event_lets_no_forgery_of_it_in(admitter) -> None:  # type: ignore[no-untyped-def]
    event = ALICE.sign(1, "x")
    for candidate, admitted in ((event, True), (changed(event, sig="11" * 64), False), (event, True)):
        found = await admitter.admit(candidate, ALICE.caller, Door.WEBSOCKET)
        assert isinstance(found, Admission) is admitted
