"""NIP-29: creating groups, adding and removing members, joining and leaving. What changes or ends a group itself is in
`group_edits.py`, what all of them share in `group_state.py`.

Every function runs inside the transaction of its event. The channel's row is locked first, so that two owners who
leave in the same moment cannot both believe that the other one stays. Nothing is stored of an event that is refused.

Who may do what: any member may invite into a private channel, anybody into an open one; `owner` is given and taken by
owners, every other role by owners and admins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from relay.audit.entry import Action
from relay.errors import Refusal
from relay.fanout.items import Joined, Left
from relay.ingest.effects import Effect, Ended, refuse
from relay.ingest.group_edits import check_name, check_text, named_visibility, parse_ttl
from relay.ingest.group_state import (
    lock,
    store_event,
    store_group_state,
    store_in,
    store_notice,
    store_system_message,
)
from relay.ingest.types import DUPLICATE, STORED, Admission, Outcome
from relay.nostr import kinds
from relay.nostr.event import Event
from relay.nostr.ids import NIL_UUID, parse_hex64
from relay.store import channels, events, members
from relay.store.members import ELEVATED, ROLES

# A DM or a workflow channel has rules of its own, and the relay makes it where these are kept.
CREATABLE_TYPES = ("stream", "forum")
CHANNEL_EXISTS = Outcome(False, "duplicate: channel already exists")
LAST_OWNER = "cannot remove the last owner"
NOT_AUTHORIZED = "actor not authorized"


async def create_group(effect: Effect, admission: Admission, ttl_override: int | None = None) -> Outcome:
    """Kind 9007. Without an `h` tag the relay chooses the id and names it in the OK message. `ttl_override` replaces
    the life (seconds) of a channel that is to have one."""
    event = admission.event
    name, visibility, channel_type, ttl = _creation_tags(event)
    if admission.channel_id == NIL_UUID:
        raise refuse("channel id must not be the nil UUID")
    if admission.channel_id is not None:
        # Its id is known: who adds members the moment it is there must not be heard of before it.
        await effect.turn.take(admission.channel_id)
    channel_id = await channels.create(
        effect.con,
        channel_id=admission.channel_id,
        name=name,
        channel_type=channel_type,
        visibility=visibility,
        description=event.first_tag("about"),
        created_by=event.pubkey,
        ttl_seconds=ttl if ttl is None or ttl_override is None else ttl_override,
    )
    if channel_id is None:
        # The same event again is a duplicate, another one that claims the same id is refused.
        raise Ended(DUPLICATE if await events.known(effect.con, [event.id]) else CHANNEL_EXISTS)
    await members.put(effect.con, channel_id, event.pubkey, "owner", event.pubkey)
    await store_event(effect, event, channel_id)
    effect.audit(Action.CHANNEL_CREATED, event, channel_id)
    effect.audit(Action.MEMBER_ADDED, event, channel_id, metadata={"target": event.pubkey, "role": "owner"})
    _membership_changed(effect, channel_id, event.pubkey)
    if visibility == "open":
        effect.invalidations.append(lambda directory: directory.invalidate_accessible_all())
    await store_system_message(effect, channel_id, type="channel_created", actor=event.pubkey)
    await store_group_state(effect, channel_id)
    await store_notice(effect, channel_id, event.pubkey, added=True, actor=event.pubkey)
    return STORED if admission.channel_id is not None else Outcome(True, f"channel: {channel_id}")


def _creation_tags(event: Event) -> tuple[str, str, str, int | None]:
    name = event.first_tag("name") or ""
    check_name(name)
    check_text("about", event.first_tag("about") or "")
    visibility = event.first_tag("visibility")
    if visibility is None:
        visibility = named_visibility(event) or "open"
    if visibility not in channels.VISIBILITIES:
        raise _refuse_bare(f"invalid visibility: {visibility}")
    channel_type = event.first_tag("channel_type")
    if channel_type is None:
        channel_type = "stream"
    if channel_type not in CREATABLE_TYPES:
        raise _refuse_bare(f"invalid channel_type: {channel_type}")
    ttl = event.first_tag("ttl")
    seconds = None if ttl is None else parse_ttl(ttl)
    if ttl is not None and seconds is None:
        raise refuse(f"invalid ttl value: {ttl[:40]} (must be a positive integer of seconds)")
    return name, visibility, channel_type, seconds


def _refuse_bare(text: str) -> Ended:
    """With a text that has no prefix: clients of the original compare it whole."""
    return Ended(Outcome.refused(Refusal(text)))


async def put_user(effect: Effect, admission: Admission) -> Outcome:
    """Kind 9000."""
    event = admission.event
    channel = await lock(effect, admission)
    role_tag = event.first_tag("role")
    if role_tag is not None and role_tag not in ROLES:
        raise refuse(f"invalid role: {role_tag}")
    actor_role = await members.role(effect.con, channel.id, event.pubkey)
    if not channel.is_open and actor_role is None:
        raise refuse(NOT_AUTHORIZED)
    target = next(iter(event.p_tags()), None)
    if target is None:
        raise refuse("missing p tag")
    if channel.channel_type == "dm":
        raise refuse("the participants of a DM do not change; open a new DM")
    current = await members.role(effect.con, channel.id, target)
    role = role_tag or _role_in_p_tag(event) or current or "member"
    await _check_role_change(effect, channel.id, actor_role, current, role)
    if target != event.pubkey:
        await _check_add_policy(effect, event.pubkey, target)
    await store_in(effect, event, channel)
    await _join(effect, event, channel.id, target, role, invited_by=event.pubkey)
    return STORED


def _role_in_p_tag(event: Event) -> str | None:
    """NIP-29 writes roles behind the key, where other clients have the address of a relay: the highest one we know."""
    named = next((tag[2:] for tag in event.tags if tag[0] == "p" and len(tag) > 1 and parse_hex64(tag[1])), [])
    return next((role for role in ROLES if role in named), None)


async def _check_role_change(
    effect: Effect, channel_id: str, actor_role: str | None, current: str | None, role: str
) -> None:
    """Giving `owner`, or changing an owner, needs an owner; every other change of a role an owner or admin."""
    if "owner" in (current, role) and current != role and actor_role != "owner":
        raise refuse(NOT_AUTHORIZED if current is not None else "only owners/admins may grant elevated roles")
    if role in ELEVATED and current != role and actor_role not in ELEVATED:
        raise refuse("only owners/admins may grant elevated roles")
    if current is not None and current != role and actor_role not in ELEVATED:
        raise refuse(NOT_AUTHORIZED)
    if current == "owner" != role and await members.owners(effect.con, channel_id) == 1:
        raise refuse(LAST_OWNER)


async def _check_add_policy(effect: Effect, actor: str, target: str) -> None:
    policy, owner = await members.add_policy(effect.con, target)
    if policy == "owner_only" and owner is None:
        raise refuse("policy:owner_only — agent has no owner set")
    if policy == "owner_only" and owner != actor:
        raise refuse("policy:owner_only — only the agent owner can add this agent")
    if policy == "nobody":
        raise refuse("policy:nobody — this agent has disabled external channel additions")


async def remove_user(effect: Effect, admission: Admission) -> Outcome:
    """Kind 9001."""
    event = admission.event
    channel = await lock(effect, admission)
    target = next(iter(event.p_tags()), None)
    if target is None:
        raise refuse("missing p tag")
    current = await members.role(effect.con, channel.id, target)
    if target == event.pubkey:
        if current is None:
            raise refuse("actor is not an active member")
    else:
        await _check_removal(effect, channel.id, event.pubkey, target, current)
    await _check_last_owner(effect, channel.id, current)
    await store_in(effect, event, channel)
    kind = "member_left" if target == event.pubkey else "member_removed"
    await _leave(effect, event, channel.id, target, {"type": kind, "actor": event.pubkey, "target": target})
    return STORED


async def _check_removal(effect: Effect, channel_id: str, actor: str, target: str, current: str | None) -> None:
    actor_role = await members.role(effect.con, channel_id, actor)
    if actor_role is None:
        raise refuse(NOT_AUTHORIZED)
    if actor_role not in ELEVATED:
        _, owner = await members.add_policy(effect.con, target)
        if owner != actor:
            raise refuse(NOT_AUTHORIZED)
    if current == "owner" and actor_role != "owner":
        raise refuse(NOT_AUTHORIZED)
    if current is None:
        raise refuse("target is not an active member")


async def join(effect: Effect, admission: Admission) -> Outcome:
    """Kind 9021. Joining twice is stored and changes nothing."""
    event = admission.event
    channel = await lock(effect, admission)
    if not channel.is_open:
        raise _refuse_bare("restricted: channel is private")
    await store_in(effect, event, channel)
    if await members.role(effect.con, channel.id, event.pubkey) is None:
        await _join(effect, event, channel.id, event.pubkey, "member", invited_by=None)
    return STORED


async def leave(effect: Effect, admission: Admission) -> Outcome:
    """Kind 9022."""
    event = admission.event
    channel = await lock(effect, admission)
    current = await members.role(effect.con, channel.id, event.pubkey)
    if current is None:
        raise refuse("actor is not an active member")
    await _check_last_owner(effect, channel.id, current)
    await store_in(effect, event, channel)
    await _leave(effect, event, channel.id, event.pubkey, {"type": "member_left", "actor": event.pubkey})
    return STORED


async def _join(
    effect: Effect, event: Event, channel_id: str, target: str, role: str, *, invited_by: str | None
) -> None:
    await members.put(effect.con, channel_id, target, role, invited_by)
    effect.items.append(Joined(channel_id, target))
    effect.audit(Action.MEMBER_ADDED, event, channel_id, metadata={"target": target, "role": role})
    _membership_changed(effect, channel_id, target)
    await store_system_message(effect, channel_id, type="member_joined", actor=event.pubkey, target=target)
    await store_group_state(effect, channel_id)
    await store_notice(effect, channel_id, target, added=True, actor=event.pubkey)


async def _leave(effect: Effect, event: Event, channel_id: str, target: str, payload: dict[str, object]) -> None:
    await members.remove(effect.con, channel_id, target, event.pubkey)
    # Before everything else of this transaction: who is out sees nothing of it.
    effect.items.insert(0, Left(channel_id, target))
    effect.audit(Action.MEMBER_REMOVED, event, channel_id, metadata={"target": target})
    _membership_changed(effect, channel_id, target)
    await store_system_message(effect, channel_id, **payload)
    await store_group_state(effect, channel_id)
    await store_notice(effect, channel_id, target, added=False, actor=event.pubkey)


async def _check_last_owner(effect: Effect, channel_id: str, current: str | None) -> None:
    if current == "owner" and await members.owners(effect.con, channel_id) == 1:
        raise refuse(LAST_OWNER)


def _membership_changed(effect: Effect, channel_id: str, pubkey: str) -> None:
    effect.invalidations.append(lambda directory: directory.invalidate_access(channel_id, pubkey))


HANDLERS: dict[int, Callable[[Effect, Admission], Awaitable[Outcome]]] = {
    kinds.NIP29_CREATE_GROUP: create_group,
    kinds.NIP29_PUT_USER: put_user,
    kinds.NIP29_REMOVE_USER: remove_user,
    kinds.NIP29_JOIN_REQUEST: join,
    kinds.NIP29_LEAVE_REQUEST: leave,
}
