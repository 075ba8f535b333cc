"""Entries: what is accepted is what the database can give back unchanged; all else is refused with a sentence."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.audit.entry import (
    INT32_MAX,
    INT64_MAX,
    METADATA_BYTES_MAX,
    ORIGINAL_ACTIONS,
    TEXT_CHARACTERS_MAX,
    Action,
    canonical_json,
    is_canonical_uuid,
    new_entry,
)
from relay.errors import AuditError

UUID_1 = "11111111-2222-4333-8444-555555555555"


def make(**changes):
    fields = {"time_us": 1, "uuid": UUID_1, **changes}
    return new_entry(fields.pop("action", Action.EVENT_CREATED), **fields)


def test_the_smallest_entry_says_nothing_in_one_way():
    entry = make()
    assert (entry.action, entry.actor, entry.event_id, entry.kind, entry.channel_id) == (
        "event_created", None, None, None, None,
    )  # fmt: skip
    assert entry.metadata == make(metadata={}).metadata == make(metadata=None).metadata == "{}"


def test_the_action_is_stored_as_plain_text():
    assert type(make(action=Action.MEMBER_ADDED).action) is str


def test_every_action_of_the_original_is_kept_under_its_name():
    assert {
        "event_created", "event_deleted", "channel_created", "channel_updated", "channel_deleted", "member_added",
        "member_removed", "auth_success", "auth_failure", "rate_limit_exceeded", "media_uploaded",
    } == ORIGINAL_ACTIONS  # fmt: skip


@pytest.mark.parametrize("action", Action)
def test_actions_round_trip_through_their_text(action):
    assert Action(str(action)) is action
    assert str(action).isascii()


def test_an_unknown_action_is_an_error():
    with pytest.raises(ValueError, match="not a valid Action"):
        make(action="event_vanished")


def test_auth_events_never_enter_the_log():
    with pytest.raises(AuditError, match="22242"):
        make(kind=22242)
    assert make(kind=22241).kind == 22241
    assert make(kind=22243).kind == 22243


@pytest.mark.parametrize("name", ["actor", "event_id"])
class TestText:
    def test_nul_is_refused(self, name):
        with pytest.raises(AuditError, match=f"{name} has a NUL character"):
            make(**{name: "ab\0cd"})

    def test_a_lone_surrogate_is_refused(self, name):
        with pytest.raises(AuditError, match=f"{name} has a lone surrogate"):
            make(**{name: "ab\ud800"})

    def test_the_limit_is_the_original_column_width(self, name):
        make(**{name: "é" * TEXT_CHARACTERS_MAX})
        with pytest.raises(AuditError, match="longer than 255"):
            make(**{name: "x" * (TEXT_CHARACTERS_MAX + 1)})

    def test_empty_is_not_absent(self, name):
        assert getattr(make(**{name: ""}), name) == ""


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("time_us", (0, INT64_MAX), (-1, INT64_MAX + 1)),
        ("kind", (0, INT32_MAX), (-1, INT32_MAX + 1)),
    ],
)
def test_integers_fit_their_columns(field, good, bad):
    for value in good:
        assert getattr(make(**{field: value}), field) == value
    for value in bad:
        with pytest.raises(AuditError, match=field):
            make(**{field: value})


@pytest.mark.parametrize("text", ["", "x", UUID_1.upper().replace("1", "A"), UUID_1.replace("-", ""), f"{{{UUID_1}}}",
                                  UUID_1 + "\n"])  # fmt: skip
@pytest.mark.parametrize("field", ["uuid", "channel_id"])
def test_only_the_spelling_that_comes_back_is_a_uuid(field, text):
    with pytest.raises(AuditError, match=field):
        make(**{field: text})


@given(st.uuids())
def test_canonical_uuids_are_what_the_standard_library_prints(value: UUID):
    assert is_canonical_uuid(str(value))


def test_metadata_is_canonical():
    assert make(metadata={"b": [1, None, True], "a": {"z": "é", "y": "\n"}}).metadata == (
        '{"a":{"y":"\\n","z":"é"},"b":[1,null,true]}'
    )


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(-(2**63), 2**63 - 1) | st.text(
    st.characters(codec="utf-8")) | st.none() | st.booleans(), max_size=6))  # fmt: skip
def test_metadata_text_is_the_same_for_every_order_of_keys(value):
    backwards = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(backwards)
    # The standard library as oracle, sorted by the bytes of the keys; it spells DEL and control characters alike.
    assert canonical_json(value) == json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def test_a_nul_in_metadata_is_an_escape_and_may_stay():
    assert make(metadata={"a": "\0"}).metadata == '{"a":"\\u0000"}'


@pytest.mark.parametrize("value", [{"a": object()}, {"a": "\ud800"}, {"a": 2**64}, {1: "a"}])
def test_metadata_that_is_not_json_is_refused(value):
    with pytest.raises(AuditError, match="not JSON"):
        make(metadata=value)


def test_metadata_has_a_limit_in_bytes():
    fits = METADATA_BYTES_MAX - len('{"a":""}')
    assert len(make(metadata={"a": "x" * fits}).metadata) == METADATA_BYTES_MAX
    with pytest.raises(AuditError, match="metadata is longer"):
        make(metadata={"a": "x" * (fits + 1)})
    with pytest.raises(AuditError, match="metadata is longer"):
        make(metadata={"a": "é" * (fits // 2 + 1)})
