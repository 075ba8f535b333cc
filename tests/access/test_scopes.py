"""Which right a kind needs, in the words that clients read."""

from __future__ import annotations

import pytest

from relay.access.identity import KNOWN_SCOPES, PROXY_SUBMIT, AuthMethod, Caller
from relay.access.scopes import STORED, refuse_submission, required_scope
from relay.errors import RefusalClass
from relay.nostr.event import Event

TABLE = {
    0: "users:write", 1: "messages:write", 3: "users:write", 5: "messages:write", 7: "messages:write",
    9: "messages:write", 1059: "messages:write", 9000: "admin:channels", 9001: "admin:channels",
    9002: "channels:write", 9005: "messages:write", 9007: "channels:write", 9008: "admin:channels",
    9021: "channels:read", 9022: "channels:read", 30023: "messages:write",
    **dict.fromkeys(range(40002, 40009), "messages:write"), 40100: "channels:write",
    **dict.fromkeys((45001, 45002, 45003), "messages:write"), **dict.fromkeys(range(48100, 48107), "channels:write"),
}  # fmt: skip
EPHEMERAL = [20000, 20001, 20002, 22241, 22243, 24134, 24242, 27235, 29999]


def event(kind: int, *tags: list[str]) -> Event:
    return Event("00" * 32, "aa" * 32, 1, kind, list(tags), "", "22" * 64)


def caller(*scopes: str) -> Caller:
    return Caller("aa" * 32, frozenset(scopes), AuthMethod.API_TOKEN)


def test_what_a_key_alone_is_given() -> None:
    """Fourteen rights, those for administrators among them; speaking for others is not."""
    said = """messages:read messages:write channels:read channels:write admin:channels users:read users:write
        admin:users jobs:read jobs:write subscriptions:read subscriptions:write files:read files:write"""
    assert set(said.split()) == KNOWN_SCOPES
    assert PROXY_SUBMIT == "proxy:submit"


def test_the_table_is_whole() -> None:
    assert dict(STORED) == TABLE
    assert len(TABLE) == 34


@pytest.mark.parametrize(("kind", "scope"), [*TABLE.items(), *((kind, "messages:write") for kind in EPHEMERAL)])
def test_each_kind(kind: int, scope: str) -> None:
    assert required_scope(event(kind)) == scope
    assert scope in KNOWN_SCOPES
    assert refuse_submission(caller(scope), event(kind)) is None
    assert refuse_submission(caller(PROXY_SUBMIT), event(kind)) is None
    others = KNOWN_SCOPES - {scope}
    for refused in (caller(*others), caller()):
        refusal = refuse_submission(refused, event(kind))
        assert refusal is not None
        assert (refusal.kind, refusal.kind.http_status) == (RefusalClass.SCOPE, 403)
        if kind in EPHEMERAL:
            assert refusal.text == "restricted: insufficient scope for ephemeral events"
        else:
            assert refusal.text == f"restricted: insufficient scope (need {scope})"


@pytest.mark.parametrize("tag", [["archived", "true"], ["archived", "false"], ["archived"]])
def test_archiving_is_for_administrators(tag: list[str]) -> None:
    edit = event(9002, ["h", "x"], ["name", "n"], tag)
    assert required_scope(edit) == "admin:channels"
    refusal = refuse_submission(caller("channels:write"), edit)
    assert refusal is not None
    assert refusal.text == "restricted: insufficient scope (need admin:channels)"


@pytest.mark.parametrize(
    "kind",
    [
        *(2, 4, 41, 1063, 9009, 9100, 9110, 9900, 10000, 19999, 22242, 30000, 39000, 39001, 39002, 39003, 40001, 40099),
        *(41001, 42001, 43001, 44001, 44100, 44101, 46001, 46010, 47001, 48001, 48107, 49001, 65535, -1),
    ],
)
def test_kinds_that_nobody_may_submit(kind: int) -> None:
    assert required_scope(event(kind)) is None
    refusal = refuse_submission(caller(*KNOWN_SCOPES, PROXY_SUBMIT), event(kind))
    assert refusal is not None
    assert (refusal.text, refusal.kind.http_status) == ("restricted: unknown event kind", 400)
