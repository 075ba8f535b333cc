"""Tokens as rows: format, hash, look-up, expiry by the database's clock, revocation."""

from __future__ import annotations

from datetime import UTC
from hashlib import sha256
from uuid import uuid4

import pytest

from relay.asyncpg_trio import Connection
from relay.asyncpg_trio.errors import ForeignKeyViolationError, UniqueViolationError
from relay.store import tokens, users
from relay.store.tokens import Revocation, Token

OWNER = "ab" * 32


async def minted(con: Connection, text: str | None = None, expires_days: int | None = None) -> tuple[str, Token]:
    text = text or tokens.new_text()
    await users.ensure(con, [OWNER])
    token = await tokens.mint(
        con,
        text=text,
        owner=OWNER,
        name="n",
        scopes=["b", "a"],
        channel_ids=[str(uuid4())],
        expires_days=expires_days,
    )
    return text, token


def test_the_format() -> None:
    text, other = tokens.new_text(), tokens.new_text()
    assert text != other
    assert len(text) == 71
    assert tokens.is_well_formed(text)
    for wrong in (text[:-1], text + "0", text.upper(), " " + text, text + "\n", text[:-1] + "g", text[:-1] + "٣"):
        assert not tokens.is_well_formed(wrong)
    assert tokens.digest(text) == sha256(text.encode()).digest()


async def test_what_was_minted_is_found_by_its_hash(con: Connection) -> None:
    text, token = await minted(con, expires_days=3)
    assert await tokens.look_up(con, tokens.digest(text)) == token
    assert (token.owner, token.name, token.scopes, token.hash) == (OWNER, "n", ("b", "a"), tokens.digest(text))
    assert token.channel_ids is not None
    assert (token.revoked_at, token.last_used_at, token.expired) == (None, None, False)
    assert token.expires_at is not None
    assert (token.expires_at - token.created_at).days == 3
    assert token.created_at.tzinfo == UTC
    assert await tokens.look_up(con, tokens.digest(text + "x")) is None


async def test_a_touch_shows_in_the_next_look_up(con: Connection) -> None:
    text, _ = await minted(con)
    first = await tokens.look_up(con, tokens.digest(text), touch=True)
    second = await tokens.look_up(con, tokens.digest(text))
    assert first is not None
    assert second is not None
    assert (first.last_used_at, second.last_used_at is None) == (None, False)


async def test_a_text_is_stored_once_and_only_for_a_user(con: Connection) -> None:
    text, _ = await minted(con)
    with pytest.raises(UniqueViolationError):
        await minted(con, text)
    # The look-up relies on this: whoever has a token has a row.
    with pytest.raises(ForeignKeyViolationError):
        await con.execute("DELETE FROM users")


async def test_revoking(con: Connection) -> None:
    text, token = await minted(con)
    _, other = await minted(con)
    assert await tokens.revoke(con, str(uuid4())) is Revocation.UNKNOWN
    assert await tokens.revoke(con, token.id) is Revocation.DONE
    found = await tokens.look_up(con, tokens.digest(text))
    assert found is not None
    assert found.revoked_at is not None
    assert await tokens.revoke(con, token.id) is Revocation.ALREADY
    again = await tokens.look_up(con, tokens.digest(text))
    assert again == found
    assert [each.id for each in await tokens.newest(con)] == [other.id]


async def test_newest_first(con: Connection) -> None:
    made = [(await minted(con, expires_days=1))[1].id for _ in range(3)]
    await con.execute("UPDATE api_tokens SET expires_at = now() - interval '1 s' WHERE id = $1", made[1])
    assert [token.id for token in await tokens.newest(con)] == [made[2], made[0]]
    dead = await tokens.newest(con, with_dead=True)
    assert [(token.id, token.expired) for token in dead] == [(made[2], False), (made[1], True), (made[0], False)]
    assert [token.id for token in await tokens.newest(con, limit=1)] == [made[2]]
