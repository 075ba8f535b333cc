"""Making an API token: the rules that hold whoever asks for it, over HTTP or at the command line.

In: a connection inside a transaction, and what is wanted. Out: the token, or why there is none; then the caller rolls
back, since the owner of an agent may have been set by then. Not done here: whether whoever asks may have these rights
and these channels, and the audit entry, which belongs in the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from relay.access.scopes import CHANNELS_READ, CHANNELS_WRITE, MESSAGES_READ, MESSAGES_WRITE, USERS_READ, USERS_WRITE
from relay.asyncpg_trio import Connection
from relay.store import tokens, users
from relay.store.tokens import Token

NAME_BYTES_MAX: Final = 100
ACTIVE_MAX: Final = 10
"""Tokens of one key that are neither revoked nor expired, where keys make their own. The original's."""
# What anybody may give to his own programs. The rest is given by the operator alone.
SELF_MINTABLE: Final = frozenset(
    {
        MESSAGES_READ,
        MESSAGES_WRITE,
        CHANNELS_READ,
        CHANNELS_WRITE,
        USERS_READ,
        USERS_WRITE,
        "files:read",
        "files:write",
    }
)
# Whoever owns an agent must be able to see and to reach it.
OWNED_AGENT_SCOPES: Final = (USERS_READ, MESSAGES_READ, MESSAGES_WRITE, CHANNELS_READ)
# An entry of the audit log has 64 KiB for all it says.
_CHANNELS_TOLD: Final = 1000


class MintProblem(Enum):
    """Why there is no token."""

    OWNED_NEEDS_SCOPES = auto()
    """The key is an agent with an owner, and some of `OWNED_AGENT_SCOPES` are not asked for."""
    OTHER_OWNER = auto()
    TOKEN_REVOKED = auto()
    """The one that asks, meanwhile."""
    TOO_MANY = auto()


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that is wanted.

    Attributes:
        text: See `tokens.new_text`.
        pubkey: The key that it speaks for.
        scopes: In order, each once.
        channel_ids: Canonical UUIDs that it is restricted to; None = no restriction.
        agent_owner: The owner that the key is to have from now on; None = as it is.
        active_max: Not if the key has so many active ones; None = however many.
        self_minted: Whether the key itself asked.
        asked_with: The id of the token that asks.
    """

    text: str = field(repr=False)
    pubkey: str
    name: str
    scopes: tuple[str, ...]
    channel_ids: tuple[str, ...] | None = None
    expires_days: int | None = None
    agent_owner: str | None = None
    active_max: int | None = None
    self_minted: bool = False
    asked_with: str | None = None


def missing_scopes(scopes: Collection[str]) -> list[str]:
    """What a token of an owned agent lacks."""
    return [scope for scope in OWNED_AGENT_SCOPES if scope not in scopes]


def told(token: Token) -> dict[str, Any]:
    """What the audit log says of a new token: never its text, nor anything that the text can be checked against."""
    channel_ids = None if token.channel_ids is None else list(token.channel_ids)
    found: dict[str, Any] = {
        "token_id": token.id,
        "owner": token.owner,
        "scopes": list(token.scopes),
        "channels": channel_ids,
    }
    if channel_ids is not None and len(channel_ids) > _CHANNELS_TOLD:
        found |= {"channels": channel_ids[:_CHANNELS_TOLD], "channel_count": len(channel_ids)}
    return found


async def mint(con: Connection, new: NewToken) -> Token | MintProblem:
    """Stores the token, the owner and the rows in `users` that they need. To be called in a transaction.

    Tokens of one key are made one after the other, so that their number and their owner hold whatever else goes on.
    """
    # In order, so that two who name each other do not wait for each other.
    await users.ensure(con, sorted({new.pubkey} if new.agent_owner is None else {new.pubkey, new.agent_owner}))
    present_owner = await tokens.take_turn(con, new.pubkey)
    # Whoever ends a token must not find afterwards that it has left another one behind.
    if new.asked_with is not None and not await tokens.hold(con, new.asked_with):
        return MintProblem.TOKEN_REVOKED
    if missing_scopes(new.scopes) and (new.agent_owner is not None or present_owner is not None):
        return MintProblem.OWNED_NEEDS_SCOPES
    if new.agent_owner is not None and not await users.set_owner(con, new.pubkey, new.agent_owner):
        return MintProblem.OTHER_OWNER
    token = await tokens.mint(
        con,
        text=new.text,
        owner=new.pubkey,
        name=new.name,
        scopes=new.scopes,
        channel_ids=new.channel_ids,
        expires_days=new.expires_days,
        self_minted=new.self_minted,
        active_max=new.active_max,
    )
    return MintProblem.TOO_MANY if token is None else token
