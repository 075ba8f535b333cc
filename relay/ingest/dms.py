"""Opening a direct-message channel: one for each set of participants, made by the relay itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from relay.audit.entry import Action
from relay.fanout.items import Joined
from relay.ingest.effects import Effect, refuse
from relay.ingest.group_state import store_group_state, store_notice, store_system_message
from relay.ingest.types import STORED, Outcome
from relay.store import channels, dms, members

__all__ = ["DmOpened", "OpenDm", "participant_hash"]

PARTICIPANTS_MAX = 9


@dataclass(frozen=True, slots=True)
class DmOpened:
    """The channel, and whether it is new."""

    channel_id: str
    created: bool


def participant_hash(pubkeys: Iterable[str]) -> bytes:
    """SHA-256 over the sorted, distinct 32-byte keys: what makes two requests mean the same DM."""
    return sha256(b"".join(bytes.fromhex(pubkey) for pubkey in sorted(set(pubkeys)))).digest()


class OpenDm:
    """The transaction behind `Ingest.open_dm`; `result` is set when it has been run."""

    def __init__(self, actor: str, pubkeys: Iterable[str], *, announce: bool) -> None:
        self.actor = actor
        self.participants = [actor, *sorted(set(pubkeys) - {actor})]
        self.announce = announce
        self.result: DmOpened | None = None

    async def __call__(self, effect: Effect) -> Outcome:
        digest = participant_hash(self.participants)
        # Two first openings at once: the second one waits here and then finds the channel.
        await dms.lock_participants(effect.con, digest)
        channel_id = await dms.find(effect.con, digest)
        if channel_id is not None:
            await self._come_back(effect, channel_id)
            self.result = DmOpened(channel_id, False)
            return STORED
        count = len(self.participants)
        channel_id = await channels.create(
            effect.con,
            channel_id=None,
            name="DM" if count == 2 else f"Group DM ({count})",
            channel_type="dm",
            visibility="private",
            description=None,
            created_by=self.actor,
            participant_hash=digest,
        )
        assert channel_id is not None
        effect.audit(Action.CHANNEL_CREATED, None, channel_id, metadata={"channel_type": "dm"})
        for pubkey in self.participants:
            await members.put(effect.con, channel_id, pubkey, "member", self.actor)
            self._added(effect, channel_id, pubkey)
        if self.announce:
            await store_system_message(
                effect, channel_id, type="dm_created", actor=self.actor, participants=self.participants
            )
        await store_group_state(effect, channel_id)
        for pubkey in self.participants:
            await store_notice(effect, channel_id, pubkey, added=True, actor=self.actor)
        self.result = DmOpened(channel_id, True)
        return STORED

    async def _come_back(self, effect: Effect, channel_id: str) -> None:
        """Shows the DM to the caller again, and lets in one who had left: the set of participants is its identity."""
        await effect.turn.take(channel_id)
        if await channels.lock(effect.con, channel_id) is None:
            raise refuse("channel not found")
        if await members.role(effect.con, channel_id, self.actor) is not None:
            await dms.unhide(effect.con, channel_id, self.actor)
            return
        await members.put(effect.con, channel_id, self.actor, "member", self.actor)
        effect.items.append(Joined(channel_id, self.actor))
        self._added(effect, channel_id, self.actor)
        await store_group_state(effect, channel_id)
        await store_notice(effect, channel_id, self.actor, added=True, actor=self.actor)

    @staticmethod
    def _added(effect: Effect, channel_id: str, pubkey: str) -> None:
        effect.audit(Action.MEMBER_ADDED, None, channel_id, metadata={"target": pubkey, "role": "member"})
        effect.invalidations.append(lambda directory: directory.invalidate_membership(channel_id, pubkey))
