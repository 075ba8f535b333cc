"""NIP-98: each check alone, their order, which addresses are the same, and what a header may hold."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from hashlib import sha256

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ProtocolError
from relay.nostr import nip98
from relay.nostr.event import sign_event
from relay.nostr.nip98 import Nip98Cause, Nip98Refused, canonical_url
from tests.nostr.people import ALICE

NOW = 1_700_000_000
URL = "https://relay.example/query"
BODY = b'[{"kinds":[1]}]'
HASH = sha256(BODY).hexdigest()


def proof(*, kind=27235, u=URL, method="POST", created_at=NOW, extra=()):
    tags = [["u", u], ["method", method], *extra]
    return sign_event(ALICE, created_at=created_at, kind=kind, tags=tags, content="")


def bare(*tags):
    return sign_event(ALICE, created_at=NOW, kind=27235, tags=list(tags), content="")


def header(event):
    return "Nostr " + b64encode(event.json).decode()


def check(event, *, url=URL, method="POST", body=BODY, now=NOW, payload_required=False):
    nip98.verify(event, url=url, method=method, body=body, now=now, payload_required=payload_required)


def refusal(event, **changes):
    with pytest.raises(Nip98Refused) as caught:
        check(event, **changes)
    assert isinstance(caught.value, ProtocolError)
    return caught.value.cause


# -- the header --------------------------------------------------------------------------------------------------------


def test_a_header_gives_its_event_with_and_without_the_scheme():
    event = proof()
    assert nip98.parse(header(event)) == event
    assert nip98.parse(header(event).removeprefix("Nostr ")) == event
    assert nip98.parse("Nostr  " + b64encode(event.json).decode() + " ") == event


@pytest.mark.parametrize(
    "text", ["Nostr é", "Nostr a", "Nostr a=b=", "Nostr {}", "Nostr !!!!", "Nostr e30", "Nostr e3\n0="]
)
def test_what_is_no_base64(text):
    with pytest.raises(Nip98Refused) as caught:
        nip98.parse(text)
    assert caught.value.cause is Nip98Cause.NOT_BASE64


def test_the_alphabet_is_the_standard_one():
    """An event whose base64 differs in the two alphabets."""
    event = next(
        each
        for number in range(64)
        if b64encode((each := proof(extra=[["nonce", "?" * number + "~>"]])).json) != urlsafe_b64encode(each.json)
    )
    assert nip98.parse(header(event)) == event
    with pytest.raises(Nip98Refused) as caught:
        nip98.parse("Nostr " + urlsafe_b64encode(event.json).decode())
    assert caught.value.cause is Nip98Cause.NOT_BASE64


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 3000, b'{"id":1}'])
def test_what_is_no_event(content):
    with pytest.raises(Nip98Refused) as caught:
        nip98.parse("Nostr " + b64encode(content).decode())
    assert caught.value.cause is Nip98Cause.NOT_AN_EVENT


@given(st.text() | st.binary().map(lambda raw: b64encode(raw).decode()))
def test_no_header_raises_anything_else(text):
    with pytest.raises(Nip98Refused):
        nip98.parse(text)


# -- the checks --------------------------------------------------------------------------------------------------------


def test_a_fresh_proof_is_accepted():
    check(proof())
    check(proof(extra=[["payload", HASH], ["nonce", "1"]]), payload_required=True)


@pytest.mark.parametrize("kind", [1, 22242, 27234])
def test_wrong_kind(kind):
    assert refusal(proof(kind=kind)) is Nip98Cause.WRONG_KIND


def test_wrong_signature_and_wrong_id():
    for field in ("sig", "id"):
        forged = proof()
        setattr(forged, field, getattr(proof(method="PUT"), field))
        assert refusal(forged) is Nip98Cause.INVALID_SIGNATURE
    changed = orjson.loads(proof().json) | {"created_at": NOW + 1}
    assert refusal(nip98.parse(b64encode(orjson.dumps(changed)).decode())) is Nip98Cause.INVALID_SIGNATURE


@pytest.mark.parametrize("away", [-60, 60, 0])
def test_a_minute_to_either_side(away):
    check(proof(created_at=NOW + away))


@pytest.mark.parametrize("away", [-61, 61, -NOW, 2**63])
def test_more_than_a_minute(away):
    assert refusal(proof(created_at=NOW + away)) is Nip98Cause.EXPIRED


def test_fractions_of_a_second_count():
    assert refusal(proof(), now=NOW + 60.001) is Nip98Cause.EXPIRED
    check(proof(), now=NOW + 59.999)


def test_an_event_is_never_good_for_longer_than_said():
    """What a cache of used events relies on."""
    event = proof()
    good = [second for second in range(NOW - 200, NOW + 200) if abs(second - event.created_at) <= 60]
    assert good[-1] - good[0] == nip98.VALID_SECONDS
    check(event, now=good[0])
    check(event, now=good[-1])


@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("HTTPS://Relay.Example/query", URL),
        ("https://relay.example:443/query", URL),
        ("https://relay.example/query/", URL),
        (URL, "https://relay.example:443/query//"),
        ("http://localhost:3000/query", "http://127.0.0.1:3000/query"),
        ("http://[::1]:3000/query", "http://localhost:3000/query"),
        ("http://localhost:80/query", "http://[::1]/query"),
        ("https://relay.example/query?a=1&b", "https://relay.example/query?a=1&b"),
    ],
)
def test_spellings_of_the_same_address(named, url):
    check(proof(u=named), url=url)


@pytest.mark.parametrize(
    "named",
    [
        "http://relay.example/query",
        "wss://relay.example/query",
        "https://relay.example/count",
        "https://relay.example/Query",
        "https://relay.example",
        "https://relay.example:8443/query",
        "https://other.example/query",
        "https://relay.example.evil.example/query",
        "https://relay.example@evil.example/query",
        "https://user@relay.example/query",
        "https://relay.example/query?",
        "https://relay.example/query?limit=1",
        "https://relay.example/query#part",
        "https://relay.example/%71uery",
        "https://relay.example/a/../query",
        "/query",
        "query",
        "",
        "https://[::1/query",
        "https://relay.example:port/query",
    ],
)
def test_other_addresses(named):
    if named == "https://relay.example/query?":
        # An empty query says nothing; urllib cannot even tell it from none.
        check(proof(u=named))
    else:
        assert refusal(proof(u=named)) is Nip98Cause.URL_MISMATCH


def test_a_query_string_must_be_signed():
    assert refusal(proof(), url=URL + "?a=1") is Nip98Cause.URL_MISMATCH
    assert refusal(proof(u=URL + "?a=1"), url=URL + "?a=2") is Nip98Cause.URL_MISMATCH


def test_only_the_first_tag_of_a_name_counts():
    assert refusal(bare(["u", "https://a"], ["u", URL], ["method", "POST"])) is Nip98Cause.URL_MISMATCH
    assert refusal(bare(["u", URL], ["method", "GET"], ["method", "POST"])) is Nip98Cause.METHOD_MISMATCH
    twice = bare(["u", URL], ["method", "POST"], ["payload", "00" * 32], ["payload", HASH])
    assert refusal(twice) is Nip98Cause.PAYLOAD_MISMATCH


def test_without_the_tags():
    assert refusal(bare(["method", "POST"])) is Nip98Cause.URL_MISMATCH
    assert refusal(bare(["u"], ["method", "POST"])) is Nip98Cause.URL_MISMATCH
    assert refusal(bare(["u", URL])) is Nip98Cause.METHOD_MISMATCH
    assert refusal(bare(["u", URL], ["method", ""])) is Nip98Cause.METHOD_MISMATCH


@pytest.mark.parametrize("method", ["POST", "post", "Post"])
def test_the_case_of_the_method_does_not_matter(method):
    check(proof(method=method))
    check(proof(method="GET"), method="get", body=None)


@pytest.mark.parametrize("method", ["GET", "POST ", "PUT", "POS"])
def test_other_methods(method):
    assert refusal(proof(method=method)) is Nip98Cause.METHOD_MISMATCH


def test_payload():
    good = proof(extra=[["payload", HASH]])
    check(good)
    check(good, payload_required=True)
    assert refusal(good, body=BODY + b" ") is Nip98Cause.PAYLOAD_MISMATCH
    assert refusal(good, body=b"") is Nip98Cause.PAYLOAD_MISMATCH
    check(proof(extra=[["payload", sha256(b"").hexdigest()]]), body=b"", payload_required=True)
    # Hex in capitals, or nothing at all: not the hash.
    assert refusal(proof(extra=[["payload", HASH.upper()]])) is Nip98Cause.PAYLOAD_MISMATCH
    assert refusal(proof(extra=[["payload", ""]])) is Nip98Cause.PAYLOAD_MISMATCH


def test_where_no_body_can_be_a_payload_says_nothing():
    check(proof(method="GET", extra=[["payload", HASH]]), method="GET", body=None)


def test_a_missing_payload_is_the_last_thing_to_be_said():
    assert refusal(proof(), payload_required=True) is Nip98Cause.PAYLOAD_MISSING
    assert refusal(proof(extra=[["payload"]]), payload_required=True) is Nip98Cause.PAYLOAD_MISSING
    assert refusal(proof(method="GET"), payload_required=True) is Nip98Cause.METHOD_MISMATCH


def test_the_order_of_the_checks():
    event = bare(["payload", "x"])
    event.created_at += 1000
    event.kind = 1
    assert refusal(event) is Nip98Cause.WRONG_KIND
    event.kind = 27235
    assert refusal(event) is Nip98Cause.INVALID_SIGNATURE
    old = sign_event(ALICE, created_at=NOW - 100, kind=27235, tags=[], content="")
    assert refusal(old) is Nip98Cause.EXPIRED
    assert refusal(old, now=NOW - 100) is Nip98Cause.URL_MISMATCH


# -- the address -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relay_url", "url"),
    [
        ("wss://relay.example", "https://relay.example/query"),
        ("WSS://relay.example/", "https://relay.example/query"),
        ("ws://localhost:3000", "http://localhost:3000/query"),
        ("ws://localhost:3000//", "http://localhost:3000/query"),
        ("wss://relay.example/team", "https://relay.example/team/query"),
        ("https://relay.example", "https://relay.example/query"),
    ],
)
def test_the_address_of_a_route(relay_url, url):
    assert canonical_url(relay_url, "/query") == url
    assert canonical_url(relay_url, "/query?a=1") == url + "?a=1"
