"""API tokens: made, looked up by their hash, listed, revoked by the operator or by the key they speak for.

The text of a token exists here only while it is made. What is kept is its SHA-256, which needs no salt: 32 random
bytes cannot be guessed from it. Whether a token has expired is answered by the database's clock, the same for all.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from hashlib import sha256
from typing import Any, Final

from relay.asyncpg_trio import Connection
from relay.store.channels import Database

PREFIX: Final = "sprout_"
_FORMAT: Final = re.compile(r"sprout_[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its text. Times are aware and in UTC; `expired` is as of the statement that read it."""

    id: str
    hash: bytes
    owner: str
    name: str
    scopes: tuple[str, ...]
    channel_ids: tuple[str, ...] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    expired: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How a token stands now: `seconds_left` until it expires, below zero if it has, None if it never does."""

    revoked: bool
    seconds_left: float | None


class Revocation(Enum):
    """How `revoke` ended."""

    DONE = auto()
    ALREADY = auto()
    UNKNOWN = auto()


_GONE: Final = Standing(revoked=True, seconds_left=None)

_COLUMNS = (
    "id::text, token_hash, encode(owner_pubkey, 'hex') AS owner, name, scopes, channel_ids::text[] AS channel_ids, "
    "created_at, expires_at, last_used_at, revoked_at, coalesce(expires_at < now(), false) AS expired"
)

# One statement for look-up and debounced "last used". The owner needs no upsert: the foreign key says the row is there.
# Both parts see the same snapshot, so what is returned is the row from before the update.
_LOOK_UP = f"""
WITH used AS (
    UPDATE api_tokens SET last_used_at = now()
    WHERE $2 AND token_hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at >= now())
)
SELECT {_COLUMNS} FROM api_tokens WHERE token_hash = $1"""

_ACTIVE = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at >= now())"

# Not FOR UPDATE: whatever refers to this user by a foreign key need not wait.
_TAKE_TURN = "SELECT encode(agent_owner_pubkey, 'hex') FROM users WHERE pubkey = $1 FOR NO KEY UPDATE"

# FOR SHARE: whoever ends the token then waits for the end of this transaction.
_HOLD = "SELECT revoked_at IS NULL FROM api_tokens WHERE id = $1::text::uuid FOR SHARE"

_MINT = f"""
INSERT INTO api_tokens (token_hash, owner_pubkey, name, scopes, channel_ids, expires_at, created_by_self_mint)
SELECT $1, $2, $3, $4, $5::text[]::uuid[], now() + make_interval(days => $6), $7
WHERE $8::int IS NULL OR (SELECT count(*) FROM api_tokens WHERE owner_pubkey = $2 AND {_ACTIVE}) < $8
RETURNING {_COLUMNS}"""

_LIST = f"""
SELECT {_COLUMNS} FROM api_tokens
WHERE $1 OR ({_ACTIVE})
ORDER BY created_at DESC, id LIMIT $2"""

# However many there were, the active ones are among them.
_LIST_OF = f"""
SELECT * FROM (
    SELECT {_COLUMNS} FROM api_tokens WHERE owner_pubkey = $1
    ORDER BY ({_ACTIVE}) DESC, created_at DESC, id LIMIT $2
) AS listed ORDER BY created_at DESC, id"""

_MEMBERSHIPS = """
SELECT c.id::text, EXISTS (
    SELECT 1 FROM channel_members m WHERE m.channel_id = c.id AND m.pubkey = $1 AND m.removed_at IS NULL) AS member
FROM channels c WHERE c.id = ANY ($2::text[]::uuid[]) AND c.deleted_at IS NULL"""

_REVOKE = """
WITH mine AS (
    SELECT id FROM api_tokens WHERE id = $1::text::uuid AND ($2::bytea IS NULL OR owner_pubkey = $2)
), done AS (
    UPDATE api_tokens SET revoked_at = now(), revoked_by = $2 WHERE id IN (TABLE mine) AND revoked_at IS NULL
    RETURNING id
)
SELECT EXISTS (SELECT 1 FROM done) AS done, EXISTS (SELECT 1 FROM mine) AS known"""

_REVOKE_ALL = """
UPDATE api_tokens SET revoked_at = now(), revoked_by = $1 WHERE owner_pubkey = $1 AND revoked_at IS NULL
RETURNING id::text"""


# By the database's clock, like every other answer about a token's end.
_STANDINGS = """
SELECT id::text, revoked_at IS NOT NULL AS revoked, extract(epoch FROM expires_at - now())::float8 AS seconds_left
FROM api_tokens WHERE id = ANY($1::text[]::uuid[])"""


def new_text() -> str:
    """A fresh token: `sprout_` and 64 hex digits from the system's random source."""
    return PREFIX + secrets.token_hex(32)


def is_well_formed(text: str) -> bool:
    return _FORMAT.fullmatch(text) is not None


def digest(text: str) -> bytes:
    """What is kept of a token: SHA-256 over its whole text."""
    return sha256(text.encode()).digest()


def _token(row: Any) -> Token:
    channel_ids = row["channel_ids"]
    return Token(
        row["id"],
        row["token_hash"],
        row["owner"],
        row["name"],
        tuple(row["scopes"]),
        None if channel_ids is None else tuple(channel_ids),
        row["created_at"],
        row["expires_at"],
        row["last_used_at"],
        row["revoked_at"],
        row["expired"],
    )


async def look_up(db: Database, token_hash: bytes, *, touch: bool = False) -> Token | None:
    """The token with this hash, revoked and expired ones too; `touch` stamps `last_used_at` if it is valid."""
    row = await db.fetchrow(_LOOK_UP, token_hash, touch)
    return None if row is None else _token(row)


async def take_turn(con: Connection, owner: str) -> str | None:
    """Waits until no other transaction makes tokens for this key, or ends them all; it must have a row in `users`.
    Until the end of this one no other does. Returns the key that owns this one, None for a person's.
    """
    found: str | None = await con.fetchval(_TAKE_TURN, bytes.fromhex(owner))
    return found


async def hold(con: Connection, token_id: str) -> bool:
    """Whether the token was not revoked; then it is not before the end of this transaction. Whether it has expired is
    not asked."""
    return bool(await con.fetchval(_HOLD, token_id))


async def mint(
    con: Connection,
    *,
    text: str,
    owner: str,
    name: str,
    scopes: Sequence[str],
    channel_ids: Sequence[str] | None,
    expires_days: int | None,
    self_minted: bool = False,
    active_max: int | None = None,
) -> Token | None:
    """Stores a new token. The owner must have a row in `users`, and the caller has decided that all this may be.

    None: there are `active_max` already that are neither revoked nor expired. The number holds only for whoever has
    called `take_turn` before.
    """
    row = await con.fetchrow(
        _MINT,
        digest(text),
        bytes.fromhex(owner),
        name,
        list(scopes),
        None if channel_ids is None else list(channel_ids),
        expires_days,
        self_minted,
        active_max,
    )
    return None if row is None else _token(row)


async def memberships(db: Database, pubkey: str, channel_ids: Collection[str]) -> dict[str, bool]:
    """Whether the key is a member of each of these channels; one that does not exist is not in the answer."""
    rows = await db.fetch(_MEMBERSHIPS, bytes.fromhex(pubkey), list(channel_ids))
    return {row["id"]: row["member"] for row in rows}


async def newest_of(db: Database, owner: str, *, limit: int = 1000) -> list[Token]:
    """The tokens of this key, newest first, revoked and expired ones too. Of more than `limit` the oldest dead ones
    are left out."""
    return [_token(row) for row in await db.fetch(_LIST_OF, bytes.fromhex(owner), limit)]


async def newest(db: Database, *, with_dead: bool = False, limit: int = 1000) -> list[Token]:
    """Tokens, newest first; `with_dead` adds those that are revoked or expired."""
    return [_token(row) for row in await db.fetch(_LIST, with_dead, limit)]


async def standings(db: Database, token_ids: Collection[str]) -> dict[str, Standing]:
    """How these tokens stand now. A token that is not there any more counts as revoked."""
    rows = await db.fetch(_STANDINGS, list(token_ids))
    found = {row["id"]: Standing(row["revoked"], row["seconds_left"]) for row in rows}
    return {token_id: found.get(token_id, _GONE) for token_id in token_ids}


async def revoke(db: Database, token_id: str, *, owner: str | None = None) -> Revocation:
    """Ends a token for ever. In force for every HTTP request whose look-up begins after this returns.

    `owner`: the key that asks, which knows of no tokens but its own; None: the operator.
    """
    row = await db.fetchrow(_REVOKE, token_id, None if owner is None else bytes.fromhex(owner))
    assert row is not None
    if row["done"]:
        return Revocation.DONE
    return Revocation.ALREADY if row["known"] else Revocation.UNKNOWN


async def revoke_all(con: Connection, owner: str) -> list[str]:
    """Ends every token of this key, also one that is being made. Returns the ids of those that this has ended, in
    order. To be called in a transaction."""
    # A statement of its own: the next one sees what was made by whoever had the turn before.
    await take_turn(con, owner)
    return sorted(row["id"] for row in await con.fetch(_REVOKE_ALL, bytes.fromhex(owner)))
