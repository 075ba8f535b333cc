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
    assert token is not None
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


async def test_who_asks_ends_only_his_own(con: Connection) -> None:
    _, first = await minted(con)
    _, second = await minted(con)
    _, third = await minted(con)
    stranger = "cd" * 32
    assert await tokens.revoke(con, first.id, owner=stranger) is Revocation.UNKNOWN
    assert await tokens.revoke(con, first.id, owner=OWNER) is Revocation.DONE
    assert await tokens.revoke(con, first.id, owner=OWNER) is Revocation.ALREADY
    assert await tokens.revoke_all(con, stranger) == []
    assert await tokens.revoke_all(con, OWNER) == sorted([second.id, third.id])
    assert await tokens.revoke_all(con, OWNER) == []
    who = await con.fetch("SELECT DISTINCT encode(revoked_by, 'hex') FROM api_tokens")
    assert [row[0] for row in who] == [OWNER]


async def test_so_many_and_no_more(con: Connection) -> None:
    await minted(con)
    made = {"owner": OWNER, "name": "n", "scopes": [], "channel_ids": None, "expires_days": 1}
    assert await tokens.mint(con, text=tokens.new_text(), active_max=1, **made) is None
    assert await tokens.mint(con, text=tokens.new_text(), active_max=2, **made) is not None
    assert await tokens.mint(con, text=tokens.new_text(), active_max=2, **made) is None
    # Those that have expired are not counted.
    await con.execute("UPDATE api_tokens SET expires_at = now() - interval '1 s' WHERE expires_at IS NOT NULL")
    assert await tokens.mint(con, text=tokens.new_text(), active_max=2, **made) is not None


async def test_memberships_are_of_channels_that_exist(con: Connection) -> None:
    mine, left, other, deleted = (str(uuid4()) for _ in range(4))
    key = bytes.fromhex(OWNER)
    for channel_id in (mine, left, other, deleted):
        await con.execute(
            "INSERT INTO channels (id, name, visibility, created_by) VALUES ($1, 'c', 'open', $2)", channel_id, key
        )
        if channel_id != other:
            await con.execute(
                "INSERT INTO channel_members (channel_id, pubkey, role) VALUES ($1, $2, 'member')", channel_id, key
            )
    await con.execute("UPDATE channel_members SET removed_at = now() WHERE channel_id = $1", left)
    await con.execute("UPDATE channels SET deleted_at = now() WHERE id = $1", deleted)
    found = await tokens.memberships(con, OWNER, [mine, left, other, deleted, str(uuid4())])
    assert found == {mine: True, left: False, other: False}
