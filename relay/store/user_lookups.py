"""Users as others see them: by key, many keys at once, by a part of what they are called, by NIP-05 handle.

Reads only; profiles are written with their kind 0, rows appear with the first sign-in. Every function is one statement
whatever the number of users.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from relay.store.channels import Database

HANDLE_CHARACTERS_MAX: Final = 255
"""What the column holds; a longer one belongs to nobody."""

# A substring has a trigram of its own only in three letters or digits in a row: for less, an index of trigrams is read
# from end to end, which takes longer than reading the table.
_TRIGRAM: Final = re.compile(r"[^\W_]{3}")
_HEX: Final = re.compile(r"[0-9a-f]{1,64}", re.ASCII | re.IGNORECASE)
_SPECIAL: Final = re.compile(r"([\\%_])")


@dataclass(frozen=True, slots=True)
class User:
    """A row of `users`. `owner` is the key that owns an agent; keys are lowercase hex."""

    pubkey: str
    display_name: str | None
    avatar_url: str | None
    about: str | None
    nip05_handle: str | None
    owner: str | None


_COLUMNS = (
    "encode(pubkey, 'hex') AS pubkey, display_name, avatar_url, about, nip05_handle, "
    "encode(agent_owner_pubkey, 'hex') AS owner"
)
_GET = f"SELECT {_COLUMNS} FROM users WHERE pubkey = $1"
_MANY = f"SELECT {_COLUMNS} FROM users WHERE pubkey = ANY ($1::bytea[])"
_BY_HANDLE = "SELECT encode(pubkey, 'hex') FROM users WHERE nip05_handle = $1"

# $1 the text, $2 the same as a pattern, $3 how many. Lowered here, by the same rules as what it is compared with.
# Either the patterns, which an index of trigrams answers where there is one, or the plain search of every row. That one
# has no use for $2, but every parameter must be named somewhere.
_BY_PATTERN = ("lower(display_name) LIKE lower($2)", "lower(nip05_handle) LIKE lower($2)")
_BY_SCAN = ("strpos(lower(display_name), lower($1)) > 0", "strpos(lower(nip05_handle), lower($1)) > 0")
_KEY_BY_PATTERN = "encode(pubkey, 'hex') LIKE lower($2)"
_KEY_BY_SCAN = "strpos(encode(pubkey, 'hex'), lower($1)) > 0"

_SEARCH = """
SELECT {columns}
FROM (SELECT *, lower(display_name) AS name, lower(nip05_handle) AS handle, encode(pubkey, 'hex') AS key,
             lower($1) AS wanted
      FROM users WHERE {conditions} AND $2::text IS NOT NULL) found
ORDER BY CASE WHEN name = wanted THEN 0 WHEN handle = wanted THEN 1 WHEN key = wanted THEN 2
              WHEN starts_with(name, wanted) THEN 3 WHEN starts_with(handle, wanted) THEN 4
              WHEN starts_with(key, wanted) THEN 5 ELSE 6 END,
         coalesce(nullif(name, ''), nullif(handle, ''), key), key
LIMIT $3"""


def _statement(conditions: Sequence[str]) -> str:
    return _SEARCH.format(columns=_COLUMNS, conditions=f"({' OR '.join(conditions)})")


# (an index can help, the text may be a part of a key) → the statement.
_SEARCHES: Final = {
    (True, True): _statement((*_BY_PATTERN, _KEY_BY_PATTERN)),
    (True, False): _statement(_BY_PATTERN),
    (False, True): _statement((*_BY_SCAN, _KEY_BY_SCAN)),
    (False, False): _statement(_BY_SCAN),
}


async def get(db: Database, pubkey: str) -> User | None:
    """The user with this key, if the relay has ever seen one."""
    row = await db.fetchrow(_GET, bytes.fromhex(pubkey))
    return None if row is None else _user(row)


async def many(db: Database, pubkeys: Sequence[str]) -> list[User]:
    """Those of the keys that are known, in no order."""
    return [_user(row) for row in await db.fetch(_MANY, [bytes.fromhex(pubkey) for pubkey in pubkeys])]


async def by_handle(db: Database, handle: str) -> str | None:
    """The key that holds this NIP-05 handle (`local@domain`, any case)."""
    handle = handle.lower()
    if len(handle) > HANDLE_CHARACTERS_MAX or "\0" in handle:
        return None
    found: str | None = await db.fetchval(_BY_HANDLE, handle)
    return found


async def search(db: Database, text: str, limit: int) -> list[User]:
    """Users with `text` (not empty) in their name, their handle or their key, in any case.

    Exact matches first, then what begins with it, then the rest; in each, names before handles before keys, and by name
    (handle, key where there is none).
    """
    assert text
    if "\0" in text:
        return []  # PostgreSQL keeps no such text, and takes none
    statement = _SEARCHES[_TRIGRAM.search(text) is not None, _HEX.fullmatch(text) is not None]
    pattern = "%" + _SPECIAL.sub(r"\\\1", text) + "%"
    return [_user(row) for row in await db.fetch(statement, text, pattern, limit)]


def _user(row: Any) -> User:
    return User(row["pubkey"], row["display_name"], row["avatar_url"], row["about"], row["nip05_handle"], row["owner"])
