"""What every change of a NIP-29 group does: lock the channel, store the event, tell the state that follows from it.

All of it runs inside the transaction of an event or of the relay's own doing (`Effect`). What the relay says about a
group is signed and stored here, in the same transaction as the change; 39000 to 39002 are addressed to the channel's
readers, 40099 to its people, 44100 and 44101 to one key.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from relay.ingest.effects import Effect, Ended, refuse
from relay.ingest.relay_events import (
    GROUP_STATE_KINDS,
    group_admins,
    group_members,
    group_metadata,
    membership_notice,
    system_message,
)
from relay.ingest.types import DUPLICATE, Admission
from relay.nostr import kinds
from relay.nostr.event import Event
from relay.store import channels, events, members
from relay.store.channels import ChannelRecord

_NOTICES = (kinds.MEMBER_ADDED_NOTIFICATION, kinds.MEMBER_REMOVED_NOTIFICATION)


async def lock(effect: Effect, admission: Admission, *, even_archived: bool = False) -> ChannelRecord:
    """The channel of a group event: its turn in this process, then its row.

    Raises:
        Ended: There is no such channel, or it is archived and the event does not change that.
    """
    if admission.channel_id is None:
        raise refuse("missing or invalid h tag")
    await effect.turn.take(admission.channel_id)
    channel = await channels.lock(effect.con, admission.channel_id)
    if channel is None:
        raise refuse("channel not found")
    if channel.archived and not even_archived:
        raise refuse("channel is archived")
    return channel


async def store_event(effect: Effect, event: Event, channel_id: str | None) -> None:
    """Stores what a client signed.

    Raises:
        Ended: It was stored before; nothing is done again.
    """
    if not await events.insert_one(effect.con, event, channel_id):
        raise Ended(DUPLICATE)
    effect.stored(event, channel_id)


async def store_in(effect: Effect, event: Event, channel: ChannelRecord) -> None:
    """The same for an event in a locked channel, which lives on from it if it is ephemeral."""
    await store_event(effect, event, channel.id)
    if channel.ttl_seconds is not None:
        # Before the state is told: 39000 names the new deadline.
        await channels.touch_ttl(effect.con, [channel.id])


async def store_relay_event(effect: Effect, event: Event, channel_id: str | None) -> bool:
    """Stores what the relay signed; nothing where the identical event exists (same second, same parties)."""
    stored = await events.insert_one(effect.con, event, channel_id)
    if stored:
        effect.stored(event, channel_id, actor=event.pubkey)
    return stored


async def store_group_state(effect: Effect, channel_id: str) -> None:
    """39000, 39001 and 39002 as they are now, in place of the older ones. The caller holds the channel's lock."""
    key, con = effect.key, effect.con
    channel = await channels.get(con, channel_id)
    assert channel is not None
    active = await members.active(con, channel_id)
    newest = await events.newest_of_kinds(con, key.public_hex, channel_id, GROUP_STATE_KINDS)
    await events.supersede(con, GROUP_STATE_KINDS, key.public_hex, channel_id)
    for kind, build in (
        (kinds.NIP29_GROUP_METADATA, partial(group_metadata, key, channel, active)),
        (kinds.NIP29_GROUP_ADMINS, partial(group_admins, key, channel_id, active)),
        (kinds.NIP29_GROUP_MEMBERS, partial(group_members, key, channel_id, active)),
    ):
        # One that was deleted within this second counts no more as the newest, and yet has its id.
        await _store_at(effect, build, max(effect.now, newest.get(kind, 0) + 1), channel_id)


async def _store_at(effect: Effect, build: Callable[[int], Event], at: int, channel_id: str | None) -> None:
    """At this second, or at the next one in which nothing was said in the same words."""
    while not await store_relay_event(effect, build(at), channel_id):
        at += 1


async def store_system_message(effect: Effect, channel_id: str, **payload: object) -> None:
    """Kind 40099 with this content, in the order of the keywords."""
    build: Callable[[int], Event] = partial(system_message, effect.key, channel_id, payload=payload)
    await _store_at(effect, build, effect.now, channel_id)


async def store_notice(effect: Effect, channel_id: str, target: str, *, added: bool, actor: str) -> None:
    """Kind 44100 or 44101 to one key, dated after every earlier one about this channel: the last one says how it is."""
    told = await events.newest_tagged(
        effect.con, _NOTICES, effect.key.public_hex, {"p": target, "h": channel_id}, since=effect.now
    )
    at = effect.now if told is None else told + 1
    notice = membership_notice(effect.key, channel_id, at, target=target, actor=actor, added=added)
    await store_relay_event(effect, notice, None)
