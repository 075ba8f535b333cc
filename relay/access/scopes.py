"""Which right a kind of event needs, and whether a caller has it.

A kind that stands in no table here is one that no client may submit. `proxy:submit` stands above all of them: it was
given to a bridge that signs for others and checks them itself. Rights are not access: whether the caller may write to
*this* channel is asked elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from relay.access.identity import Caller
from relay.errors import Refusal, RefusalClass
from relay.nostr import kinds

MESSAGES_READ: Final = "messages:read"
MESSAGES_WRITE: Final = "messages:write"
CHANNELS_READ: Final = "channels:read"
CHANNELS_WRITE: Final = "channels:write"
ADMIN_CHANNELS: Final = "admin:channels"
USERS_READ: Final = "users:read"
USERS_WRITE: Final = "users:write"

STORED: Final[Mapping[int, str]] = MappingProxyType(
    {
        kinds.PROFILE: USERS_WRITE,
        kinds.TEXT_NOTE: MESSAGES_WRITE,
        kinds.CONTACT_LIST: USERS_WRITE,
        kinds.DELETION: MESSAGES_WRITE,
        kinds.REACTION: MESSAGES_WRITE,
        kinds.STREAM_MESSAGE: MESSAGES_WRITE,
        kinds.NIP29_PUT_USER: ADMIN_CHANNELS,
        kinds.NIP29_REMOVE_USER: ADMIN_CHANNELS,
        kinds.NIP29_CREATE_GROUP: CHANNELS_WRITE,
        # Who may read channels may also choose which to be in.
        kinds.NIP29_JOIN_REQUEST: CHANNELS_READ,
        kinds.NIP29_LEAVE_REQUEST: CHANNELS_READ,
    }
)
EPHEMERAL: Final[Mapping[int, str]] = MappingProxyType(
    {kinds.PRESENCE_UPDATE: MESSAGES_WRITE, kinds.TYPING_INDICATOR: MESSAGES_WRITE}
)

UNKNOWN_KIND: Final = Refusal("restricted: unknown event kind")
EPHEMERAL_SCOPE: Final = Refusal("restricted: insufficient scope for ephemeral events", RefusalClass.SCOPE)


def required_scope(kind: int) -> str | None:
    """The scope that submitting this kind needs; None for a kind that is not accepted."""
    return STORED.get(kind) or EPHEMERAL.get(kind)


def refuse_submission(caller: Caller, kind: int) -> Refusal | None:
    """The refusal of this kind from this caller, None if the caller's rights suffice."""
    scope = required_scope(kind)
    if scope is None:
        return UNKNOWN_KIND
    if caller.has(scope) or caller.is_proxy:
        return None
    if kind in EPHEMERAL:
        return EPHEMERAL_SCOPE
    return Refusal(f"restricted: insufficient scope (need {scope})", RefusalClass.SCOPE)
