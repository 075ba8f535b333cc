"""Which right an event needs, and whether a caller has it.

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
from relay.nostr.event import Event

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
        kinds.GIFT_WRAP: MESSAGES_WRITE,
        kinds.NIP29_PUT_USER: ADMIN_CHANNELS,
        kinds.NIP29_REMOVE_USER: ADMIN_CHANNELS,
        # Archiving is for administrators; see `required_scope`.
        kinds.NIP29_EDIT_METADATA: CHANNELS_WRITE,
        kinds.NIP29_DELETE_EVENT: MESSAGES_WRITE,
        kinds.NIP29_CREATE_GROUP: CHANNELS_WRITE,
        kinds.NIP29_DELETE_GROUP: ADMIN_CHANNELS,
        # Who may read channels may also choose which to be in.
        kinds.NIP29_JOIN_REQUEST: CHANNELS_READ,
        kinds.NIP29_LEAVE_REQUEST: CHANNELS_READ,
        kinds.LONG_FORM: MESSAGES_WRITE,
        kinds.STREAM_MESSAGE_V2: MESSAGES_WRITE,
        kinds.STREAM_MESSAGE_EDIT: MESSAGES_WRITE,
        kinds.STREAM_MESSAGE_PINNED: MESSAGES_WRITE,
        kinds.STREAM_MESSAGE_BOOKMARKED: MESSAGES_WRITE,
        kinds.STREAM_MESSAGE_SCHEDULED: MESSAGES_WRITE,
        kinds.STREAM_REMINDER: MESSAGES_WRITE,
        kinds.STREAM_MESSAGE_DIFF: MESSAGES_WRITE,
        kinds.CANVAS: CHANNELS_WRITE,
        kinds.FORUM_POST: MESSAGES_WRITE,
        kinds.FORUM_VOTE: MESSAGES_WRITE,
        kinds.FORUM_COMMENT: MESSAGES_WRITE,
        kinds.HUDDLE_STARTED: CHANNELS_WRITE,
        kinds.HUDDLE_PARTICIPANT_JOINED: CHANNELS_WRITE,
        kinds.HUDDLE_PARTICIPANT_LEFT: CHANNELS_WRITE,
        kinds.HUDDLE_ENDED: CHANNELS_WRITE,
        kinds.HUDDLE_TRACK_PUBLISHED: CHANNELS_WRITE,
        kinds.HUDDLE_RECORDING_AVAILABLE: CHANNELS_WRITE,
        kinds.HUDDLE_GUIDELINES: CHANNELS_WRITE,
    }
)

UNKNOWN_KIND: Final = Refusal("restricted: unknown event kind")
EPHEMERAL_SCOPE: Final = Refusal("restricted: insufficient scope for ephemeral events", RefusalClass.SCOPE)


def required_scope(event: Event) -> str | None:
    """The scope that submitting this event needs; None for a kind that is not accepted."""
    kind = event.kind
    scope = STORED.get(kind)
    if scope is None:
        return MESSAGES_WRITE if kinds.is_ephemeral(kind) and kind != kinds.AUTH else None
    if kind == kinds.NIP29_EDIT_METADATA and any(tag[0] == "archived" for tag in event.tags):
        return ADMIN_CHANNELS
    return scope


def refuse_submission(caller: Caller, event: Event) -> Refusal | None:
    """The refusal of this event from this caller, None if the caller's rights suffice."""
    scope = required_scope(event)
    if scope is None:
        return UNKNOWN_KIND
    if caller.has(scope) or caller.is_proxy:
        return None
    if kinds.is_ephemeral(event.kind):
        return EPHEMERAL_SCOPE
    return Refusal(f"restricted: insufficient scope (need {scope})", RefusalClass.SCOPE)
