"""Filters: parsing, and matching against a slow oracle on the raw JSON that shares no code with the matcher."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ProtocolError
from relay.nostr import nip19
from relay.nostr.event import UINT64_MAX, parse_event
from relay.nostr.filter import (
    Filter,
    InvalidFilter,
    filter_channels,
    matches,
    matches_any,
    p_gate_refused,
    parse_filter,
    subscription_channels,
)
from relay.nostr.ids import parse_uuid
from tests.nostr.people import ALICE, BOB, CAROL, CHANNEL, OTHER_CHANNEL, event

ME, YOU = ALICE.public_hex, BOB.public_hex
IDS = ["0a" * 32, "0b" * 32]
KEYS = [ME, YOU, CAROL.public_hex]

# --- parse ------------------------------------------------------------------------------------------------------------


def test_empty_filter_has_no_conditions():
    assert parse_filter({}) == Filter()


def test_all_fields():
    parsed = parse_filter(
        {
            "ids": IDS,
            "authors": [ME],
            "kinds": [1, 9, 9],
            "since": 1,
            "until": 2,
            "limit": 3,
            "search": "word",
            "#e": ["x"],
            "#H": [],
        }
    )
    assert parsed == Filter(
        ids=frozenset(IDS),
        authors=frozenset([ME]),
        kinds=frozenset([1, 9]),
        since=1,
        until=2,
        limit=3,
        search="word",
        tags={"e": frozenset(["x"]), "H": frozenset()},
    )


def test_null_means_absent():
    keys = ("ids", "authors", "kinds", "since", "until", "limit", "search")
    assert parse_filter(dict.fromkeys(keys)) == Filter()


def test_other_spellings_become_hex():
    parsed = parse_filter(
        {
            "ids": [IDS[0].upper(), nip19.encode_note(IDS[0]), "nostr:" + nip19.encode_note(IDS[1])],
            "authors": [ME.upper(), nip19.encode_npub(ME)],
        }
    )
    assert parsed == Filter(ids=frozenset(IDS), authors=frozenset([ME]))


@pytest.mark.parametrize("key", ["#", "#foo", "#ee", "e", "Kinds", "", "limits"])
def test_unknown_keys_are_ignored(key):
    assert parse_filter({key: 5}) == Filter()


@pytest.mark.parametrize("key", ["#1", "#-", "##", "#é", "# ", "#_"])
def test_tag_name_must_be_a_letter(key):
    with pytest.raises(InvalidFilter) as caught:
        parse_filter({key: ["x"]})
    assert caught.value.reason == "invalid alphabet char"


@pytest.mark.parametrize(
    ("obj", "reason"),
    [
        ([], "expected an object"),
        (None, "expected an object"),
        ("x", "expected an object"),
        ({"ids": ["0a"]}, "Invalid event ID"),
        ({"ids": [1]}, "Invalid event ID"),
        ({"ids": "x"}, "ids must be an array of strings"),
        ({"authors": [ME[:10]]}, "Invalid public key"),
        ({"authors": ["ff" * 32]}, "Invalid public key"),
        ({"authors": {}}, "authors must be an array of strings"),
        ({"kinds": 1}, "kinds must be an array of integers"),
        ({"kinds": [65536]}, "kind must be an integer between 0 and 65535"),
        ({"kinds": [-1]}, "kind must be an integer between 0 and 65535"),
        ({"kinds": [1.0]}, "kind must be an integer between 0 and 65535"),
        ({"kinds": [True]}, "kind must be an integer between 0 and 65535"),
        ({"kinds": [None]}, "kind must be an integer between 0 and 65535"),
        ({"since": -1}, "since must be an unsigned 64-bit integer"),
        ({"until": 1.5}, "until must be an unsigned 64-bit integer"),
        ({"until": "1"}, "until must be an unsigned 64-bit integer"),
        ({"limit": True}, "limit must be an unsigned 64-bit integer"),
        ({"since": UINT64_MAX + 1}, "since must be an unsigned 64-bit integer"),
        ({"search": 1}, "search must be a string"),
        ({"#e": None}, "#e must be an array of strings"),
        ({"#e": "x"}, "#e must be an array of strings"),
        ({"#e": [1]}, "#e must be an array of strings"),
    ],
)
def test_refused(obj, reason):
    with pytest.raises(InvalidFilter) as caught:
        parse_filter(obj)
    assert caught.value.reason == reason
    assert isinstance(caught.value, ProtocolError)


def test_the_edges_are_inside():
    assert parse_filter({"kinds": [0, 65535], "since": 0, "until": UINT64_MAX, "limit": 0}) == Filter(
        kinds=frozenset([0, 65535]), since=0, until=UINT64_MAX, limit=0
    )


# --- match ------------------------------------------------------------------------------------------------------------


def oracle(wanted: dict, present: dict, channel: str | None) -> bool:
    """The rules read one after the other, on plain JSON, over every tag of every value."""
    verdicts = []
    named = [parse_uuid(text) for text in wanted.get("#h", ())]
    if named and None not in named:
        verdicts.append(channel in named)
    for key, value in wanted.items():
        match key:
            case "ids":
                verdicts.append(any(item == present["id"] for item in value))
            case "authors":
                verdicts.append(any(item == present["pubkey"] for item in value))
            case "kinds":
                verdicts.append(any(item == present["kind"] for item in value))
            case "since":
                verdicts.append(not present["created_at"] < value)
            case "until":
                verdicts.append(not present["created_at"] > value)
            case "limit" | "search":
                pass
            case _:
                same_name = [tag for tag in present["tags"] if tag[0] == key[1]]
                if key == "#h" and not same_name:
                    verdicts.append(any(item == channel for item in value))
                else:
                    verdicts.append(any(tag[1:2] == [item] for tag in same_name for item in value))
    return all(verdicts)


VALUES = ["", "a", "b", CHANNEL, OTHER_CHANNEL, CHANNEL.upper()]
EVENTS = st.fixed_dictionaries(
    {
        "id": st.sampled_from(IDS),
        "pubkey": st.sampled_from(KEYS),
        "created_at": st.integers(0, 4),
        "kind": st.integers(0, 3),
        "tags": st.lists(
            st.tuples(st.sampled_from(["h", "H", "p", "e", "ee"]), st.lists(st.sampled_from(VALUES), max_size=2)).map(
                lambda tag: [tag[0], *tag[1]]
            ),
            max_size=4,
        ),
        "content": st.just(""),
        "sig": st.just("00" * 64),
    }
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "ids": st.lists(st.sampled_from(IDS), max_size=2),
        "authors": st.lists(st.sampled_from(KEYS), max_size=3),
        "kinds": st.lists(st.integers(0, 3), max_size=4),
        "since": st.integers(0, 5),
        "until": st.integers(0, 5),
        "limit": st.integers(0, 5),
        "search": st.just("word"),
        **{f"#{letter}": st.lists(st.sampled_from(VALUES), max_size=3) for letter in "hHpe"},
    },
)
EXAMPLE = event(created_at=100, kind=9, tags=[["t", "a"], ["t", "b"], ["e", "c", "x"], ["t"]])
CHANNELS = st.sampled_from([None, CHANNEL, OTHER_CHANNEL])


@given(FILTERS, EVENTS, CHANNELS)
def test_matcher_agrees_with_the_oracle(wanted, present, channel):
    assert matches(parse_filter(wanted), parse_event(present), channel) is oracle(wanted, present, channel)


@given(st.lists(FILTERS, max_size=3), EVENTS, CHANNELS)
def test_one_of_several_filters_suffices(wanted, present, channel):
    filters = [parse_filter(one) for one in wanted]
    expected = [oracle(one, present, channel) for one in wanted]
    assert matches_any(filters, parse_event(present), channel) is any(expected)


# Random filters rarely meet random events in every field; this draws the filter from the event.
@given(EVENTS, CHANNELS, st.data())
def test_a_filter_made_from_the_event_matches(present, channel, data):
    complete = {
        "ids": [present["id"]],
        "authors": [present["pubkey"], ME],
        "kinds": [present["kind"]],
        "since": present["created_at"],
        "until": present["created_at"],
        **{f"#{tag[0]}": [tag[1], "b"] for tag in present["tags"] if len(tag) > 1 and len(tag[0]) == 1},
    }
    keys = data.draw(st.sets(st.sampled_from(list(complete))))
    wanted = parse_filter({key: complete[key] for key in keys})
    assert matches(wanted, parse_event(present), channel)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, True),
        ({"ids": [EXAMPLE.id]}, True),
        ({"ids": IDS}, False),
        ({"authors": [YOU, ME]}, True),
        ({"authors": [YOU]}, False),
        ({"kinds": [1, 9]}, True),
        ({"kinds": [1]}, False),
        ({"since": 100}, True),
        ({"since": 101}, False),
        ({"until": 100}, True),
        ({"until": 99}, False),
        ({"#t": ["x", "a"]}, True),
        ({"#t": ["x", "A"]}, False),
        ({"#T": ["a"]}, False),
        ({"#e": ["x"]}, False),
        ({"#t": ["b"], "kinds": [9], "#e": ["c"]}, True),
        ({"#t": ["b"], "kinds": [9], "#e": ["d"]}, False),
        ({"limit": 0, "search": "nowhere"}, True),
    ],
)
def test_each_condition_alone(wanted, expected):
    assert matches(parse_filter(wanted), EXAMPLE, None) is expected
    assert matches_any([parse_filter({"kinds": []}), parse_filter(wanted)], EXAMPLE, None) is expected


def test_h_tag_of_the_author_wins_over_the_filing():
    wanted = parse_filter({"#h": [CHANNEL]})
    assert matches(wanted, event(tags=[]), CHANNEL)
    assert not matches(wanted, event(tags=[]), OTHER_CHANNEL)
    assert not matches(wanted, event(tags=[]), None)
    assert not matches(wanted, event(tags=[["h", OTHER_CHANNEL]]), CHANNEL)
    assert not matches(wanted, event(tags=[["h", CHANNEL.upper()]]), CHANNEL)
    assert not matches(wanted, event(tags=[["h"]]), CHANNEL)
    assert matches(wanted, event(tags=[["h", "x"], ["h", CHANNEL]]), CHANNEL)


@pytest.mark.parametrize("spelling", [CHANNEL, CHANNEL.upper(), CHANNEL.replace("-", ""), "{" + CHANNEL + "}"])
def test_channels_in_h_ask_for_what_is_filed_there(spelling):
    """Who only mentions a channel, in a further `h` tag or in a global event, has not written in it."""
    mention = event(tags=[["h", OTHER_CHANNEL], ["h", spelling]])
    only, mixed = parse_filter({"#h": [spelling]}), parse_filter({"#h": [spelling, "general"]})
    assert only.channels == {CHANNEL}
    assert mixed.channels is None
    assert matches(only, mention, CHANNEL)
    for elsewhere in (OTHER_CHANNEL, None):
        assert not matches(only, mention, elsewhere)
        assert matches(mixed, mention, elsewhere)


def test_only_h_falls_back_to_the_filing():
    assert not matches(parse_filter({"#H": [CHANNEL]}), event(), CHANNEL)
    assert not matches(parse_filter({"#e": [CHANNEL]}), event(), CHANNEL)


@pytest.mark.parametrize("key", ["ids", "authors", "kinds", "#e", "#h"])
def test_present_but_empty_matches_nothing(key):
    assert not matches(parse_filter({key: []}), event(tags=[["e", "a"], ["h", CHANNEL]]), CHANNEL)


def test_no_filter_matches_nothing():
    assert not matches_any((), event(), None)


# --- what a subscription is about -------------------------------------------------------------------------------------


def parsed(*objects):
    return [parse_filter(obj) for obj in objects]


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([], None),
        ([{}], None),
        ([{"#h": []}], None),
        ([{"#h": ["general"]}], None),
        ([{"#H": [CHANNEL]}], None),
        ([{"#h": [CHANNEL]}], {CHANNEL}),
        ([{"#h": [CHANNEL.upper(), "general"]}], {CHANNEL}),
        ([{"#h": [CHANNEL, OTHER_CHANNEL]}], {CHANNEL, OTHER_CHANNEL}),
        ([{"#h": [CHANNEL]}, {"#h": [OTHER_CHANNEL], "kinds": [9]}], {CHANNEL, OTHER_CHANNEL}),
        ([{"#h": [CHANNEL]}, {"kinds": [9]}], None),
        ([{"kinds": [9]}, {"#h": [CHANNEL]}], None),
    ],
)
def test_subscription_channels(objects, expected):
    assert subscription_channels(parsed(*objects)) == expected


def test_filter_channels_leaves_out_what_is_no_uuid():
    assert filter_channels(parse_filter({"#h": ["x", "{" + CHANNEL + "}"]})) == {CHANNEL}
    assert filter_channels(parse_filter({"#h": ["x"]})) == frozenset()
    assert filter_channels(Filter()) == frozenset()


@pytest.mark.parametrize(
    ("objects", "refused"),
    [
        ([], False),
        ([{}], True),
        ([{"authors": [ME]}], True),
        ([{"#e": ["x"]}], True),
        ([{"kinds": [1]}], False),
        ([{"kinds": []}], False),
        ([{"kinds": [1059]}], True),
        ([{"kinds": [44100]}], True),
        ([{"kinds": [1, 44101]}], True),
        ([{"kinds": [1059], "#p": [ME]}], False),
        ([{"#p": [ME, ME]}], False),
        ([{"#p": []}], True),
        ([{"#p": [YOU]}], True),
        ([{"#p": [ME, YOU]}], True),
        ([{"#p": [ME.upper()]}], True),
        ([{"#P": [ME]}], True),
        ([{"ids": [IDS[0]]}], False),
        ([{"ids": [IDS[0]], "kinds": [1059]}], False),
        ([{"ids": []}], True),
        ([{"kinds": [1]}, {}], True),
        ([{"ids": [IDS[0]]}, {"kinds": [1059], "#p": [YOU]}], True),
    ],
)
def test_p_gate(objects, refused):
    assert p_gate_refused(parsed(*objects), ME) is refused


KINDS_OR_NONE = st.none() | st.lists(st.sampled_from([1, 1059, 44100]), max_size=2)
P_OR_ABSENT = st.none() | st.lists(st.sampled_from([ME, YOU]), max_size=2)


@given(KINDS_OR_NONE, P_OR_ABSENT, st.sampled_from([1059, 44100, 44101]))
def test_what_passes_the_gate_cannot_match_what_is_for_others(kinds, mentions, kind):
    wanted = parse_filter({"kinds": kinds} | ({} if mentions is None else {"#p": mentions}))
    if not p_gate_refused([wanted], ME):
        assert not matches(wanted, event(CAROL, kind=kind, tags=[["p", YOU]]), None)


def test_filters_survive_the_wire():
    obj = {"kinds": [9], "#h": [CHANNEL]}
    assert parse_filter(orjson.loads(orjson.dumps(obj))) == parse_filter(obj)
