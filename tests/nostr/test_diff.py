"""What makes a diff message, in the words of its refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.nostr.diff import refuse_diff
from relay.nostr.event import Event

REPO, COMMIT = ["repo", "https://git.example/x"], ["commit", "abcdef0"]


def diff(*tags: list[str], content: str = "--- a\n+++ b\n") -> Event:
    return Event("00" * 32, "11" * 32, 1, 40008, list(tags), content, "22" * 64)


@pytest.mark.parametrize(
    "event",
    [
        diff(REPO, COMMIT),
        diff(["repo", "HTTP://git.example"], ["commit", "ABCDEF0123"]),
        diff(REPO, COMMIT, ["parent-commit", "0" * 40], ["branch", "topic", "main"], ["pr", "4294967295"]),
        diff(REPO, COMMIT, ["branch"], ["pr"], ["parent-commit"], ["anything", "else"]),
        diff(REPO, COMMIT, content="x" * 61_440),
    ],
)
def test_diffs(event: Event) -> None:
    assert refuse_diff(event) is None


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (diff(content="x" * 61_441), "diff content exceeds 60KB limit (got 61441 bytes)"),
        (diff(content="é" * 30_721), "diff content exceeds 60KB limit (got 61442 bytes)"),
        (diff(["repo", "ssh://git.example/x"], COMMIT), "repo URL must be http or https"),
        (diff(["repo", ""], COMMIT), "repo URL must be http or https"),
        (diff(["repo", "https://"], COMMIT), "repo URL must be http or https"),
        (diff(REPO, ["repo", "javascript:x"], COMMIT), "repo URL must be http or https"),
        (diff(REPO, ["commit", "abcdef"]), "commit SHA must be at least 7 hex characters"),
        (diff(REPO, ["commit", "abcdefg"]), "commit SHA must be at least 7 hex characters"),
        (diff(REPO, ["commit", "abcdef0\n"]), "commit SHA must be at least 7 hex characters"),
        (diff(REPO, COMMIT, ["parent-commit", "x"]), "parent-commit SHA must be at least 7 hex characters"),
        (diff(REPO, COMMIT, ["branch", "topic"]), "branch tag requires both source and target"),
        (diff(REPO, COMMIT, ["branch", "", "main"]), "branch tag requires both source and target"),
        (diff(REPO, COMMIT, ["branch", "topic", ""]), "branch tag requires both source and target"),
        *(
            (diff(REPO, COMMIT, ["pr", number]), "pr number must be a positive integer")
            for number in ("0", "-1", "1.0", "", "x", "4294967296", "٣", "9" * 5000)
        ),
        (diff(COMMIT), "diff event requires a repo tag"),
        (diff(["repo"], COMMIT), "diff event requires a repo tag"),
        (diff(REPO), "diff event requires a commit tag"),
        (diff(), "diff event requires a repo tag"),
    ],
)
def test_refusals(event: Event, text: str) -> None:
    assert refuse_diff(event) == text


@given(
    st.lists(
        st.lists(
            st.sampled_from(["repo", "commit", "parent-commit", "branch", "pr", "abcdef0"]) | st.text(), min_size=1
        )
    ),
    st.text(),
)
def test_any_event_has_an_answer(tags: list[list[str]], content: str) -> None:
    assert isinstance(refuse_diff(diff(*tags, content=content)), str | None)
