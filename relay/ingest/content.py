"""Kinds that act on other events or replace their own predecessor: profiles, contacts, deletions, reactions.

Every function runs inside the transaction of its event; see `effects.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson

from relay.audit.entry import Action
from relay.ingest.admit import NOT_MEMBER
from relay.ingest.effects import Effect, Ended, refuse
from relay.ingest.relay_events import GROUP_STATE_KINDS
from relay.ingest.types import DUPLICATE, STORED, Admission, Outcome
from relay.nostr import kinds
from relay.nostr.event import Event, load_event
from relay.nostr.ids import parse_hex64
from relay.store import events, members, profiles, reactions
from relay.store.events import StoredEvent
from relay.store.profiles import Profile

EMOJI_CHARACTERS_MAX = 64
HANDLE_CHARACTERS_MAX = 255
REACTION_EXISTS = Outcome(False, "duplicate: reaction already exists")


async def save_profile(effect: Effect, admission: Admission, domain: str) -> Outcome:
    """Kind 0 (NIP-01, NIP-05): replaces the older one and brings the users' table up to date."""
    event = admission.event
    try:
        metadata = orjson.loads(event.content)
    except orjson.JSONDecodeError:
        raise refuse("kind:0 content must be valid JSON") from None
    outcome = await replace(effect, admission)
    await profiles.save(effect.con, event.pubkey, read_profile(metadata, domain))
    return outcome


def read_profile(metadata: object, domain: str) -> Profile:
    """What is shown of a kind 0 content. A `nip05` of another domain than ours is not ours to vouch for."""
    fields = metadata if isinstance(metadata, dict) else {}

    def text(*names: str) -> str | None:
        found: str | None = next((fields[name] for name in names if isinstance(fields.get(name), str)), None)
        # An escaped NUL passes as content; PostgreSQL could not keep what it stands for.
        return found.replace("\0", "") if found is not None else None

    given = fields.get("nip05")
    handle = given.lower() if isinstance(given, str) else ""
    local, at, host = handle.partition("@")
    ours = bool(local and at) and host == domain and len(handle) <= HANDLE_CHARACTERS_MAX and "\0" not in handle
    return Profile(text("display_name", "name"), text("picture", "image"), text("about"), handle if ours else None)


async def replace(effect: Effect, admission: Admission) -> Outcome:
    """A replaceable event (NIP-01): the newest stays, of equals the lowest id."""
    if not await events.replace(effect.con, admission.event, admission.channel_id):
        raise Ended(DUPLICATE)
    effect.stored(admission.event, admission.channel_id)
    return STORED


async def _enter_again(effect: Effect, admission: Admission) -> None:
    """Channel and membership once more, as the insert of plain events does: admission may have asked a cache."""
    channel_id = admission.channel_id
    if channel_id is not None and not await members.may_write(effect.con, channel_id, admission.member):
        raise Ended(Outcome.refused(NOT_MEMBER))


async def delete(effect: Effect, admission: Admission) -> Outcome:
    """Kind 5 (NIP-09): the author takes back one event. Deleting what is deleted is stored and changes nothing."""
    event = admission.event
    target_id = next(iter(event.hex64_values("e")), None)
    if target_id is None:
        raise refuse("missing e tag for target event")
    await _enter_again(effect, admission)
    target = await events.get(effect.con, target_id)
    # One that appeared since admission has a channel whose rules were not asked.
    if target is None or not (target.deleted or target.channel_id == admission.channel_id):
        raise refuse("target event not found")
    if effective_author(target, effect.key.public_hex) != event.pubkey:
        raise refuse("must be event author")
    count = sum(1 for tag in event.tags if tag[0] == "e")
    if count != 1:
        raise refuse(f"deletion events must reference exactly one target (got {count})")
    if not await events.insert_one(effect.con, event, admission.channel_id):
        raise Ended(DUPLICATE)
    effect.stored(event, admission.channel_id)
    if await events.mark_deleted(effect.con, target_id):
        effect.audit(Action.EVENT_DELETED, event, admission.channel_id, metadata={"target": target_id})
    if target.kind == kinds.REACTION:
        await reactions.remove(effect.con, target_id)
    return STORED


async def react(effect: Effect, admission: Admission) -> Outcome:
    """Kind 7 (NIP-25): one active reaction for a target, a key and an emoji; an empty content means `+`."""
    event = admission.event
    emoji = event.content or "+"
    if len(emoji) > EMOJI_CHARACTERS_MAX:
        raise refuse(f"reaction emoji exceeds {EMOJI_CHARACTERS_MAX} characters (got {len(emoji)})")
    await _enter_again(effect, admission)
    valid = [target for target in map(parse_hex64, event.tag_values("e")) if target is not None]
    target = await events.get(effect.con, valid[-1])
    if target is None or target.deleted:
        raise refuse("reaction target event not found")
    if not await events.insert_one(effect.con, event, admission.channel_id):
        raise Ended(DUPLICATE)
    if not await reactions.add(effect.con, target.id, event.pubkey, emoji, event.id):
        raise Ended(REACTION_EXISTS)
    effect.stored(event, admission.channel_id)
    return STORED


def effective_author(stored: StoredEvent, relay_pubkey: str) -> str:
    """Who counts as the author: of what the relay signed for somebody, the key in its `actor` or first `p` tag. The
    state of a group is signed for nobody, whoever stands first in it."""
    if stored.pubkey != relay_pubkey or stored.kind in GROUP_STATE_KINDS:
        return stored.pubkey
    event: Event = load_event(stored.signed_json)
    actor = next((key for key in map(parse_hex64, event.tag_values("actor")) if key is not None), None)
    return actor or next(iter(event.p_tags()), stored.pubkey)


HANDLERS: dict[int, Callable[[Effect, Admission], Awaitable[Outcome]]] = {
    kinds.CONTACT_LIST: replace,
    kinds.DELETION: delete,
    kinds.REACTION: react,
}
