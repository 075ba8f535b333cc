"""NIP-42: each check alone, their order, and which addresses are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ProtocolError
from relay.nostr.event import sign_event
from relay.nostr.nip42 import AuthCause, AuthRefused, auth_token, normalise_url, verify_auth
from tests.nostr.people import ALICE, BOB

NOW = 1_700_000_000
CHALLENGE = "c0ffee" * 10
URL = "wss://relay.example"


def proof(*, kind=22242, challenge=CHALLENGE, relay=URL, created_at=NOW, extra=()):
    tags = [["relay", relay], ["challenge", challenge], *extra]
    return sign_event(ALICE, created_at=created_at, kind=kind, tags=tags, content="")


def check(event, now=NOW):
    verify_auth(event, challenge=CHALLENGE, relay_url=URL, now=now)


def refusal(event, now=NOW):
    with pytest.raises(AuthRefused) as caught:
        check(event, now)
    assert isinstance(caught.value, ProtocolError)
    return caught.value.cause


def test_a_fresh_proof_is_accepted():
    check(proof())
    check(proof(relay="WSS://Relay.Example:443/"))


def test_content_does_not_matter():
    tags = [["challenge", CHALLENGE], ["relay", URL]]
    check(sign_event(BOB, created_at=NOW, kind=22242, tags=tags, content="anything"))


@pytest.mark.parametrize("kind", [1, 22241, 27235])
def test_wrong_kind(kind):
    assert refusal(proof(kind=kind)) is AuthCause.INVALID_SIGNATURE


def test_wrong_signature_and_wrong_id():
    for field in ("sig", "id"):
        forged = proof()
        setattr(forged, field, getattr(proof(challenge="other"), field))
        assert refusal(forged) is AuthCause.INVALID_SIGNATURE


def test_challenge():
    assert refusal(proof(challenge=CHALLENGE.upper())) is AuthCause.CHALLENGE_MISMATCH
    assert refusal(proof(challenge="")) is AuthCause.CHALLENGE_MISMATCH
    # Only the first tag counts: a list of guesses is no proof.
    assert refusal(proof(challenge="guess", extra=[["challenge", CHALLENGE]])) is AuthCause.CHALLENGE_MISMATCH
    bare = sign_event(ALICE, created_at=NOW, kind=22242, tags=[["relay", URL]], content="")
    assert refusal(bare) is AuthCause.CHALLENGE_MISMATCH


def test_relay():
    assert refusal(proof(relay="wss://evil.example")) is AuthCause.RELAY_URL_MISMATCH
    assert refusal(proof(relay="ws://relay.example")) is AuthCause.RELAY_URL_MISMATCH
    assert refusal(proof(relay="wss://evil.example", extra=[["relay", URL]])) is AuthCause.RELAY_URL_MISMATCH
    bare = sign_event(ALICE, created_at=NOW, kind=22242, tags=[["challenge", CHALLENGE]], content="")
    assert refusal(bare) is AuthCause.RELAY_URL_MISMATCH


@pytest.mark.parametrize("skew", [-60, 0, 60])
def test_a_minute_either_way_is_fresh(skew):
    check(proof(created_at=NOW + skew))


@pytest.mark.parametrize("skew", [-61, 61, -NOW, 2**40])
def test_more_than_a_minute_is_not(skew):
    assert refusal(proof(created_at=NOW + skew)) is AuthCause.EVENT_EXPIRED


def test_the_clock_may_have_fractions():
    check(proof(), now=NOW + 60.0)
    assert refusal(proof(), now=NOW + 60.5) is AuthCause.EVENT_EXPIRED


def test_checks_come_in_their_order():
    wrong = {"challenge": "x", "relay": "wss://evil.example", "created_at": 1}
    assert refusal(proof(kind=1, **wrong)) is AuthCause.INVALID_SIGNATURE
    assert refusal(proof(**wrong)) is AuthCause.CHALLENGE_MISMATCH
    del wrong["challenge"]
    assert refusal(proof(**wrong)) is AuthCause.RELAY_URL_MISMATCH
    del wrong["relay"]
    assert refusal(proof(**wrong)) is AuthCause.EVENT_EXPIRED


def test_an_empty_challenge_is_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        verify_auth(proof(challenge=""), challenge="", relay_url=URL, now=NOW)


def test_auth_token():
    assert auth_token(proof()) is None
    assert (
        auth_token(proof(extra=[["auth_token"], ["auth_token", "sprout_1"], ["auth_token", "sprout_2"]])) == "sprout_1"
    )


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("wss://relay.example", "wss://relay.example/"),
        ("wss://relay.example", "WSS://RELAY.EXAMPLE:443//"),
        ("ws://relay.example:80/path/", "ws://relay.example/path"),
        ("http://relay.example:80", "http://relay.example"),
        ("https://relay.example:443/x", "https://relay.example/x"),
        ("ws://localhost:3000", "ws://127.0.0.1:3000/"),
        ("ws://LocalHost:3000", "ws://[::1]:3000"),
        ("ws://[0:0:0:0:0:0:0:1]", "ws://127.0.0.1"),
        ("ws://[2001:DB8::0:1]:3000", "ws://[2001:db8:0::1]:3000/"),
        ("wss://bücher.example", "wss://xn--bcher-kva.example"),
        ("wss://user@relay.example:443", "wss://user@relay.example"),
    ],
)
def test_the_same_address(one, other):
    assert normalise_url(one) == normalise_url(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ws://relay.example", "wss://relay.example"),
        ("ws://relay.example", "ws://relay.example:443"),
        ("wss://relay.example", "wss://relay.example:80"),
        ("wss://relay.example", "wss://relay.example.evil"),
        ("wss://relay.example", "wss://relay.example@evil.example"),
        ("wss://relay.example/a", "wss://relay.example/A"),
        ("wss://relay.example", "wss://relay.example?team=1"),
        ("wss://relay.example?team=1", "wss://relay.example?team=2"),
        ("ws://[::1]:3000", "ws://[::2]:3000"),
        ("wss://relay.example", "relay.example"),
        ("wss://relay.example", ""),
    ],
)
def test_another_address(one, other):
    assert normalise_url(one) != normalise_url(other)


def test_the_query_stays():
    assert normalise_url("WS://LocalHost/?A=B") == "ws://127.0.0.1?A=B"


@pytest.mark.parametrize(
    "url",
    ["", "relay.example", "/path/", "wss:///path/", "ws://[::1", "ws://host:99999", "ws://host:port/", "ws://é..x/"],
)
def test_what_cannot_be_parsed_stays_as_it_is(url):
    assert normalise_url(url) == url


@given(st.text() | st.text(alphabet="ws:/[]@?#é.1-%").map(lambda text: "ws://" + text))
def test_any_text_has_one_normal_form(url):
    assert normalise_url(normalise_url(url)) == normalise_url(url)
