"""The information document: its shape byte for byte, and that its numbers are the enforced ones."""

from __future__ import annotations

import json

import pytest

from relay.nostr.messages import FILTERS_MAX, SUB_ID_BYTES_MAX, InvalidMessage, parse_client_message
from relay.nostr.nip11 import SUPPORTED_NIPS, Limits, Rates, document

TEXTS = {"name": "A relay", "description": "For one team", "version": "0.1.0", "software": "https://example.org/relay"}


def test_default_document_word_for_word():
    assert document(**TEXTS, limits=Limits()) == (
        b'{"name":"A relay","description":"For one team","pubkey":null,"contact":null,'
        b'"supported_nips":[1,2,9,10,11,16,17,23,25,29,33,40,42,45,50,59,70],'
        b'"software":"https://example.org/relay","version":"0.1.0",'
        b'"limitation":{"max_message_length":131072,"max_subscriptions":1024,"max_filters":10,"max_limit":10000,'
        b'"default_limit":500,"max_subid_length":256,"max_content_length":262144,"min_pow_difficulty":null,'
        b'"auth_required":true,"payment_required":false,"restricted_writes":true,"created_at_lower_limit":900,'
        b'"created_at_upper_limit":900,"created_at_lower_limit_exempt_kinds":[1059]}}'
    )


def test_keys_and_contact():
    fields = json.loads(document(**TEXTS, limits=Limits(), pubkey="aa", self_key="bb", contact="mailto:x@example.org"))
    assert (fields["pubkey"], fields["self"], fields["contact"]) == ("aa", "bb", "mailto:x@example.org")
    assert list(fields)[:4] == ["name", "description", "pubkey", "self"]


def test_without_a_stable_key_there_is_no_self():
    assert "self" not in json.loads(document(**TEXTS, limits=Limits()))


def test_limits_are_arguments():
    fields = json.loads(document(**TEXTS, limits=Limits(max_subscriptions=7, max_message_length=9)))
    assert fields["limitation"]["max_subscriptions"] == 7
    assert fields["limitation"]["max_message_length"] == 9


def test_rates_stand_under_a_key_of_our_own():
    rates = Rates(messages_per_connection=5, events_per_key=4, requests_per_key=3)
    fields = json.loads(document(**TEXTS, limits=Limits(), rates=rates))
    assert fields["rates_per_minute"] == {
        "messages_per_connection": 5,
        "events_per_key": 4,
        "requests_per_key": 3,
        "connections_per_address": None,
    }
    assert "rates_per_minute" not in json.loads(document(**TEXTS, limits=Limits()))


def test_nips_are_sorted_and_each_once():
    fields = json.loads(document(**TEXTS, limits=Limits(), supported_nips=[50, 1, 42, 1]))
    assert fields["supported_nips"] == [1, 42, 50]
    assert list(SUPPORTED_NIPS) == sorted(set(SUPPORTED_NIPS))
    assert {23, 33} <= set(SUPPORTED_NIPS)


def test_the_advertised_limits_hold():
    limits = Limits()
    assert (limits.max_filters, limits.max_subid_length) == (FILTERS_MAX, SUB_ID_BYTES_MAX)
    parse_client_message(json.dumps(["REQ", "x" * limits.max_subid_length, *[{}] * limits.max_filters]))
    for beyond in (["REQ", "x" * (limits.max_subid_length + 1)], ["REQ", "x", *[{}] * (limits.max_filters + 1)]):
        with pytest.raises(InvalidMessage):
            parse_client_message(json.dumps(beyond))
