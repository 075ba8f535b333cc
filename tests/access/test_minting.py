"""The rules of every new token, without a door; over HTTP and at the command line they have tests of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import orjson

from relay.access.identity import KNOWN_SCOPES
from relay.access.minting import OWNED_AGENT_SCOPES, SELF_MINTABLE, MintProblem, NewToken, mint, missing_scopes, told
from relay.audit.entry import Action, new_entry
from relay.store import tokens, users
from relay.store.tokens import Token

AGENT, OWNER = "ab" * 32, "cd" * 32


def wanted(**changes: Any) -> NewToken:
    return replace(NewToken(tokens.new_text(), AGENT, "n", OWNED_AGENT_SCOPES), **changes)


def test_what_anybody_may_have_is_known_and_no_administrators() -> None:
    assert SELF_MINTABLE < KNOWN_SCOPES
    assert set(OWNED_AGENT_SCOPES) < SELF_MINTABLE
    assert not any(scope.startswith("admin:") for scope in SELF_MINTABLE)


def test_missing_scopes_in_their_order() -> None:
    assert missing_scopes(()) == list(OWNED_AGENT_SCOPES)
    assert missing_scopes(["messages:read", "users:read", "x"]) == ["messages:write", "channels:read"]
    assert missing_scopes(OWNED_AGENT_SCOPES) == []


async def test_the_operator_is_not_limited_and_what_he_makes_counts(store: Any) -> None:
    for _ in range(3):
        assert isinstance(await mint(store.con, wanted()), Token)
    assert await mint(store.con, wanted(active_max=3)) is MintProblem.TOO_MANY
    assert isinstance(await mint(store.con, wanted(active_max=4, self_minted=True)), Token)
    assert await store.con.fetchval("SELECT count(*) FROM api_tokens WHERE created_by_self_mint") == 1


async def test_an_owner_makes_demands(store: Any) -> None:
    few = wanted(scopes=("messages:read",))
    assert isinstance(await mint(store.con, few), Token)
    assert await mint(store.con, replace(few, agent_owner=OWNER)) is MintProblem.OWNED_NEEDS_SCOPES
    assert await users.owner(store.con, AGENT) is None
    assert isinstance(await mint(store.con, wanted(agent_owner=OWNER)), Token)
    assert await users.owner(store.con, AGENT) == OWNER
    assert await mint(store.con, wanted(scopes=("messages:read",))) is MintProblem.OWNED_NEEDS_SCOPES
    assert await mint(store.con, wanted(agent_owner="ef" * 32)) is MintProblem.OTHER_OWNER


async def test_a_new_token_shows_no_text(store: Any) -> None:
    new = wanted()
    token = await mint(store.con, new)
    assert isinstance(token, Token)
    assert new.text not in repr(new)
    assert new.text not in repr(token)


async def test_however_many_channels_there_is_room_for_the_entry(store: Any) -> None:
    """An entry that is too long would fail the transaction that made the token."""
    channel_ids = tuple(sorted(str(uuid4()) for _ in range(20_000)))
    token = await mint(store.con, wanted(channel_ids=channel_ids, scopes=tuple(sorted(SELF_MINTABLE))))
    assert isinstance(token, Token)
    assert token.channel_ids == channel_ids
    entry = new_entry(Action.TOKEN_CREATED, time_us=1, uuid=str(uuid4()), metadata=told(token))
    metadata = orjson.loads(entry.metadata)
    assert metadata["channel_count"] == 20_000
    assert metadata["channels"] == list(channel_ids[:1000])
