"""Admission: may this event, from this caller, through this door, go on?

Pure rules first (kind, id and signature, time, size), then rights, then the channel, from the caches of the
`Directory`, so that a message to a known channel costs no statement. What only the event's own transaction can decide
(roles, owners, targets) is decided there, in `groups.py` and its siblings.

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
from relay.ingest.types import Admission, Door, Route
from relay.nostr import kinds
from relay.nostr.event import Event, InvalidEvent, verify
from relay.nostr.ids import parse_hex64
from relay.store import events
from relay.store.channels import Database

INT64_MAX = 2**63 - 1

WRONG_SIGNER = Refusal.auth("invalid: event pubkey does not match authenticated identity")
# The WebSocket's door asks before everything else, and then it is a fault of form, as in the original's metrics.
WRONG_SIGNER_AT_DOOR = Refusal.invalid("event pubkey does not match authenticated identity")
NOT_MEMBER = Refusal("restricted: not a channel member")
ARCHIVED = Refusal.invalid("channel is archived")
NO_CHANNEL = Refusal.invalid("channel-scoped events must include an h tag")
DRIFT = Refusal.invalid("event timestamp too far from server time")
NUL = Refusal.invalid("event must not contain NUL characters")
NOT_RELAY_SIGNED = Refusal.invalid("membership notifications are relay-signed only")
TOKEN_CHANNEL = Refusal.auth("restricted: token does not have access to this channel")
TOKEN_GLOBAL = Refusal.auth("restricted: channel-scoped tokens cannot publish global events")

_PLAIN = frozenset({kinds.TEXT_NOTE, kinds.STREAM_MESSAGE})
_GLOBAL = frozenset({kinds.PROFILE, kinds.TEXT_NOTE, kinds.CONTACT_LIST, kinds.PRESENCE_UPDATE})
_CHANNEL_REQUIRED = frozenset(
    {kinds.STREAM_MESSAGE, kinds.NIP29_PUT_USER, kinds.NIP29_REMOVE_USER, kinds.NIP29_LEAVE_REQUEST}
)
# The event itself makes the membership, or the channel.
_NO_MEMBERSHIP = frozenset({kinds.NIP29_JOIN_REQUEST, kinds.NIP29_CREATE_GROUP})
_RELAY_SIGNED = frozenset({kinds.MEMBER_ADDED_NOTIFICATION, kinds.MEMBER_REMOVED_NOTIFICATION})


class Admitter:
    """Holds what the checks read. `now_us` is the relay's clock in microseconds since the epoch."""

    def __init__(self, settings: Settings, directory: Directory, db: Database, now_us: Callable[[], int]) -> None:
        self._directory = directory
        self._db = db
        self._now_us = now_us
        self._drift = settings.max_clock_drift_seconds
        self._content_max = settings.max_content_bytes

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
            entered = await self._enter(found, caller)
            if isinstance(entered, Refusal):
                return entered
            touches_ttl, member = entered, None if caller.is_proxy else caller.pubkey
        return Admission(event, caller, found, route_of(event.kind), member, touches_ttl, time_us, started)

    def _refuse_event(self, event: Event, caller: Caller, door: Door, time_us: int) -> Refusal | None:
        """What is wrong with the event itself, or with this caller's submitting it anywhere."""
        at_door = _refuse_at_door(event, caller, door)
        if at_door is not None:
            return at_door
        if door is Door.WEBSOCKET and kinds.is_ephemeral(event.kind):
            # Never stored, so neither its time nor its size matters; and the scope comes first.
            return refuse_submission(caller, event.kind) or _refuse_forgery(event)
        return self._refuse_form(event, caller, time_us) or refuse_submission(caller, event.kind)

    def _refuse_form(self, event: Event, caller: Caller, time_us: int) -> Refusal | None:
        forged = _refuse_forgery(event)
        if forged is not None:
            return forged
        if not caller.is_proxy and abs(event.created_at - time_us // 1_000_000) > self._drift:
            return DRIFT
        if event.created_at > INT64_MAX:
            return DRIFT
        size = len(event.content) if event.content.isascii() else len(event.content.encode())
        if size > self._content_max:
            return Refusal.invalid(f"content exceeds maximum size of {self._content_max} bytes (got {size})")
        if b"\\u0000" in event.json and _has_nul(event):
            return NUL  # PostgreSQL's text has no NUL: better refused with a reason than lost with an error
        if event.pubkey != caller.pubkey and not caller.is_proxy:
            return WRONG_SIGNER
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
            return None if stored is None or stored.deleted else stored.channel_id
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

    async def _enter(self, channel_id: str, caller: Caller) -> Refusal | bool:
        """Whether the channel lives longer because of the event, or why it may not come in."""
        channel = self._directory.channel_nowait(channel_id) or await self._directory.channel(channel_id)
        if channel is None:
            return NOT_MEMBER
        if not channel.is_open and not caller.is_proxy:
            member = self._directory.is_member_nowait(channel_id, caller.pubkey)
            if member is None:
                member = await self._directory.is_member(channel_id, caller.pubkey)
            if not member:
                return NOT_MEMBER
        if channel.archived:
            return ARCHIVED
        return channel.ttl_seconds is not None


def _refuse_at_door(event: Event, caller: Caller, door: Door) -> Refusal | None:
    kind = event.kind
    if door is Door.WEBSOCKET and event.pubkey != caller.pubkey and not caller.is_proxy:
        return WRONG_SIGNER_AT_DOOR
    if kind == kinds.AUTH:
        via = " via EVENT" if door is Door.WEBSOCKET else ""
        return Refusal.invalid(f"AUTH events cannot be submitted{via}")
    if kind in _RELAY_SIGNED:
        return NOT_RELAY_SIGNED
    if door is Door.HTTP and kind in (kinds.GIFT_WRAP, kinds.PRESENCE_UPDATE):
        return Refusal.invalid(f"kind {kind} is only accepted via WebSocket")
    return None


def _refuse_forgery(event: Event) -> Refusal | None:
    try:
        verify(event)
    except InvalidEvent as error:
        return Refusal.invalid(error.reason)
    return None


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


def _has_nul(event: Event) -> bool:
    return "\0" in event.content or any("\0" in part for tag in event.tags for part in tag)
