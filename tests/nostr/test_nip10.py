"""Which event is answered, as the marked `e` tags say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.nostr.nip10 import Markers, Reply, is_broadcast, markers, reply_of

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32

tags_of_anything = st.lists(st.lists(st.text(max_size=5) | st.sampled_from(["e", "root", "reply", A, B]), min_size=1))


@pytest.mark.parametrize(
    ("tags", "reply"),
    [
        ([], None),
        ([["e", A]], None),
        ([["e", A, "", "root"]], None),
        ([["e", A, "", "mention"]], None),
        ([["e", A, "reply"]], None),
        ([["e", "zz", "", "reply"]], None),
        ([["E", A, "", "reply"]], None),
        ([["e", A, "", "reply"]], Reply(A, A)),
        ([["e", A.upper(), "", "reply"]], Reply(A, A)),
        ([["e", A, "wss://elsewhere", "reply", B]], Reply(A, A)),
        ([["e", A, "", "root"], ["e", B, "", "reply"]], Reply(B, A)),
        ([["e", B, "", "reply"], ["e", A, "", "root"]], Reply(B, A)),
        ([["e", A, "", "root"], ["e", A, "", "reply"]], Reply(A, A)),
        ([["e", A, "", "reply"], ["e", B, "", "reply"], ["e", "zz", "", "reply"]], Reply(B, B)),
        ([["e", A, "", "root"], ["e", B, "", "root"], ["e", C, "", "reply"]], Reply(C, B)),
    ],
)
def test_what_is_answered(tags: list[list[str]], reply: Reply | None) -> None:
    assert reply_of(tags) == reply


def test_a_root_alone_is_a_marker_all_the_same() -> None:
    assert markers([["e", A, "", "root"]]) == Markers(A, None)


@pytest.mark.parametrize(
    ("tag", "broadcast"),
    [(["broadcast", "1"], True), (["broadcast", "1", "x"], True), (["broadcast", "0"], False), (["broadcast"], False)],
)
def test_broadcast(tag: list[str], broadcast: bool) -> None:
    assert is_broadcast([["h", "x"], tag]) is broadcast


@given(tags_of_anything)
def test_any_tags_have_an_answer(tags: list[list[str]]) -> None:
    found, reply = markers(tags), reply_of(tags)
    assert (reply is None) == (found.reply is None)
    for event_id in (found.root, found.reply):
        assert event_id is None or event_id in (A, B)
    assert is_broadcast(tags) in (True, False)
