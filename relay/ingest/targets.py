"""What an edit or a vote is about: another stored event, and who counts as its author.

Asked at admission, from the main pool: an event, its channel and its author never change once they are stored, so only
a deletion in the same moment could make the answer old, and that does no harm here.
"""

from __future__ import annotations

from relay.errors import Refusal
from relay.ingest.relay_events import GROUP_STATE_KINDS
from relay.nostr import kinds
from relay.nostr.event import Event, load_event
from relay.nostr.ids import parse_hex64
from relay.store import events
from relay.store.channels import Database
from relay.store.events import StoredEvent

OTHER_CHANNEL = Refusal.invalid("target event belongs to a different channel")
WITHOUT_CHANNEL = Refusal.invalid("target event has no channel")
_NOT_EDITOR = Refusal.invalid("must be event author to edit")
_NO_POST = Refusal.invalid("vote target must be a forum post or comment")


def effective_author(stored: StoredEvent, relay_pubkey: str) -> str:
    """Who counts as the author: of what the relay signed for somebody, the key in its `actor` or first `p` tag. The
    state of a group is signed for nobody, whoever stands first in it."""
    if stored.pubkey != relay_pubkey or stored.kind in GROUP_STATE_KINDS:
        return stored.pubkey
    event: Event = load_event(stored.signed_json)
    actor = next((key for key in map(parse_hex64, event.tag_values("actor")) if key is not None), None)
    return actor or next(iter(event.p_tags()), stored.pubkey)


async def refuse_edit(db: Database, event: Event, channel_id: str, relay_pubkey: str, now: int) -> Refusal | None:
    """Kind 40003: only the author edits a message, and where it stands. `now` in seconds."""
    target = await _target(db, event, channel_id, "edit", now)
    if isinstance(target, Refusal):
        return target
    return None if effective_author(target, relay_pubkey) == event.pubkey else _NOT_EDITOR


async def refuse_vote(db: Database, event: Event, channel_id: str, now: int) -> Refusal | None:
    """Kind 45002: one votes on posts and comments of the same forum. `now` in seconds."""
    target = await _target(db, event, channel_id, "vote", now)
    if isinstance(target, Refusal):
        return target
    return None if target.kind in (kinds.FORUM_POST, kinds.FORUM_COMMENT) else _NO_POST


async def _target(db: Database, event: Event, channel_id: str, what: str, now: int) -> StoredEvent | Refusal:
    target_id = next(iter(event.hex64_values("e")), None)
    if target_id is None:
        return Refusal.invalid(f"missing e tag for {what} target")
    target = await events.get(db, target_id)
    if target is None or target.deleted or (target.expires_at is not None and target.expires_at <= now):
        return Refusal.invalid(f"{what} target event not found")
    if target.channel_id is None:
        return WITHOUT_CHANNEL
    return target if target.channel_id == channel_id else OTHER_CHANNEL
