"""Spellings of ids: all that are accepted give the same canonical text, everything else gives None."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.nostr import nip19
from relay.nostr.ids import parse_event_id, parse_hex64, parse_pubkey, parse_uuid
from tests.nostr.people import ALICE

EVENT_ID = "5c83da77af1dec6d7289834998ad7aafbd9e2191396d75ec3cc27f5a77226f36"
NOT_A_POINT = "ff" * 32
CANONICAL = "67e55044-10b1-426f-9247-bb680e5fe0c8"


@pytest.mark.parametrize(
    "text",
    [
        CANONICAL,
        CANONICAL.upper(),
        CANONICAL.replace("-", ""),
        CANONICAL.replace("-", "").upper(),
        "urn:uuid:" + CANONICAL,
        "URN:UUID:" + CANONICAL.upper(),
        "{" + CANONICAL + "}",
        "{" + CANONICAL.upper() + "}",
    ],
)
def test_uuid_spellings(text):
    assert parse_uuid(text) == CANONICAL


@pytest.mark.parametrize(
    "text",
    [
        "",
        "general",
        CANONICAL + "\n",
        " " + CANONICAL,
        CANONICAL[:-1],
        CANONICAL + "0",
        "{" + CANONICAL,
        CANONICAL + "}",
        "{" + CANONICAL.replace("-", "") + "}",
        "urn:uuid:" + CANONICAL.replace("-", ""),
        "urn:uu\u0131d:" + CANONICAL,
        "urn:{" + CANONICAL + "}",
        CANONICAL.replace("-", "", 1),
        CANONICAL.replace("4", "\u0664"),
        "67e5504-410b1-426f-9247-bb680e5fe0c8",
        "g" + CANONICAL[1:],
    ],
)
def test_not_a_uuid(text):
    assert parse_uuid(text) is None


@given(st.uuids())
def test_uuid_agrees_with_the_standard_library(value):
    assert parse_uuid(value.hex) == parse_uuid(value.urn) == parse_uuid(str(value).upper()) == str(value)


@given(st.text(max_size=50))
def test_any_text_gives_a_uuid_or_none(text):
    found = parse_uuid(text)
    assert found is None or str(uuid.UUID(found)) == found


def test_hex64():
    assert parse_hex64(EVENT_ID.upper()) == EVENT_ID
    for text in ("", EVENT_ID[:-1], EVENT_ID + "0", "x" * 64, "é" * 64, " " * 64, "0x" + EVENT_ID[:62], "1_" * 32):
        assert parse_hex64(text) is None


@pytest.mark.parametrize(
    "text",
    [
        EVENT_ID,
        EVENT_ID.upper(),
        nip19.encode_note(EVENT_ID),
        nip19.encode(nip19.EventPointer(EVENT_ID, ("wss://a.example",), kind=1)),
        "nostr:" + nip19.encode_note(EVENT_ID),
        "nostr:" + nip19.encode(nip19.EventPointer(EVENT_ID)),
    ],
)
def test_event_id_spellings(text):
    assert parse_event_id(text) == EVENT_ID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "note1",
        "nostr:",
        EVENT_ID[:10],
        "nostr:" + EVENT_ID,
        nip19.encode_npub(EVENT_ID),
        "nostr:" + nip19.encode_npub(EVENT_ID),
        "nostr:" + nip19.encode_nsec(EVENT_ID),
        nip19.encode_note(EVENT_ID)[:-1] + "b",
    ],
)
def test_not_an_event_id(text):
    assert parse_event_id(text) is None


@pytest.mark.parametrize(
    "text",
    [
        ALICE.public_hex,
        ALICE.public_hex.upper(),
        nip19.encode_npub(ALICE.public_hex),
        nip19.encode(nip19.Profile(ALICE.public_hex, ("wss://a.example",))),
        "nostr:" + nip19.encode_npub(ALICE.public_hex),
        "nostr:" + nip19.encode(nip19.Profile(ALICE.public_hex)),
    ],
)
def test_pubkey_spellings(text):
    assert parse_pubkey(text) == ALICE.public_hex


@pytest.mark.parametrize(
    "text",
    [
        "",
        "npub1",
        NOT_A_POINT,
        nip19.encode_npub(NOT_A_POINT),
        ALICE.public_hex[:-2],
        nip19.encode_note(ALICE.public_hex),
        "nostr:" + nip19.encode_note(ALICE.public_hex),
        "nostr:" + nip19.encode_nsec(ALICE.public_hex),
    ],
)
def test_not_a_pubkey(text):
    assert parse_pubkey(text) is None
