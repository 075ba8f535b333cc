"""Which right a kind needs, in the words that clients read."""

from __future__ import annotations

import pytest

from relay.access.identity import KNOWN_SCOPES, PROXY_SUBMIT, AuthMethod, Caller
from relay.access.scopes import refuse_submission, required_scope
from relay.errors import RefusalClass

TABLE = {
    0: "users:write", 1: "messages:write", 3: "users:write", 5: "messages:write", 7: "messages:write",
    9: "messages:write", 9000: "admin:channels", 9001: "admin:channels", 9007: "channels:write",
    9021: "channels:read", 9022: "channels:read", 20001: "messages:write", 20002: "messages:write",
}  # fmt: skip


def caller(*scopes: str) -> Caller:
    return Caller("aa" * 32, frozenset(scopes), AuthMethod.API_TOKEN)


@pytest.mark.parametrize(("kind", "scope"), TABLE.items())
def test_each_kind(kind: int, scope: str) -> None:
    assert required_scope(kind) == scope
    assert scope in KNOWN_SCOPES
    assert refuse_submission(caller(scope), kind) is None
    assert refuse_submission(caller(PROXY_SUBMIT), kind) is None
    others = KNOWN_SCOPES - {scope}
    for refused in (caller(*others), caller()):
        refusal = refuse_submission(refused, kind)
        assert refusal is not None
        assert (refusal.kind, refusal.kind.http_status) == (RefusalClass.SCOPE, 403)
        if kind >= 20000:
            assert refusal.text == "restricted: insufficient scope for ephemeral events"
        else:
            assert refusal.text == f"restricted: insufficient scope (need {scope})"


@pytest.mark.parametrize("kind", [2, 4, 22242, 39000, 44100, 65535, -1])
def test_kinds_that_nobody_may_submit(kind: int) -> None:
    assert required_scope(kind) is None
    refusal = refuse_submission(caller(*KNOWN_SCOPES, PROXY_SUBMIT), kind)
    assert refusal is not None
    assert (refusal.text, refusal.kind.http_status) == ("restricted: unknown event kind", 400)
