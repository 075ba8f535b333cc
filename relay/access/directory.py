"""Channels and memberships as the relay remembers them: the record of a channel, who is in it, and what a key may read.

In: questions of admission, REQ and HTTP. Out: answers from memory, or from the main pool. Whoever changes a channel or
a membership calls the invalidations after the commit and before the client hears of it. What is remembered here may be
`cache_seconds` old where another process made the change, so nothing irrevocable rests on it alone: the statement that
stores an event asks again.

A channel that does not exist is never remembered, and nor are memberships in it: random channel ids would push out
everything that is worth remembering.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from relay import metrics
from relay.access.cache import MISS, CacheStatistics, TtlCache
from relay.access.identity import Caller
from relay.asyncpg_trio import Pool
from relay.config import Settings
from relay.store import channels, members
from relay.store.channels import ChannelRecord


@dataclass(frozen=True, slots=True)
class DirectoryStatistics:
    channels: CacheStatistics
    memberships: CacheStatistics
    accessible: CacheStatistics


def _exists(record: ChannelRecord | None) -> bool:
    return record is not None


class Directory:
    """The three caches. Every async method raises what the pool and the store raise; none of it is remembered."""

    def __init__(self, pool: Pool, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._channels: TtlCache[str, ChannelRecord | None] = TtlCache(
            capacity=settings.cache_entries,
            seconds=settings.cache_seconds,
            clock=clock,
            hits=metrics.CHANNEL_CACHE_HITS,
            misses=metrics.CHANNEL_CACHE_MISSES,
        )
        self._memberships: TtlCache[tuple[str, str], bool] = TtlCache(
            capacity=settings.cache_entries,
            seconds=settings.cache_seconds,
            clock=clock,
            hits=metrics.MEMBERSHIP_CACHE_HITS,
            misses=metrics.MEMBERSHIP_CACHE_MISSES,
        )
        self._accessible: TtlCache[str, frozenset[str]] = TtlCache(
            capacity=settings.cache_entries,
            seconds=settings.cache_seconds,
            clock=clock,
            hits=metrics.ACCESSIBLE_CACHE_HITS,
            misses=metrics.ACCESSIBLE_CACHE_MISSES,
        )

    async def channel(self, channel_id: str) -> ChannelRecord | None:
        """The channel's record; None if there is none or it was deleted."""
        return await self._channels.get(channel_id, partial(channels.get, self._pool, channel_id), keep=_exists)

    def channel_nowait(self, channel_id: str) -> ChannelRecord | None:
        """The record in memory. None says nothing: the channel may exist all the same."""
        record = self._channels.get_nowait(channel_id)
        return None if record is MISS else record

    async def is_member(self, channel_id: str, pubkey: str) -> bool:
        """Whether the key is an active member of a channel that exists. Open visibility is another question."""
        known = self._memberships.get_nowait((channel_id, pubkey))
        if known is not MISS:
            return known
        if await self.channel(channel_id) is None:
            return False
        load = partial(members.is_member, self._pool, channel_id, pubkey)
        return await self._memberships.get((channel_id, pubkey), load)

    def is_member_nowait(self, channel_id: str, pubkey: str) -> bool | None:
        """The answer in memory, None if there is none."""
        known = self._memberships.get_nowait((channel_id, pubkey))
        return None if known is MISS else known

    async def accessible(self, pubkey: str) -> frozenset[str]:
        """Ids of all channels that the key may read: its own and the open ones."""
        return await self._accessible.get(pubkey, partial(members.accessible_channel_ids, self._pool, pubkey))

    async def readable_now(self, caller: Caller) -> frozenset[str]:
        """The channels that the caller may read, as its token lets it, as of the moment of the return, for what is then
        shown without another wait: an answer that a removal has overtaken on its way here is not taken."""
        while True:
            generation = self.accessible_generation
            found = await self.accessible(caller.pubkey)
            if self.accessible_generation == generation:
                return found if caller.channel_ids is None else found & caller.channel_ids

    @property
    def accessible_generation(self) -> int:
        """Changes whenever an answer of `accessible` may have become wrong, also one that is still on its way."""
        return self._accessible.generation

    def invalidate_membership(self, channel_id: str, pubkey: str) -> None:
        """After the key joined or left: its membership there and its list."""
        self._memberships.invalidate((channel_id, pubkey))
        self._accessible.invalidate(pubkey)

    def invalidate_channel(self, channel_id: str) -> None:
        """After a change of the channel's own record."""
        self._channels.invalidate(channel_id)

    def invalidate_access(self, channel_id: str, pubkey: str) -> None:
        """After anything that lets the key into the channel or keeps it out: its membership, or the channel itself."""
        self.invalidate_membership(channel_id, pubkey)
        self.invalidate_channel(channel_id)

    def invalidate_accessible_all(self) -> None:
        """After an open channel came or went, which changes everybody's list."""
        self._accessible.clear()

    def clear(self) -> None:
        """Forgets everything, after a change that touches more keys than are worth naming."""
        self._channels.clear()
        self._memberships.clear()
        self._accessible.clear()

    def statistics(self) -> DirectoryStatistics:
        return DirectoryStatistics(
            self._channels.statistics(), self._memberships.statistics(), self._accessible.statistics()
        )
