"""NIP-29: changing what a group is, and ending it.

Kind 9002 names what changes by tags, and they are gone through in their order: each one that has a system message gets
it, and the channel is written once. Everything is checked before anything is stored, so an edit happens whole or, with
a text that says why, not at all. Kind 9008 is for ever.

Who may: owners and admins change name, about, archived, visibility and ttl; topic and purpose belong to all members.
Only an owner ends the group.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from relay.access.directory import Directory
from relay.audit.entry import Action
from relay.fanout.items import Redefined
from relay.ingest.effects import Effect, refuse
from relay.ingest.group_state import lock, store_group_state, store_in, store_system_message
from relay.ingest.relay_events import GROUP_STATE_KINDS
from relay.ingest.types import STORED, Admission, Outcome
from relay.nostr import kinds
from relay.nostr.event import Event
from relay.nostr.numbers import parse_decimal
from relay.store import channels, events, members
from relay.store.channels import ChannelRecord
from relay.store.members import ELEVATED

NAME_CHARACTERS_MAX = 255
TEXT_BYTES_MAX = 32_768
"""Of about, topic and purpose: kind 39000 repeats all three at every change, to every reader, and has to fit into what
may wait for one of them."""
TTL_SECONDS_MAX = 2**31 - 1
CHANGES_MAX = 32
"""Of one edit, which has seven things to change. Each may make a message that is signed, stored and delivered while the
channel is locked."""

_OF_ALL_MEMBERS = ("topic", "purpose")
_OF_ADMINS = ("name", "about", "archived")
_OF_ADMINS_SINCE = ("visibility", "ttl")
"""Later than the others, which is why their refusal has a text of its own."""
_FIELDS = frozenset({*_OF_ALL_MEMBERS, *_OF_ADMINS, *_OF_ADMINS_SINCE})
_TEXTS = ("about", *_OF_ALL_MEMBERS)
_NAMED_VISIBILITY = {"private": "private", "public": "open"}
# Their values are short, and say more than that they were changed.
_VALUES_AUDITED = ("archived", "visibility", "ttl")


@dataclass(frozen=True, slots=True)
class _Change:
    field: str
    value: str


async def edit_metadata(effect: Effect, admission: Admission, ttl_override: int | None = None) -> Outcome:
    """Kind 9002. `ttl_override` replaces the life (seconds) of a channel that is to have one."""
    event = admission.event
    before = await lock(effect, admission, even_archived=unarchives(event))
    changes = _changes(event, before)
    await _check_rights(effect, before, event.pubkey, {change.field for change in changes})
    channel, messages = before, []
    for change in changes:
        channel, message = _changed(channel, change, ttl_override)
        if message is not None:
            messages.append(message)
    await store_in(effect, event, channel)
    changed = list(dict.fromkeys(change.field for change in changes))
    await channels.save(effect.con, channel, by=event.pubkey, changed=changed)
    values = {change.field: change.value for change in changes if change.field in _VALUES_AUDITED}
    effect.audit(Action.CHANNEL_UPDATED, event, channel.id, metadata={"changed": ",".join(changed), **values})
    await _tell_caches_and_readers(effect, channel.id, visibility="visibility" in changed)
    for kind, details in messages:
        await store_system_message(effect, channel.id, type=kind, actor=event.pubkey, **details)
    await store_group_state(effect, channel.id)
    return STORED


async def _tell_caches_and_readers(effect: Effect, channel_id: str, *, visibility: bool) -> None:
    effect.invalidations.append(lambda directory: directory.invalidate_channel(channel_id))
    if visibility:
        effect.invalidations.append(Directory.invalidate_accessible_all)
        audience = (await members.audiences(effect.con, [channel_id]))[channel_id]
        # Before everything else of this transaction: who is out sees nothing of it.
        effect.items.insert(0, Redefined(channel_id, audience))


def unarchives(event: Event) -> bool:
    """Whether it is an edit that takes its channel out of the archive: nothing else may come into one."""
    return event.kind == kinds.NIP29_EDIT_METADATA and any(tag[:2] == ["archived", "false"] for tag in event.tags)


def _changes(event: Event, before: ChannelRecord) -> list[_Change]:
    """The metadata tags in their order, each one well formed.

    Raises:
        Ended: One of them is not, or there is none.
    """
    tags = [tag for tag in event.tags if tag[0] in _FIELDS]
    named = named_visibility(event)
    if named is not None and all(tag[0] != "visibility" for tag in tags) and (named != before.visibility or not tags):
        tags.append(["visibility", named])  # such clients say it with every edit
    if not tags:
        raise refuse("kind:9002 must include at least one metadata tag (name, about, archived, topic, purpose)")
    if len(tags) > CHANGES_MAX:
        raise refuse(f"kind:9002 must include at most {CHANGES_MAX} metadata tags (got {len(tags)})")
    for tag in tags:
        if len(tag) < 2:
            raise refuse(f"{tag[0]} tag must have a value")
        _check_value(tag[0], tag[1])
    return [_Change(tag[0], tag[1]) for tag in tags]


def named_visibility(event: Event) -> str | None:
    """NIP-29's bare tags `private` and `public`, for clients that do not know ours; the first of them counts."""
    return next((_NAMED_VISIBILITY[tag[0]] for tag in event.tags if tag[0] in _NAMED_VISIBILITY), None)


def _check_value(field: str, value: str) -> None:
    if field == "archived" and value not in ("true", "false"):
        raise refuse(f'invalid archived value: {value} (must be "true" or "false")')
    if field == "visibility" and value not in channels.VISIBILITIES:
        raise refuse(f'invalid visibility value: {value} (must be "open" or "private")')
    if field == "ttl" and value and parse_ttl(value) is None:
        raise refuse(f"invalid ttl value: {value} (must be a positive integer of seconds, or empty to clear)")
    if field == "name":
        check_name(value)
    if field in _TEXTS:
        check_text(field, value)


def check_text(field: str, value: str) -> None:
    """Raises Ended where a channel's about, topic or purpose is too long."""
    if len(value.encode()) > TEXT_BYTES_MAX:
        raise refuse(f"channel {field} exceeds {TEXT_BYTES_MAX} bytes")


def check_name(name: str) -> None:
    """Raises Ended where a channel cannot be called that."""
    if not name.strip():
        raise refuse("channel name is required")
    if len(name) > NAME_CHARACTERS_MAX:
        raise refuse(f"channel name exceeds {NAME_CHARACTERS_MAX} characters")


def parse_ttl(text: str) -> int | None:
    """Seconds, from 1 to what the column holds; None where the text is nothing of the kind."""
    return parse_decimal(text, TTL_SECONDS_MAX) or None


async def _check_rights(effect: Effect, channel: ChannelRecord, actor: str, fields: set[str]) -> None:
    role = await members.role(effect.con, channel.id, actor)
    if role not in ELEVATED:
        if not fields.isdisjoint(_OF_ADMINS):
            raise refuse("actor not authorized for name/about/archived changes")
        if not fields.isdisjoint(_OF_ADMINS_SINCE):
            raise refuse("actor not authorized for visibility/ttl changes")
    if role is None:
        raise refuse("not a member")
    if channel.channel_type == "dm" and "visibility" in fields:
        raise refuse("a DM stays private")


def _changed(
    channel: ChannelRecord, change: _Change, ttl_override: int | None
) -> tuple[ChannelRecord, tuple[str, dict[str, object]] | None]:
    """The channel after this change, and what to say of it: (type, details) of a system message.

    Raises:
        Ended: The channel already is what it shall become.
    """
    field, value = change.field, change.value
    if field == "name":
        return replace(channel, name=value), None
    if field == "about":
        return replace(channel, description=value or None), None
    if field == "topic":
        return replace(channel, topic=value or None), ("topic_changed", {"topic": value})
    if field == "purpose":
        return replace(channel, purpose=value or None), ("purpose_changed", {"purpose": value})
    if field == "visibility":
        return replace(channel, visibility=value), ("visibility_changed", {"visibility": value})
    if field == "ttl":
        seconds = parse_ttl(value)
        if seconds is not None and ttl_override is not None:
            seconds = ttl_override
        return replace(channel, ttl_seconds=seconds), ("ttl_changed", {"ttl_seconds": seconds})
    archived = value == "true"
    if archived == channel.archived:
        raise refuse("channel is already archived" if archived else "channel is not archived")
    return replace(channel, archived=archived), ("channel_archived" if archived else "channel_unarchived", {})


async def delete_group(effect: Effect, admission: Admission) -> Outcome:
    """Kind 9008: the channel, and what the relay says of its state. Its messages are out of reach with it."""
    event = admission.event
    channel = await lock(effect, admission)
    if await members.role(effect.con, channel.id, event.pubkey) != "owner":
        raise refuse("only owner can delete group")
    await store_in(effect, event, channel)
    await channels.delete(effect.con, channel.id)
    await events.supersede(effect.con, GROUP_STATE_KINDS, effect.key.public_hex, channel.id)
    effect.audit(Action.CHANNEL_DELETED, event, channel.id)
    effect.invalidations.append(Directory.clear)
    await store_system_message(effect, channel.id, type="channel_deleted", actor=event.pubkey)
    # After everything else of this transaction: its readers learn why they lose it.
    effect.items.append(Redefined(channel.id, None))
    return STORED


HANDLERS: dict[int, Callable[[Effect, Admission], Awaitable[Outcome]]] = {
    kinds.NIP29_EDIT_METADATA: edit_metadata,
    kinds.NIP29_DELETE_GROUP: delete_group,
}
