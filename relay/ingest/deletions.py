"""Deletions: of one's own events (kind 5, NIP-09) and of events of a channel (kind 9005, NIP-29).

In: an admitted deletion. Out: the deletion stored, its target marked as deleted and what the target had changed undone,
in one transaction (see `effects.py`). A deletion names exactly one target. It is itself never deleted: who deleted
what stays to be seen.

The bar against versions of an addressable event that come again later stands where such events are stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from relay.audit.entry import Action
from relay.errors import Refusal
from relay.ingest.admit import ARCHIVED, NOT_MEMBER
from relay.ingest.effects import Effect, Ended, refuse
from relay.ingest.group_state import store_event, store_system_message
from relay.ingest.relay_events import GROUP_STATE_KINDS
from relay.ingest.targets import effective_author
from relay.ingest.types import DUPLICATE, STORED, Admission, Outcome
from relay.nostr import kinds
from relay.nostr.event import Event, load_event
from relay.nostr.ids import parse_hex64
from relay.nostr.numbers import parse_decimal
from relay.store import channels, deletions, events, members, profiles, reactions, threads
from relay.store.events import StoredEvent
from relay.store.members import ELEVATED

DELETIONS: Final = frozenset({kinds.DELETION, kinds.NIP29_DELETE_EVENT})

NO_TARGET = "missing e tag for target event"
NOT_FOUND = "target event not found"
NOT_AUTHOR = "must be event author"
NOT_ALLOWED = "must be event author or channel owner/admin"


class Address(NamedTuple):
    """What an `a` tag names: all versions of a replaceable or addressable event. `d` is empty for the former."""

    kind: int
    pubkey: str
    d: str


def parse_address(text: str) -> Address | None:
    """`kind:pubkey:d` in its one spelling (NIP-01): the stored deletion is found by this text later."""
    number, _, rest = text.partition(":")
    pubkey, colon, d = rest.partition(":")
    kind = parse_decimal(number, kinds.KIND_MAX)
    if kind is None or str(kind) != number or not colon or parse_hex64(pubkey) != pubkey:
        return None
    if kinds.is_addressable(kind) or (kinds.is_replaceable(kind) and not d):
        return Address(kind, pubkey, d)
    return None


async def enter_again(effect: Effect, admission: Admission) -> None:
    """Channel and membership once more, as the insert of plain events does: admission may have asked a cache."""
    channel_id = admission.channel_id
    if channel_id is not None and not await members.may_write(effect.con, channel_id, admission.member):
        raise Ended(Outcome.refused(NOT_MEMBER))


async def delete(effect: Effect, admission: Admission) -> Outcome:
    """Kind 5: the author takes back one event, or all versions of one address. Deleting what is deleted is stored and
    changes nothing."""
    event = admission.event
    await enter_again(effect, admission)
    target_id = next(iter(event.hex64_values("e")), None)
    if target_id is not None:
        target = await _own_target(effect, admission, target_id)
        await _store(effect, admission)
        await _delete_one(effect, admission, target)
        return STORED
    address = await _own_address(effect, event)
    await _store(effect, admission)
    gone = await deletions.mark_address(effect.con, *address, event.created_at)
    await undo(effect, gone)
    for version in gone:
        effect.audit(Action.EVENT_DELETED, event, admission.channel_id, metadata={"target": version.id})
    return STORED


async def _own_target(effect: Effect, admission: Admission, target_id: str) -> StoredEvent:
    target = await deletions.lock(effect.con, target_id, effect.now)
    # One that appeared since admission has a channel whose rules were not asked.
    if target is None or not (target.deleted or target.channel_id == admission.channel_id):
        raise refuse(NOT_FOUND)
    if effective_author(target, effect.key.public_hex) != admission.event.pubkey:
        raise refuse(NOT_AUTHOR)
    return target


async def _own_address(effect: Effect, event: Event) -> Address:
    named = next((tag for tag in event.tags if tag[0] == "a"), None)
    if named is None:
        raise refuse(NO_TARGET)
    address = parse_address(named[1]) if len(named) > 1 else None
    if address is None:
        raise refuse("malformed deletion target id")
    if address.pubkey != event.pubkey:
        raise refuse(NOT_AUTHOR)
    if not await deletions.lock_address(effect.con, *address):
        raise refuse(NOT_FOUND)
    return address


async def delete_in_group(effect: Effect, admission: Admission) -> Outcome:
    """Kind 9005: an event of the channel, by its author or by an owner or admin. Says so in the channel's stream."""
    event, channel_id = admission.event, admission.channel_id
    assert channel_id is not None, "admission demands it of this kind"
    await _enter_channel(effect, admission, channel_id)
    target_id = next(iter(event.hex64_values("e")), None)
    if target_id is None:
        raise refuse(NO_TARGET)
    target = await deletions.lock(effect.con, target_id, effect.now)
    if target is None or target.deleted:
        # The same deletion again finds its own work.
        raise Ended(DUPLICATE) if await events.known(effect.con, [event.id]) else refuse(NOT_FOUND)
    if target.channel_id is None:
        raise refuse("target event has no channel")
    if target.channel_id != channel_id:
        raise refuse("target event belongs to a different channel")
    await _check_right(effect, event, target, channel_id)
    await _store(effect, admission)
    if await _delete_one(effect, admission, target):
        await store_system_message(
            effect, channel_id, type="message_deleted", actor=event.pubkey, target_event_id=target.id
        )
    return STORED


async def _enter_channel(effect: Effect, admission: Admission, channel_id: str) -> None:
    channel = await channels.get(effect.con, channel_id)
    if channel is None:
        raise refuse("channel not found")
    if channel.archived:
        raise Ended(Outcome.refused(ARCHIVED))
    await enter_again(effect, admission)


async def _check_right(effect: Effect, event: Event, target: StoredEvent, channel_id: str) -> None:
    # Without its state a group is unreadable for every client: nobody deletes that.
    if target.kind not in GROUP_STATE_KINDS:
        if effective_author(target, effect.key.public_hex) == event.pubkey:
            return
        if await members.role(effect.con, channel_id, event.pubkey) in ELEVATED:
            return
    raise refuse(NOT_ALLOWED)


async def _store(effect: Effect, admission: Admission) -> None:
    """Stores the deletion, if it names one target. Malformed tags count: whoever wrote them meant something."""
    event = admission.event
    e, a = (sum(tag[0] == name for tag in event.tags) for name in "ea")
    if e + a != 1:
        detail = f"deletion events must reference exactly one target via e or a tag (got e={e}, a={a})"
        raise Ended(Outcome.refused(Refusal.invalid(detail)))
    await store_event(effect, event, admission.channel_id)


async def _delete_one(effect: Effect, admission: Admission, target: StoredEvent) -> bool:
    """Whether the locked target was deleted just now."""
    if target.kind in DELETIONS or not await events.mark_deleted(effect.con, target.id):
        return False
    await undo(effect, [target])
    effect.audit(Action.EVENT_DELETED, admission.event, admission.channel_id, metadata={"target": target.id})
    return True


async def undo(effect: Effect, gone: Sequence[StoredEvent]) -> None:
    """What events had changed that this transaction has just deleted: counts of threads, reactions, profiles."""
    if not gone:
        return
    for reply_id in await deletions.lock_threads_of(effect.con, [event.id for event in gone]):
        await threads.forget(effect.con, reply_id)
    for event in gone:
        if event.kind == kinds.REACTION:
            await _take_back_reaction(effect, event)
        elif event.kind == kinds.PROFILE:
            await profiles.clear(effect.con, event.pubkey)


async def _take_back_reaction(effect: Effect, stored: StoredEvent) -> None:
    if await reactions.remove(effect.con, stored.id):
        return
    event = load_event(stored.signed_json)
    author = effective_author(stored, effect.key.public_hex)
    for target_id in event.hex64_values("e")[-1:]:
        await reactions.remove_unnamed(effect.con, target_id, author, event.content or "+")


HANDLERS: dict[int, Callable[[Effect, Admission], Awaitable[Outcome]]] = {
    kinds.DELETION: delete,
    kinds.NIP29_DELETE_EVENT: delete_in_group,
}
