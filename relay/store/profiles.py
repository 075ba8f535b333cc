"""What a kind 0 event says of its author, kept in the users' table for the lists that show names."""

from __future__ import annotations

from dataclasses import dataclass

from relay.asyncpg_trio import Connection


@dataclass(frozen=True, slots=True)
class Profile:
    """The fields of NIP-01 metadata that are shown; None clears a field."""

    display_name: str | None
    avatar_url: str | None
    about: str | None
    nip05_handle: str | None


# A handle that somebody else holds is left alone: the rest of the profile is saved all the same.
_SAVE = """
INSERT INTO users (pubkey, display_name, avatar_url, about, nip05_handle)
SELECT $1, $2, $3, $4, CASE WHEN EXISTS (SELECT 1 FROM users WHERE nip05_handle = $5 AND pubkey <> $1)
                            THEN NULL ELSE $5 END
ON CONFLICT (pubkey) DO UPDATE
SET display_name = $2, avatar_url = $3, about = $4, updated_at = now(),
    nip05_handle = CASE WHEN EXISTS (SELECT 1 FROM users u WHERE u.nip05_handle = $5 AND u.pubkey <> $1)
                        THEN users.nip05_handle ELSE $5 END"""

_CLEAR = """
UPDATE users SET display_name = NULL, avatar_url = NULL, about = NULL, nip05_handle = NULL, updated_at = now()
WHERE pubkey = $1"""


async def save(con: Connection, pubkey: str, profile: Profile) -> None:
    """Writes the whole profile: what the event does not say is cleared."""
    # Two keys that claim one free handle in the same instant must meet here, not at the unique index.
    if profile.nip05_handle is not None:
        await con.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))", profile.nip05_handle)
    await con.execute(
        _SAVE, bytes.fromhex(pubkey), profile.display_name, profile.avatar_url, profile.about, profile.nip05_handle
    )


async def clear(con: Connection, pubkey: str) -> None:
    """Forgets what a kind 0 had said: it is deleted. The rest of the user's row stays."""
    await con.execute(_CLEAR, bytes.fromhex(pubkey))
