"""Kinds that replace their own predecessor, and reactions: profiles, contacts, long form, kind 7.

Every function runs inside the transaction of its event; see `effects.py`. A replaced version is marked as deleted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson

from relay.ingest.deletions import enter_again
from relay.ingest.effects import Effect, Ended, refuse
from relay.ingest.types import DUPLICATE, STORED, Admission, Outcome
from relay.nostr import kinds
from relay.store import deletions, events, profiles, reactions
from relay.store.events import Replaced
from relay.store.profiles import Profile

EMOJI_CHARACTERS_MAX = 64
D_TAG_BYTES_MAX = 1024
HANDLE_CHARACTERS_MAX = 255
NAME_CHARACTERS_MAX = 255
"""What is kept of a name. Lists repeat it in each row: one of 260 000 made an answer with 200 reactions 52 MB long."""
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
    name = text("display_name", "name")
    shown = None if name is None else name[:NAME_CHARACTERS_MAX]
    return Profile(shown, text("picture", "image"), text("about"), handle if ours else None)


async def replace(effect: Effect, admission: Admission) -> Outcome:
    """A replaceable event (NIP-01): the newest stays, of equals the lowest id."""
    match await events.replace(effect.con, admission.event, admission.channel_id):
        case Replaced.DELETED_BY_AUTHOR:
            raise refuse("event was deleted by its author")
        case Replaced.LOST:
            raise Ended(DUPLICATE)
    effect.stored(admission.event, admission.channel_id)
    return STORED


async def save_long_form(effect: Effect, admission: Admission) -> Outcome:
    """Kind 30023 (NIP-23), addressable by its `d` tag; one without counts as empty."""
    size = len((admission.event.first_tag("d") or "").encode())
    if size > D_TAG_BYTES_MAX:
        raise refuse(f"d tag too long ({size} bytes, max {D_TAG_BYTES_MAX})")
    return await replace(effect, admission)


async def react(effect: Effect, admission: Admission) -> Outcome:
    """Kind 7 (NIP-25): one active reaction for a target, a key and an emoji; an empty content means `+`."""
    event = admission.event
    emoji = event.content or "+"
    if len(emoji) > EMOJI_CHARACTERS_MAX:
        raise refuse(f"reaction emoji exceeds {EMOJI_CHARACTERS_MAX} characters (got {len(emoji)})")
    await enter_again(effect, admission)
    # Locked: a reaction to what is being deleted comes before it or is refused.
    target = await deletions.lock(effect.con, event.hex64_values("e")[-1], effect.now, shared=True)
    if target is None or target.deleted:
        raise refuse("reaction target event not found")
    if not await events.insert_one(effect.con, event, admission.channel_id):
        raise Ended(DUPLICATE)
    if not await reactions.add(effect.con, target.id, event.pubkey, emoji, event.id):
        raise Ended(REACTION_EXISTS)
    effect.stored(event, admission.channel_id)
    return STORED


HANDLERS: dict[int, Callable[[Effect, Admission], Awaitable[Outcome]]] = {
    kinds.CONTACT_LIST: replace,
    kinds.REACTION: react,
    kinds.LONG_FORM: save_long_form,
}
