"""Admission: may this event, from this caller, through this door, go on?

Pure rules first (kind, id and signature, time, size), then rights, then the channel, from the caches of the
`Directory`, then what a kind or a tag demands of the content. A message to a known channel that answers nothing costs
no statement; what refers to another event costs one. What only the event's own transaction can decide (roles, owners,
what is deleted) is decided there, in `groups.py` and its siblings.

The order of the checks is part of the contract: a client sees the text of the first one that fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from relay.access.directory import Directory
from relay.access.identity import Caller
from relay.access.scopes import UNKNOWN_KIND, refuse_submission
from relay.config import Settings
from relay.errors import Refusal
from relay.ingest import targets, threads
from relay.ingest.group_edits import unarchives
from relay.ingest.types import Admission, Door, Route
from relay.ingest.verified import Verified
from relay.nostr import kinds
from relay.nostr.diff import refuse_diff
from relay.nostr.event import Event, InvalidEvent
from relay.nostr.ids import parse_hex64
from relay.nostr.imeta import InvalidImeta, media_base, parse_imeta
from relay.nostr.nip40 import expires_at
from relay.store import events
from relay.store.channels import Database
from relay.store.threads import ThreadPlace

INT64_MAX = 2**63 - 1

WRONG_SIGNER = Refusal.auth("invalid: event pubkey does not match authenticated identity")
# The WebSocket's door asks before everything else, and then it is a fault of form, as in the original's metrics.
WRONG_SIGNER_AT_DOOR = Refusal.invalid("event pubkey does not match authenticated identity")
NOT_MEMBER = Refusal("restricted: not a channel member")
ARCHIVED = Refusal.invalid("channel is archived")
NO_CHANNEL = Refusal.invalid("channel-scoped events must include an h tag")
DRIFT = Refusal.invalid("event timestamp too far from server time")
NUL = Refusal.invalid("event must not contain NUL characters")
EXPIRED = Refusal.invalid("event has expired")
PROTECTED = Refusal.auth("restricted: this event may only be published by its author")
NOT_RELAY_SIGNED = Refusal.invalid("membership notifications are relay-signed only")
TOKEN_CHANNEL = Refusal.auth("restricted: token does not have access to this channel")
TOKEN_GLOBAL = Refusal.auth("restricted: channel-scoped tokens cannot publish global events")

_HUDDLE = frozenset(range(kinds.HUDDLE_STARTED, kinds.HUDDLE_GUIDELINES + 1))
# They may answer another message (NIP-10).
_THREADED = frozenset(
    {
        kinds.STREAM_MESSAGE,
        kinds.STREAM_MESSAGE_V2,
        kinds.STREAM_MESSAGE_PINNED,
        kinds.STREAM_MESSAGE_BOOKMARKED,
        kinds.STREAM_MESSAGE_SCHEDULED,
        kinds.STREAM_REMINDER,
        kinds.STREAM_MESSAGE_DIFF,
        kinds.FORUM_POST,
        kinds.FORUM_COMMENT,
    }
)
# What makes each valid is in its content, or in another event.
_EXAMINED = frozenset({kinds.STREAM_MESSAGE_EDIT, kinds.FORUM_VOTE, kinds.STREAM_MESSAGE_DIFF})
_CHANNEL_PLAIN = _THREADED | _EXAMINED | _HUDDLE | {kinds.CANVAS}
_PLAIN = _CHANNEL_PLAIN | {kinds.TEXT_NOTE, kinds.GIFT_WRAP}
_GLOBAL = frozenset(
    {
        kinds.PROFILE,
        kinds.TEXT_NOTE,
        kinds.CONTACT_LIST,
        kinds.GIFT_WRAP,
        kinds.LONG_FORM,
        kinds.PRESENCE_UPDATE,
    }
)
_CHANNEL_REQUIRED = _CHANNEL_PLAIN | {
    kinds.NIP29_PUT_USER,
    kinds.NIP29_REMOVE_USER,
    kinds.NIP29_EDIT_METADATA,
    kinds.NIP29_DELETE_EVENT,
    kinds.NIP29_DELETE_GROUP,
    kinds.NIP29_LEAVE_REQUEST,
}
# The event itself makes the membership, or the channel.
_NO_MEMBERSHIP = frozenset({kinds.NIP29_JOIN_REQUEST, kinds.NIP29_CREATE_GROUP})
_RELAY_SIGNED = frozenset({kinds.MEMBER_ADDED_NOTIFICATION, kinds.MEMBER_REMOVED_NOTIFICATION})
# Names of tags that restrict the event itself (NIP-40, NIP-70), and those that make it refer to something.
_RESTRICTING = frozenset({"expiration", "-"})
_PROTECTING = frozenset({"-"})
_REFERRING = frozenset({"e", "imeta"})


class Admitter:
    """Holds what the checks read. `now_us` is the relay's clock in microseconds since the epoch."""

    def __init__(
        self,
        settings: Settings,
        directory: Directory,
        db: Database,
        now_us: Callable[[], int],
        *,
        relay_pubkey: str,
    ) -> None:
        self._directory = directory
        self._db = db
        self._now_us = now_us
        self._drift = settings.max_clock_drift_seconds
        self._content_max = settings.max_content_bytes
        self._media_base = settings.media_base_url or media_base(settings.relay_url)
        self._relay_pubkey = relay_pubkey
        self._verified = Verified()

    async def admit(self, event: Event, caller: Caller, door: Door) -> Refusal | Admission:
        """All checks in order. Suspends only where a cache does not have the answer.

        Raises:
            StoreError, PostgresError: A cache's load failed; nothing was decided.
        """
        time_us, started = self._now_us(), time.perf_counter()
        refusal = self._refuse_event(event, caller, door, time_us)
        if refusal is not None:
            return refusal
        found = await self._channel_of(event)
        if isinstance(found, Refusal):
            return found
        if found is None and event.kind in _CHANNEL_REQUIRED:
            return NO_CHANNEL
        refusal = _refuse_token(caller, event.kind, found)
        if refusal is not None:
            return refusal
        touches_ttl = False
        member = None
        if found is not None and event.kind not in _NO_MEMBERSHIP:
            entered = await self._enter(found, event, caller)
            if isinstance(entered, Refusal):
                return entered
            touches_ttl, member = entered, None if caller.is_proxy else caller.pubkey
        thread = None
        if event.kind in _EXAMINED or _names_any(event, _REFERRING):
            examined = await self._examine(event, found, time_us // 1_000_000)
            if isinstance(examined, Refusal):
                return examined
            thread = examined
        return Admission(event, caller, found, route_of(event.kind), member, touches_ttl, time_us, started, thread)

    def _refuse_event(self, event: Event, caller: Caller, door: Door, time_us: int) -> Refusal | None:
        """What is wrong with the event itself, or with this caller's submitting it anywhere."""
        at_door = _refuse_at_door(event, caller, door)
        if at_door is not None:
            return at_door
        if door is Door.WEBSOCKET and kinds.is_ephemeral(event.kind):
            # Never stored, so neither its time nor its size matters; and the scope comes first.
            refusal = refuse_submission(caller, event) or self._refuse_forgery(event)
            return refusal or _refuse_restricted(event, caller, time_us)
        return self._refuse_form(event, caller, time_us) or refuse_submission(caller, event)

    def _refuse_forgery(self, event: Event) -> Refusal | None:
        try:
            self._verified.verify(event)
        except InvalidEvent as error:
            return Refusal.invalid(error.reason)
        return None

    def _refuse_form(self, event: Event, caller: Caller, time_us: int) -> Refusal | None:
        forged = self._refuse_forgery(event)
        if forged is not None:
            return forged
        ahead = event.created_at - time_us // 1_000_000
        if not caller.is_proxy and (ahead > self._drift or (-ahead > self._drift and event.kind != kinds.GIFT_WRAP)):
            return DRIFT  # NIP-59 dates a gift wrap back, by days
        if event.created_at > INT64_MAX:
            return DRIFT
        size = len(event.content) if event.content.isascii() else len(event.content.encode())
        if size > self._content_max:
            return Refusal.invalid(f"content exceeds maximum size of {self._content_max} bytes (got {size})")
        if b"\\u0000" in event.json and _has_nul(event):
            return NUL  # PostgreSQL's text has no NUL: better refused with a reason than lost with an error
        if _is_foreign(event, caller):
            return WRONG_SIGNER
        refusal = _refuse_restricted(event, caller, time_us)
        if refusal is not None:
            return refusal
        return UNKNOWN_KIND if kinds.is_ephemeral(event.kind) else None

    async def _channel_of(self, event: Event) -> str | Refusal | None:
        kind = event.kind
        if kind in _GLOBAL:
            return None
        if kind == kinds.REACTION:
            return await self._channel_of_reaction(event)
        if kind == kinds.DELETION:
            # Whether the target exists is asked again, with its text, where it is deleted.
            target = next(iter(event.hex64_values("e")), None)
            stored = None if target is None else await events.get(self._db, target)
            # Deleted or not: who takes something back twice says so where it stood, and to nobody else.
            return None if stored is None else stored.channel_id
        return event.channel_id()

    async def _channel_of_reaction(self, event: Event) -> str | Refusal | None:
        targets = event.tag_values("e")
        if not targets:
            return Refusal.invalid("reaction must reference a target event via e tag")
        valid = [target for target in map(parse_hex64, targets) if target is not None]
        if not valid:
            return Refusal.invalid("malformed reaction target id")
        stored = await events.get(self._db, valid[-1])
        if stored is None or stored.deleted:
            return Refusal.invalid("reaction target event not found")
        return stored.channel_id

    async def _enter(self, channel_id: str, event: Event, caller: Caller) -> Refusal | bool:
        """Whether the channel lives longer because of the event, or why it may not come in."""
        channel = self._directory.channel_nowait(channel_id) or await self._directory.channel(channel_id)
        if channel is None:
            return NOT_MEMBER
        # What a bridge stores it has checked; what is only passed on leaves no trace by which it could be held to that.
        if not channel.is_open and not (caller.is_proxy and not kinds.is_ephemeral(event.kind)):
            member = self._directory.is_member_nowait(channel_id, caller.pubkey)
            if member is None:
                member = await self._directory.is_member(channel_id, caller.pubkey)
            if not member:
                return NOT_MEMBER
        if channel.archived and not unarchives(event):
            return ARCHIVED
        return channel.ttl_seconds is not None

    async def _examine(self, event: Event, channel_id: str | None, now: int) -> ThreadPlace | Refusal | None:
        """What the event says of a file, of itself or of another event; its place in a thread if it has one."""
        kind = event.kind
        if kinds.is_ephemeral(kind):
            return None
        if channel_id is None:
            return self._refuse_imeta(event)
        refusal = None
        if kind == kinds.STREAM_MESSAGE_EDIT:
            refusal = await targets.refuse_edit(self._db, event, channel_id, self._relay_pubkey, now)
        elif kind == kinds.FORUM_VOTE:
            refusal = await targets.refuse_vote(self._db, event, channel_id, now)
        elif kind == kinds.STREAM_MESSAGE_DIFF and (wrong := refuse_diff(event)) is not None:
            refusal = Refusal.invalid(wrong)
        refusal = refusal or self._refuse_imeta(event)
        if refusal is not None or kind not in _THREADED:
            return refusal
        return await threads.place_of(self._db, event, channel_id)

    def _refuse_imeta(self, event: Event) -> Refusal | None:
        for tag in event.tags:
            if tag[0] == "imeta":
                try:
                    parse_imeta(tag, self._media_base)
                except InvalidImeta as error:
                    return Refusal.invalid(error.reason)
        return None


def _refuse_at_door(event: Event, caller: Caller, door: Door) -> Refusal | None:
    kind = event.kind
    if door is Door.WEBSOCKET and _is_foreign(event, caller):
        return WRONG_SIGNER_AT_DOOR
    if kind == kinds.AUTH:
        via = " via EVENT" if door is Door.WEBSOCKET else ""
        return Refusal.invalid(f"AUTH events cannot be submitted{via}")
    if kind in _RELAY_SIGNED:
        return NOT_RELAY_SIGNED
    if door is Door.HTTP and kind in (kinds.GIFT_WRAP, kinds.PRESENCE_UPDATE):
        return Refusal.invalid(f"kind {kind} is only accepted via WebSocket")
    return None


def _is_foreign(event: Event, caller: Caller) -> bool:
    """Signed by a key that is not the caller's. A gift wrap always is: by a key that was made for it (NIP-59)."""
    return event.pubkey != caller.pubkey and event.kind != kinds.GIFT_WRAP and not caller.is_proxy


def _refuse_restricted(event: Event, caller: Caller, time_us: int) -> Refusal | None:
    """NIP-40 and NIP-70: the author has set a time, or wants nobody to publish the event for him, bridges included."""
    if not _names_any(event, _RESTRICTING):
        return None
    expires = expires_at(event)
    if expires is not None and expires <= time_us // 1_000_000:
        return EXPIRED
    return PROTECTED if event.pubkey != caller.pubkey and _names_any(event, _PROTECTING) else None


def _refuse_token(caller: Caller, kind: int, channel_id: str | None) -> Refusal | None:
    if caller.channel_ids is None:
        return None
    if channel_id is not None:
        return None if caller.may_enter(channel_id) else TOKEN_CHANNEL
    # Presence belongs to no channel and tells nothing of one.
    return None if kind == kinds.PRESENCE_UPDATE else TOKEN_GLOBAL


def route_of(kind: int) -> Route:
    """What would happen with an event of this kind, if it is admitted."""
    if kind in _PLAIN:
        return Route.PLAIN
    return Route.EPHEMERAL if kinds.is_ephemeral(kind) else Route.EFFECT


def refers(event: Event) -> bool:
    """Whether admission or the event's effect may look for another event, which is then to be committed before: the
    message that is answered, edited, reacted to or deleted may have come a moment earlier on the same connection."""
    kind = event.kind
    if kind not in _PLAIN:
        return True
    return (kind in _THREADED or kind in _EXAMINED) and any(tag[0] == "e" for tag in event.tags)


def _names_any(event: Event, names: frozenset[str]) -> bool:
    # A loop: of the few ways to ask, the fastest for the one or two tags that most events have.
    for tag in event.tags:  # noqa: SIM110
        if tag[0] in names:
            return True
    return False


def _has_nul(event: Event) -> bool:
    return "\0" in event.content or any("\0" in part for tag in event.tags for part in tag)
