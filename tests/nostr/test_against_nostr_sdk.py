"""A second implementation as oracle: the Rust library that most Nostr clients are built on."""

from __future__ import annotations

import nostr_sdk
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.nostr import nip19
from relay.nostr.event import InvalidEvent, canonical, parse_event, sign_event, verify
from relay.nostr.filter import matches, parse_filter
from relay.nostr.ids import parse_pubkey
from relay.nostr.keys import SecretKey, verify_schnorr
from relay.nostr.messages import AuthMessage, CloseMessage, EventMessage, ReqMessage, parse_client_message
from tests.nostr.people import ALICE, BOB, CAROL, CHANNEL, event

SECRETS = st.integers(1, 2**128).map(lambda number: SecretKey.from_bytes(number.to_bytes(32, "big")))
TAGS = st.lists(st.lists(st.text(max_size=20), min_size=1, max_size=3), max_size=3)
HEX64 = st.binary(min_size=32, max_size=32).map(bytes.hex)


# --- events -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(SECRETS, st.integers(0, 2**40), st.integers(0, 65535), TAGS, st.text())
def test_what_we_sign_they_verify(secret, created_at, kind, tags, content):
    signed = sign_event(secret, created_at=created_at, kind=kind, tags=tags, content=content)
    theirs = nostr_sdk.Event.from_json(signed.json.decode())
    assert theirs.verify()
    assert theirs.author().to_hex() == secret.public_hex
    assert theirs.content() == content


@settings(max_examples=50)
@given(SECRETS, st.integers(0, 2**40), st.integers(0, 65535), TAGS, st.text())
def test_what_they_sign_we_verify(secret, created_at, kind, tags, content):
    keys = nostr_sdk.Keys.parse(secret.to_bytes().hex())
    unsigned = {"pubkey": secret.public_hex, "created_at": created_at, "kind": kind, "tags": tags, "content": content}
    theirs = nostr_sdk.UnsignedEvent.from_json(orjson.dumps(unsigned).decode())
    theirs = theirs.ensure_id()
    ours = sign_event(secret, created_at=created_at, kind=kind, tags=tags, content=content)
    assert theirs.id().to_hex() == ours.id
    signature = keys.sign_schnorr(bytes.fromhex(ours.id))
    verify(parse_event({**unsigned, "id": ours.id, "sig": signature}))


def test_keys_agree():
    for secret in (ALICE, BOB, CAROL):
        assert nostr_sdk.Keys.parse(secret.to_bytes().hex()).public_key().to_hex() == secret.public_hex


def test_both_refuse_a_forgery():
    forged = orjson.loads(event().json) | {"content": "forged"}
    assert not nostr_sdk.Event.from_json(orjson.dumps(forged).decode()).verify()
    with pytest.raises(InvalidEvent):
        verify(parse_event(forged))


def test_signature_of_their_random_nonce_verifies():
    digest = bytes(range(32))
    signature = nostr_sdk.Keys.parse(ALICE.to_bytes().hex()).sign_schnorr(digest)
    assert verify_schnorr(ALICE.public_hex, digest, bytes.fromhex(signature))
    assert signature != ALICE.sign(digest)


def test_canonical_bytes_hash_to_their_id():
    tricky = event(content="".join(map(chr, range(0x80))) + "\u2028\u2029é😀", tags=[['"', "\\", "\x00\x1f\x7f"]])
    assert nostr_sdk.Event.from_json(tricky.json.decode()).id().to_hex() == tricky.id
    assert canonical(tricky).startswith(b'[0,"')


# --- identifiers ------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(SECRETS, HEX64)
def test_plain_identifiers_agree(secret, event_id):
    assert nostr_sdk.PublicKey.parse(secret.public_hex).to_bech32() == nip19.encode_npub(secret.public_hex)
    assert nostr_sdk.SecretKey.parse(secret.to_bytes().hex()).to_bech32() == nip19.encode_nsec(secret.to_bytes().hex())
    assert nostr_sdk.EventId.parse(event_id).to_bech32() == nip19.encode_note(event_id)


RELAYS = ["wss://relay.example", "ws://127.0.0.1:3000"]


def theirs_of(urls):
    return [nostr_sdk.RelayUrl.parse(url) for url in urls]


def trimmed(relays):
    """Their URL type writes the path of a bare host as `/`."""
    return tuple(str(relay).rstrip("/") for relay in relays)


@pytest.mark.parametrize("relays", [[], RELAYS[:1], RELAYS])
def test_profiles_agree(relays):
    key = nostr_sdk.PublicKey.parse(ALICE.public_hex)
    prefix, ours = nip19.decode(nostr_sdk.Nip19Profile(key, theirs_of(relays)).to_bech32())
    assert prefix == "nprofile"
    assert isinstance(ours, nip19.Profile)
    assert (ours.pubkey, trimmed(ours.relays)) == (ALICE.public_hex, tuple(relays))
    theirs = nostr_sdk.Nip19Profile.from_bech32(nip19.encode(nip19.Profile(ALICE.public_hex, tuple(relays))))
    assert theirs.public_key().to_hex() == ALICE.public_hex
    assert len(theirs.relays()) == len(relays)


@pytest.mark.parametrize(("author", "kind"), [(None, None), (BOB.public_hex, 9), (BOB.public_hex, 40002)])
def test_events_agree(author, kind):
    pointer = nip19.EventPointer("0a" * 32, tuple(RELAYS), author, kind)
    theirs = nostr_sdk.Nip19Event.from_bech32(nip19.encode(pointer))
    assert theirs.event_id().to_hex() == pointer.id
    assert (theirs.author() and theirs.author().to_hex()) == author
    assert (theirs.kind() and theirs.kind().as_u16()) == kind
    _, ours = nip19.decode(theirs.to_bech32())
    assert isinstance(ours, nip19.EventPointer)
    assert (ours.id, trimmed(ours.relays), ours.author, ours.kind) == (pointer.id, pointer.relays, author, kind)


def test_addresses_agree():
    address = nip19.Address("my article", ALICE.public_hex, 30023, (RELAYS[0],))
    theirs = nostr_sdk.Nip19Coordinate.from_bech32(nip19.encode(address))
    coordinate = theirs.coordinate()
    assert (coordinate.identifier(), coordinate.kind().as_u16()) == ("my article", 30023)
    assert coordinate.public_key().to_hex() == ALICE.public_hex
    _, ours = nip19.decode(theirs.to_bech32())
    assert isinstance(ours, nip19.Address)
    assert (ours.identifier, ours.pubkey, ours.kind) == (address.identifier, address.pubkey, address.kind)


def test_the_same_spellings_of_a_key_are_read():
    key = nostr_sdk.PublicKey.parse(ALICE.public_hex)
    profile = nostr_sdk.Nip19Profile(key, theirs_of(RELAYS))
    spellings = [key.to_hex(), key.to_bech32(), key.to_nostr_uri(), profile.to_bech32(), profile.to_nostr_uri()]
    for text in spellings:
        assert nostr_sdk.PublicKey.parse(text).to_hex() == parse_pubkey(text) == ALICE.public_hex


# --- filters and messages ---------------------------------------------------------------------------------------------

NAMES = [ALICE.public_hex, BOB.public_hex, CAROL.public_hex]
# Their empty lists match everything, ours nothing; so no empty lists here. `#h` has its own rule with us.
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "authors": st.lists(st.sampled_from(NAMES), min_size=1, max_size=2),
        "kinds": st.lists(st.integers(1, 3), min_size=1, max_size=2),
        "since": st.integers(1, 4),
        "until": st.integers(1, 4),
        "#t": st.lists(st.sampled_from("abc"), min_size=1, max_size=2),
        "#T": st.lists(st.sampled_from("abc"), min_size=1, max_size=2),
    },
)
PEOPLE = st.sampled_from([ALICE, BOB, CAROL])
LETTER_TAGS = st.lists(st.tuples(st.sampled_from("tTx"), st.sampled_from("abc")).map(list), max_size=3)


@given(FILTERS, PEOPLE, st.integers(1, 4), st.integers(1, 3), LETTER_TAGS)
def test_matching_agrees(wanted, secret, created_at, kind, tags):
    signed = event(secret, created_at=created_at, kind=kind, tags=tags)
    theirs = nostr_sdk.Filter.from_json(orjson.dumps(wanted).decode())
    expected = theirs.match_event(nostr_sdk.Event.from_json(signed.json.decode()))
    assert matches(parse_filter(wanted), signed, None) is expected


def test_their_messages_are_understood():
    signed = event(tags=[["h", CHANNEL]])
    theirs = nostr_sdk.Event.from_json(signed.json.decode())
    wanted = nostr_sdk.Filter.from_json(orjson.dumps({"kinds": [9], "#h": [CHANNEL], "limit": 50}).decode())
    assert parse_client_message(nostr_sdk.ClientMessage.event(theirs).as_json()) == EventMessage(signed)
    assert parse_client_message(nostr_sdk.ClientMessage.auth(theirs).as_json()) == AuthMessage(signed)
    assert parse_client_message(nostr_sdk.ClientMessage.close("s").as_json()) == CloseMessage("s")
    request = parse_client_message(nostr_sdk.ClientMessage.req("s", wanted).as_json())
    assert request == ReqMessage("s", (parse_filter({"kinds": [9], "#h": [CHANNEL], "limit": 50}),))
