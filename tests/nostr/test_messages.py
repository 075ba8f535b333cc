"""Messages: every refusal word for word, and that no input whatever raises anything else."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.errors import ProtocolError
from relay.nostr import messages
from relay.nostr.filter import Filter
from relay.nostr.messages import (
    DEPTH_MAX,
    AuthMessage,
    CloseMessage,
    CountMessage,
    EventMessage,
    InvalidMessage,
    ReqMessage,
    parse_client_message,
)
from tests.nostr.people import CHANNEL, event

EVENT = event(tags=[["h", CHANNEL]])
OBJECT = orjson.loads(EVENT.json)


def wire(*elements):
    return json.dumps(elements)


def detail_of(data):
    with pytest.raises(InvalidMessage) as caught:
        parse_client_message(data)
    return caught.value.detail


# --- what is understood -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (wire("EVENT", OBJECT), EventMessage(EVENT)),
        (wire("EVENT", OBJECT, "more", 1), EventMessage(EVENT)),
        (wire("AUTH", OBJECT), AuthMessage(EVENT)),
        (wire("AUTH", OBJECT, {}), AuthMessage(EVENT)),
        (wire("REQ", "s"), ReqMessage("s", ())),
        (wire("REQ", "s", {}), ReqMessage("s", (Filter(),))),
        (wire("REQ", "s", *[{"kinds": [n]} for n in range(10)]),
         ReqMessage("s", tuple(Filter(kinds=frozenset([n])) for n in range(10)))),
        (wire("REQ", "é" * 128), ReqMessage("é" * 128, ())),
        (wire("REQ", 'a"\\b'), ReqMessage('a"\\b', ())),
        (wire("COUNT", "s"), CountMessage("s", ())),
        (wire("COUNT", "s", {}, {"kinds": [1]}), CountMessage("s", (Filter(), Filter(kinds=frozenset([1]))))),
        (wire("COUNT", "é" * 128), CountMessage("é" * 128, ())),
        (wire("CLOSE", "s"), CloseMessage("s")),
        (wire("CLOSE", ""), CloseMessage("")),
        (wire("CLOSE", "x" * 1000, 1), CloseMessage("x" * 1000)),
        (" [ \"CLOSE\" ,\n\"s\" ] ", CloseMessage("s")),
    ],
)  # fmt: skip
def test_understood_as_text_and_as_bytes(data, expected):
    assert parse_client_message(data) == expected
    assert parse_client_message(data.encode()) == expected


def test_of_a_key_that_comes_twice_the_last_counts():
    data = '["EVENT",' + EVENT.json.decode()[:-1] + ',"content":"forged"}]'
    message = parse_client_message(data)
    assert isinstance(message, EventMessage)
    assert message.event.content == "forged"
    assert message.event.json.count(b'"content"') == 1


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        ("{}", "expected JSON array"),
        ("null", "expected JSON array"),
        ('"EVENT"', "expected JSON array"),
        ("1", "expected JSON array"),
        ("[]", "empty array"),
        ("[1]", "first element must be a string"),
        ('[["EVENT"]]', "first element must be a string"),
        ("[null]", "first element must be a string"),
        ('["event",{}]', "unknown message type: event"),
        ('["count","s",{}]', "unknown message type: count"),
        ('[""]', "unknown message type: "),
        ('["OK"]', "unknown message type: OK"),
        ('["EVENT"]', "EVENT requires event object"),
        ('["EVENT",1]', "invalid event: expected an object"),
        ('["EVENT",{}]', "invalid event: missing field `id`"),
        (wire("EVENT", {**OBJECT, "id": "x"}), "invalid event: Invalid event ID"),
        (wire("EVENT", {**OBJECT, "pubkey": "ff" * 32}), "invalid event: Invalid public key"),
        (wire("EVENT", {**OBJECT, "tags": [[]]}), "invalid event: Empty tag"),
        (wire("EVENT", {**OBJECT, "kind": 65537}), "invalid event: kind must be an integer between 0 and 65535"),
        ('["AUTH"]', "AUTH requires event object"),
        ('["AUTH","challenge"]', "invalid auth event: expected an object"),
        ('["AUTH",{}]', "invalid auth event: missing field `id`"),
        ('["REQ"]', "REQ requires sub_id"),
        ('["REQ",1]', "REQ sub_id must be a string"),
        ('["REQ",null,{}]', "REQ sub_id must be a string"),
        ('["REQ",""]', "REQ sub_id must not be empty"),
        (wire("REQ", "x" * 257), "REQ sub_id exceeds maximum length of 256 bytes"),
        (wire("REQ", "é" * 128 + "x"), "REQ sub_id exceeds maximum length of 256 bytes"),
        (wire("REQ", "s", *[{}] * 11), "REQ contains 11 filters, maximum is 10"),
        (wire("REQ", "s", *[1] * 12), "REQ contains 12 filters, maximum is 10"),
        ('["REQ","s",1]', "invalid filter: expected an object"),
        ('["REQ","s",{},{"#1":[]}]', "invalid filter: invalid alphabet char"),
        ('["COUNT"]', "COUNT requires sub_id"),
        ('["COUNT",1]', "COUNT sub_id must be a string"),
        ('["COUNT",null,{}]', "COUNT sub_id must be a string"),
        ('["COUNT",""]', "COUNT sub_id must not be empty"),
        (wire("COUNT", "x" * 257), "COUNT sub_id exceeds maximum length of 256 bytes"),
        (wire("COUNT", "é" * 128 + "x"), "COUNT sub_id exceeds maximum length of 256 bytes"),
        (wire("COUNT", "s", *[{}] * 11), "COUNT contains 11 filters, maximum is 10"),
        (wire("COUNT", "s", *[1] * 12), "COUNT contains 12 filters, maximum is 10"),
        ('["COUNT","s",1]', "invalid filter: expected an object"),
        ('["COUNT","s",{"kinds":[-1]}]', "invalid filter: kind must be an integer between 0 and 65535"),
        ('["COUNT","s",{},{"#1":[]}]', "invalid filter: invalid alphabet char"),
        ('["CLOSE"]', "CLOSE requires sub_id"),
        ('["CLOSE",5]', "CLOSE sub_id must be a string"),
    ],
)
def test_refused_word_for_word(data, detail):
    assert detail_of(data) == detail
    assert detail_of(data.encode()) == detail


@pytest.mark.parametrize(
    "data",
    [
        "",
        " ",
        "EVENT",
        '["CLOSE","s"] x',
        '["CLOSE","s"',
        '["CLOSE","s",]',
        "['CLOSE']",
        "[NaN]",
        "[Infinity]",
        "[1e999]",
        "[01]",
        '["\\ud800"]',
        '["\ud800"]',
        '["\n"]',
        '\ufeff["CLOSE","s"]',
        b'["CLOSE","\xff"]',
        b"\x00",
        "[" * 100_000,
        "[" * 2000 + "]" * 2000,
        '{"a":' * 2000 + "1" + "}" * 2000,
    ],
)
def test_not_json(data):
    assert detail_of(data).startswith("JSON parse error: ")


def test_depth_at_its_edge():
    def nested(levels):
        # The array of the message is the first level, the extra element holds the others.
        # The empty ones beside them make sure that brackets alone do not decide.
        return '["CLOSE","s",[],{},' + "[" * (levels - 1) + "]" * (levels - 1) + "]"

    assert parse_client_message(nested(DEPTH_MAX)) == CloseMessage("s")
    assert detail_of(nested(DEPTH_MAX + 1)) == "JSON parse error: recursion limit exceeded"
    objects = '["CLOSE","s",' + '{"a":' * DEPTH_MAX + "1" + "}" * DEPTH_MAX + "]"
    assert detail_of(objects.encode()) == "JSON parse error: recursion limit exceeded"


def test_many_brackets_are_not_depth():
    wide = wire("EVENT", {**OBJECT, "tags": [["t", "[[[{{{"]] * 300})
    message = parse_client_message(wide)
    assert isinstance(message, EventMessage)
    assert len(message.event.tags) == 300
    assert detail_of('"' + "[" * 200 + '"') == "expected JSON array"


def test_notice_text():
    with pytest.raises(InvalidMessage) as caught:
        parse_client_message("[]")
    assert caught.value.notice == "invalid message: Invalid message format: empty array"
    assert isinstance(caught.value, ProtocolError)


# --- anything at all --------------------------------------------------------------------------------------------------


def check_contained(data):
    """A message or the documented refusal, whose text can be sent."""
    try:
        message = parse_client_message(data)
    except InvalidMessage as error:
        text = error.notice
    else:
        assert isinstance(message, (EventMessage, ReqMessage, CountMessage, CloseMessage, AuthMessage))
        return
    assert json.loads(messages.notice(text)) == ["NOTICE", text]


@given(st.text() | st.text(st.characters()))
@example("\ud800")
def test_any_text_is_contained(data):
    check_contained(data)


@given(st.binary())
def test_any_bytes_are_contained(data):
    check_contained(data)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**63 - 2, max_value=2**65)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["0a" * 32, OBJECT["pubkey"], OBJECT["sig"], "note1", "nostr:npub1", CHANNEL])
)
KEYS = st.text(max_size=4) | st.sampled_from(
    [*OBJECT, "ids", "authors", "kinds", "since", "until", "limit", "search", "#h", "#p", "#1", "#foo"]
)
SHAPES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=20,
)


@settings(max_examples=400)
@given(st.sampled_from(["EVENT", "REQ", "CLOSE", "AUTH", "COUNT", "x"]), st.lists(SHAPES, max_size=4), st.booleans())
def test_json_shaped_messages_are_contained(verb, elements, as_bytes):
    # json.dumps writes NaN, Infinity and integers of any size, as a careless client would.
    data = json.dumps([verb, *elements])
    check_contained(data.encode() if as_bytes else data)


@given(st.dictionaries(st.sampled_from(list(OBJECT)), SHAPES, max_size=2), st.sampled_from(["EVENT", "AUTH"]))
def test_nearly_right_events_are_contained(changes, verb):
    check_contained(json.dumps([verb, {**OBJECT, **changes}]))


@given(st.integers(0, len(EVENT.json) + 8), st.binary(max_size=3), st.integers(0, 3))
def test_damaged_frames_are_contained(position, inserted, removed):
    data = b'["EVENT",' + EVENT.json + b"]"
    check_contained(data[:position] + inserted + data[position + removed :])


@given(st.integers(1, 3000), st.sampled_from(["[", '{"a":', '["REQ","s",{"#e":[']), st.booleans())
def test_deep_nesting_is_contained(levels, opening, closed):
    closing = "".join("]" if bracket == "[" else "}" for bracket in reversed(opening) if bracket in "[{")
    check_contained(opening * levels + (("1" if opening.endswith(":") else "") + closing * levels if closed else ""))


# --- relay to client --------------------------------------------------------------------------------------------------

AWKWARD = 'a"b\\c\n\u2028é'


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (messages.auth("c0ffee"), ["AUTH", "c0ffee"]),
        (messages.ok("0a", True, ""), ["OK", "0a", True, ""]),
        (messages.ok("0a", False, "invalid: " + AWKWARD), ["OK", "0a", False, "invalid: " + AWKWARD]),
        (messages.eose(AWKWARD), ["EOSE", AWKWARD]),
        (messages.closed(AWKWARD, "error: x"), ["CLOSED", AWKWARD, "error: x"]),
        (messages.count(AWKWARD, 93_412_452), ["COUNT", AWKWARD, {"count": 93_412_452}]),
        (messages.notice(AWKWARD), ["NOTICE", AWKWARD]),
        (messages.event_frame(messages.event_prefix(AWKWARD), EVENT.json), ["EVENT", AWKWARD, OBJECT]),
    ],
)
def test_relay_frames(payload, expected):
    assert json.loads(payload) == expected


def test_frames_are_compact():
    assert messages.auth("c") == b'["AUTH","c"]'
    assert messages.event_frame(messages.event_prefix("s"), b"{}") == b'["EVENT","s",{}]'


@given(st.text())
def test_every_sub_id_is_escaped(sub_id):
    assert json.loads(messages.event_frame(messages.event_prefix(sub_id), b"{}")) == ["EVENT", sub_id, {}]


@pytest.mark.parametrize(
    ("length", "head"),
    [
        (0, "8100"),
        (125, "817d"),
        (126, "817e007e"),
        (65535, "817effff"),
        (65536, "817f0000000000010000"),
        (131072, "817f0000000000020000"),
    ],
)
def test_frame_head(length, head):
    assert messages.ws_frame_head(length) == bytes.fromhex(head)
    assert messages.ws_frame(bytes(length)) == bytes.fromhex(head) + bytes(length)


def test_frame_examples_of_rfc6455():
    assert messages.ws_frame(b"Hello") == bytes.fromhex("810548656c6c6f")
    assert messages.ws_frame(b"Hello", opcode=9) == bytes.fromhex("890548656c6c6f")


@pytest.mark.parametrize("size", [0, 100, 113, 114, 65_000, 65_520, 65_521, 65_522, 65_523, 70_000])
def test_event_frames_made_at_once_are_the_same(size: int) -> None:
    prefix, event = messages.event_prefix("s"), b"{" + b" " * size + b"}"
    assert messages.event_ws_frame(prefix, event) == messages.ws_frame(messages.event_frame(prefix, event))
