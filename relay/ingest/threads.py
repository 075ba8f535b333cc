"""NIP-10 at admission: what a reply answers must be there, in the same channel, and in the thread that it names.

One statement for a reply, none for anything else. The rows and counters are written with the event; see
`store/threads.py`.
"""

from __future__ import annotations

from relay.errors import Refusal
from relay.nostr import nip10
from relay.nostr.event import Event, load_event
from relay.store import events, threads
from relay.store.channels import Database
from relay.store.threads import DEPTH_MAX, ParentRow, ThreadPlace

NO_PARENT = Refusal.invalid("reply parent not found")
OTHER_CHANNEL = Refusal.invalid("parent event belongs to a different channel")
WITHOUT_CHANNEL = Refusal.invalid("parent event has no channel association")
OTHER_ROOT = Refusal.invalid("root tag does not match thread ancestry")
TOO_DEEP = Refusal.invalid("thread depth limit exceeded")


async def place_of(db: Database, event: Event, channel_id: str) -> ThreadPlace | Refusal | None:
    """Where a reply in this channel stands, or why it cannot; None for an event that answers nothing."""
    reply = nip10.reply_of(event.tags)
    if reply is None:
        return None
    parent = await threads.parent(db, reply.parent)
    if parent is None or not parent.live:
        return NO_PARENT
    if parent.channel_id is None:
        return WITHOUT_CHANNEL
    if parent.channel_id != channel_id:
        return OTHER_CHANNEL
    root = parent.root if parent.root is not None else await _root_without_row(db, parent)
    if reply.root != root:
        return OTHER_ROOT
    depth = parent.depth + 1 if parent.root is not None or root == parent.id else 2
    if depth > DEPTH_MAX:
        return TOO_DEEP
    return ThreadPlace(parent.id, root, depth, nip10.is_broadcast(event.tags))


async def _root_without_row(db: Database, parent: ParentRow) -> str:
    """The thread of an event that was not stored as a reply: what its own tags say, for the clients read it there, as
    long as that is in its channel. Nothing may be counted, or listed, across the border of a channel."""
    assert parent.signed_json is not None
    named = nip10.markers(load_event(parent.signed_json).tags)
    root = named.root or named.reply
    if root is None or root == parent.id:
        return parent.id
    stored = await events.get(db, root)
    return root if stored is not None and stored.channel_id == parent.channel_id else parent.id
