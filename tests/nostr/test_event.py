"""Events: what is one, the canonical bytes against the standard library, ids, signatures, and round trips."""

from __future__ import annotations

import json
from hashlib import sha256

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ProtocolError
from relay.nostr import nip19
from relay.nostr.event import (
    UINT64_MAX,
    Event,
    InvalidEvent,
    canonical,
    compute_id,
    load_event,
    parse_event,
    sign_event,
    verify,
)
from relay.nostr.keys import SecretKey
from tests.nostr.people import ALICE, BOB, CHANNEL, OTHER_CHANNEL, event

GOOD = orjson.loads(event(tags=[["h", CHANNEL], ["p", BOB.public_hex, "wss://a.example"]]).json)

CONTROL = st.sampled_from([chr(code) for code in range(0x20)] + ['"', "\\", "/", "\x7f", "\u2028", "\u2029", "é", "😀"])
TEXT = st.text() | st.text(CONTROL)
TAGS = st.lists(st.lists(TEXT, min_size=1, max_size=4), max_size=4)


def changed(**fields):
    return {**GOOD, **fields}


# --- parse ------------------------------------------------------------------------------------------------------------


def test_parse_keeps_all_fields():
    parsed = parse_event(GOOD)
    assert (parsed.id, parsed.pubkey, parsed.sig) == (GOOD["id"], ALICE.public_hex, GOOD["sig"])
    assert (parsed.created_at, parsed.kind, parsed.content) == (1_700_000_000, 9, "hello")
    assert parsed.tags == GOOD["tags"]
    verify(parsed)


def test_unknown_keys_are_ignored_and_not_repeated():
    parsed = parse_event(changed(seen_on=["wss://a.example"], id_=1))
    assert orjson.loads(parsed.json) == GOOD


def test_upper_case_hex_is_lowered():
    parsed = parse_event(changed(**{key: GOOD[key].upper() for key in ("id", "pubkey", "sig")}))
    assert orjson.loads(parsed.json) == GOOD
    verify(parsed)


@pytest.mark.parametrize(
    "names",
    [
        {"pubkey": nip19.encode_npub(GOOD["pubkey"]), "id": nip19.encode_note(GOOD["id"])},
        {"pubkey": "nostr:" + nip19.encode_npub(GOOD["pubkey"]), "id": "nostr:" + nip19.encode_note(GOOD["id"])},
        {"id": nip19.encode(nip19.EventPointer(GOOD["id"], ("wss://a.example",)))},
    ],
)
def test_bech32_names_are_read_and_hex_is_written(names):
    parsed = parse_event(changed(**names))
    assert orjson.loads(parsed.json) == GOOD
    verify(parsed)


@pytest.mark.parametrize("missing", ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"])
def test_missing_field(missing):
    with pytest.raises(InvalidEvent) as caught:
        parse_event({key: value for key, value in GOOD.items() if key != missing})
    assert caught.value.reason == f"missing field `{missing}`"


def test_the_first_missing_field_is_named():
    with pytest.raises(InvalidEvent, match="missing field `id`"):
        parse_event({})


@pytest.mark.parametrize("obj", [None, True, 1, "x", [], [GOOD]])
def test_not_an_object(obj):
    with pytest.raises(InvalidEvent, match="expected an object"):
        parse_event(obj)


UNSIGNED = "created_at must be an unsigned 64-bit integer"
KIND = "kind must be an integer between 0 and 65535"
TAG = "a tag must be an array of strings"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("id", "abc", "Invalid event ID"),
        ("id", None, "Invalid event ID"),
        ("id", "g" * 64, "Invalid event ID"),
        ("id", "note1qqqq", "Invalid event ID"),
        ("pubkey", "ff" * 32, "Invalid public key"),
        ("pubkey", 5, "Invalid public key"),
        ("pubkey", nip19.encode_note("00" * 32), "Invalid public key"),
        ("created_at", -1, UNSIGNED),
        ("created_at", 1.0, UNSIGNED),
        ("created_at", "1", UNSIGNED),
        ("created_at", True, UNSIGNED),
        ("created_at", None, UNSIGNED),
        ("created_at", UINT64_MAX + 1, UNSIGNED),
        ("created_at", 10**100, UNSIGNED),
        ("kind", -1, KIND),
        ("kind", 65536, KIND),
        ("kind", 9.0, KIND),
        ("kind", False, KIND),
        ("kind", "9", KIND),
        ("tags", None, "tags must be an array"),
        ("tags", {}, "tags must be an array"),
        ("tags", ["h"], TAG),
        ("tags", [[]], "Empty tag"),
        ("tags", [["h"], []], "Empty tag"),
        ("tags", [["h", None]], TAG),
        ("tags", [["h", 1]], TAG),
        ("tags", [[["h"]]], TAG),
        ("content", None, "content must be a string"),
        ("content", {}, "content must be a string"),
        ("sig", "00" * 63, "malformed signature"),
        ("sig", "zz" * 64, "malformed signature"),
        ("sig", " " * 128, "malformed signature"),
        ("sig", 0, "malformed signature"),
    ],
)
def test_wrong_shape(field, value, reason):
    with pytest.raises(InvalidEvent) as caught:
        parse_event(changed(**{field: value}))
    assert caught.value.reason == reason
    assert isinstance(caught.value, ProtocolError)


@pytest.mark.parametrize(
    ("field", "value"), [("created_at", 0), ("created_at", UINT64_MAX), ("kind", 0), ("kind", 65535)]
)
def test_the_edges_are_inside(field, value):
    assert getattr(parse_event(changed(**{field: value})), field) == value


def test_nul_characters_are_text():
    signed = event(content="a\0b", tags=[["t", "\0"]])
    parsed = parse_event(orjson.loads(signed.json))
    verify(parsed)
    assert parsed.content == "a\0b"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(GOOD)), JSON) | JSON)
def test_any_json_is_an_event_or_invalid(obj):
    candidate = {**GOOD, **obj} if isinstance(obj, dict) else obj
    try:
        parsed = parse_event(candidate)
    except InvalidEvent:
        return
    assert orjson.loads(parsed.json) == {key: candidate[key] for key in GOOD}


# --- canonical form, id, signature ------------------------------------------------------------------------------------


def standard_library_canonical(one):
    fields = [0, one.pubkey, one.created_at, one.kind, one.tags, one.content]
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


@given(st.integers(0, UINT64_MAX), st.integers(0, 65535), TAGS, TEXT)
def test_canonical_is_what_the_standard_library_writes(created_at, kind, tags, content):
    one = Event("", ALICE.public_hex, created_at, kind, tags, content, "")
    assert canonical(one) == standard_library_canonical(one)
    assert compute_id(one) == sha256(standard_library_canonical(one)).hexdigest()


@pytest.mark.parametrize("code", [*range(0x21), 0x22, 0x2F, 0x5C, 0x7F, 0x80, 0x2028, 0xFFFF, 0x1F600])
def test_every_control_character_alone(code):
    one = Event("", ALICE.public_hex, 1, 1, [[chr(code)]], chr(code), "")
    assert canonical(one) == standard_library_canonical(one)


@given(st.integers(0, UINT64_MAX), st.integers(0, 65535), TAGS, TEXT, st.sampled_from([ALICE, BOB]))
def test_sign_write_read_verify(created_at, kind, tags, content, secret):
    signed = sign_event(secret, created_at=created_at, kind=kind, tags=tags, content=content)
    again = parse_event(json.loads(signed.json))
    verify(again)
    assert again == signed
    assert again.json == signed.json
    assert (again.pubkey, again.tags, again.content) == (secret.public_hex, tags, content)


def test_signing_is_repeatable():
    assert event().json == event().json


def test_json_has_the_seven_fields_in_order():
    signed = event()
    assert list(orjson.loads(signed.json)) == ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"]
    assert signed.json.startswith(b'{"id":"' + signed.id.encode() + b'","pubkey":"')
    assert signed.json is signed.json


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("created_at", 1),
        ("kind", 10),
        ("tags", []),
        ("content", "hellp"),
        ("pubkey", BOB.public_hex),
        ("id", "00" * 32),
    ],
)
def test_a_changed_field_breaks_the_id(field, value):
    forged = parse_event(changed(**{field: value}))
    with pytest.raises(InvalidEvent) as caught:
        verify(forged)
    assert caught.value.reason == f"invalid event id: computed {compute_id(forged)}, got {forged.id}"


def test_a_foreign_signature_is_noticed():
    forged = parse_event(changed(sig=event(BOB).sig))
    with pytest.raises(InvalidEvent) as caught:
        verify(forged)
    assert caught.value.reason == "invalid schnorr signature"


def test_a_right_id_under_another_key_is_noticed():
    stolen = Event("", BOB.public_hex, 1, 1, [], "hello", GOOD["sig"])
    stolen.id = compute_id(stolen)
    with pytest.raises(InvalidEvent, match="invalid schnorr signature"):
        verify(stolen)


def test_the_id_is_checked_before_the_signature():
    with pytest.raises(InvalidEvent, match="invalid event id"):
        verify(parse_event(changed(id="00" * 32, sig="00" * 64)))


def test_half_a_surrogate_pair_is_refused():
    for fields in ({"content": "\ud800"}, {"tags": [["t", "\udfff"]]}):
        with pytest.raises(InvalidEvent, match="valid Unicode"):
            verify(parse_event(changed(**fields)))
    with pytest.raises(InvalidEvent, match="valid Unicode"):
        sign_event(ALICE, created_at=1, kind=1, tags=[], content="\ud800")


# --- helpers ----------------------------------------------------------------------------------------------------------


def tagged(*tags):
    return Event("00" * 32, ALICE.public_hex, 1, 1, [list(tag) for tag in tags], "", "")


def test_tag_values_and_first_tag():
    one = tagged(("t",), ("t", "a", "x"), ("T", "no"), ("t", ""), ("t", "a"))
    assert one.tag_values("t") == ["a", "", "a"]
    assert one.first_tag("t") == "a"
    assert one.first_tag("T") == "no"
    assert one.first_tag("x") is None
    assert one.tag_values("x") == []


def test_tag_index_knows_names_without_values():
    one = tagged(("h",), ("t", "a", "not a value"), ("t", "b"), ("t",))
    assert one.tag_index == {"h": set(), "t": {"a", "b"}}
    assert one.tag_index is one.tag_index


def test_p_tags_are_valid_lowered_and_each_once():
    key, other = BOB.public_hex, ALICE.public_hex
    one = tagged(("p", key.upper()), ("p", "short"), ("p",), ("p", other, "relay"), ("p", key), ("e", "00" * 32))
    assert one.p_tags() == [key, other]
    assert one.hex64_values("p") == [key, other, key]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], None),
        ([("h",)], None),
        ([("h", "general")], None),
        ([("H", CHANNEL)], None),
        ([("h", CHANNEL)], CHANNEL),
        ([("h", "{" + CHANNEL.upper() + "}")], CHANNEL),
        ([("h", "general"), ("h", OTHER_CHANNEL), ("h", CHANNEL)], OTHER_CHANNEL),
    ],
)
def test_channel_id_is_the_first_that_parses(tags, expected):
    assert tagged(*tags).channel_id() == expected


def test_equality_is_of_all_fields():
    one, same, other = event(), event(), event(content="other")
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != one.json
    same.sig = "00" * 64
    same._json = None
    assert one != same


def test_repr_names_the_event_and_not_its_text():
    one = event(content="between us")
    assert one.id in repr(one)
    assert "between us" not in repr(one)


def test_load_event_takes_its_own_writing_back():
    signed = event(tags=[["h", CHANNEL]])
    loaded = load_event(signed.json)
    assert loaded == signed
    assert loaded.json is signed.json
    verify(loaded)


def test_keys_made_elsewhere_sign_too():
    secret = SecretKey.from_hex("0f" * 32)
    verify(event(secret))
