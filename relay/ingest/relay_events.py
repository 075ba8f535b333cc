"""Events that the relay signs itself: the state of NIP-29 groups, system messages, membership notices.

Built here, stored in the transaction of the change that they tell of. 39000 to 39002 replace their predecessors; their
`created_at` grows strictly, so that of two changes within a second the later one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from relay.nostr import kinds
from relay.nostr.event import Event, sign_event
from relay.nostr.keys import SecretKey
from relay.store.channels import ChannelRecord
from relay.store.members import ELEVATED, Member

GROUP_STATE_KINDS = (kinds.NIP29_GROUP_METADATA, kinds.NIP29_GROUP_ADMINS, kinds.NIP29_GROUP_MEMBERS)


def group_metadata(key: SecretKey, channel: ChannelRecord, members: Sequence[Member], created_at: int) -> Event:
    """Kind 39000 (NIP-29). A DM names its participants, since nobody outside can read it."""
    tags = [["d", channel.id], ["name", channel.name]]
    if channel.description:
        tags.append(["about", channel.description])
    tags.append(["public"] if channel.is_open else ["private"])
    if channel.channel_type == "dm":
        tags.append(["hidden"])
    tags += [["closed"], ["t", channel.channel_type]]
    if channel.topic:
        tags.append(["topic", channel.topic])
    if channel.purpose:
        tags.append(["purpose", channel.purpose])
    if channel.archived:
        tags.append(["archived", "true"])
    if channel.ttl_seconds is not None:
        tags.append(["ttl", str(channel.ttl_seconds)])
    if channel.ttl_deadline is not None:
        # RFC 3339, in UTC as the driver gives it. Of this moment: every event in the channel moves it on.
        tags.append(["ttl_deadline", channel.ttl_deadline.isoformat(timespec="seconds")])
    if channel.channel_type == "dm":
        tags += [["p", member.pubkey] for member in members]
    return sign_event(key, created_at=created_at, kind=kinds.NIP29_GROUP_METADATA, tags=tags, content="")


def group_admins(key: SecretKey, channel_id: str, members: Sequence[Member], created_at: int) -> Event:
    """Kind 39001 (NIP-29): owners and admins with their role."""
    tags = [["d", channel_id], *(["p", member.pubkey, member.role] for member in members if member.role in ELEVATED)]
    return sign_event(key, created_at=created_at, kind=kinds.NIP29_GROUP_ADMINS, tags=tags, content="")


def group_members(key: SecretKey, channel_id: str, members: Sequence[Member], created_at: int) -> Event:
    """Kind 39002 (NIP-29): every active member in the order of joining."""
    tags = [["d", channel_id], *(["p", member.pubkey, "", member.role] for member in members)]
    return sign_event(key, created_at=created_at, kind=kinds.NIP29_GROUP_MEMBERS, tags=tags, content="")


def system_message(key: SecretKey, channel_id: str, created_at: int, payload: dict[str, Any]) -> Event:
    """Kind 40099: what happened to a channel, for people to read in its stream."""
    content = orjson.dumps(payload).decode()
    return sign_event(key, created_at=created_at, kind=kinds.SYSTEM_MESSAGE, tags=[["h", channel_id]], content=content)


def membership_notice(
    key: SecretKey, channel_id: str, created_at: int, *, target: str, actor: str, added: bool
) -> Event:
    """Kind 44100 or 44101: tells a key that it was added or removed. Global, readable by that key alone."""
    kind = kinds.MEMBER_ADDED_NOTIFICATION if added else kinds.MEMBER_REMOVED_NOTIFICATION
    payload = {"type": "member_added" if added else "member_removed", "channel_id": channel_id, "actor": actor}
    tags = [["p", target], ["h", channel_id]]
    return sign_event(key, created_at=created_at, kind=kind, tags=tags, content=orjson.dumps(payload).decode())
