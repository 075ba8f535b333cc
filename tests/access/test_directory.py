"""The directory on a real database: what it remembers, what it must not, and what each invalidation drops."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relay.access.directory import Directory
from relay.access.identity import AuthMethod, Caller
from relay.asyncpg_trio.errors import PoolClosed
from relay.config import Settings
from relay.store import members

OWNER, OTHER = "aa" * 32, "bb" * 32


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def new_channel(store: Any, visibility: str = "private") -> str:
    channel_id = str(uuid4())
    await store.con.execute(
        "INSERT INTO channels (id, name, visibility, created_by) VALUES ($1, 'c', $2::text::channel_visibility, $3)",
        channel_id, visibility, bytes.fromhex(OWNER),
    )  # fmt: skip
    await members.put(store.con, channel_id, OWNER, "owner", None)
    return channel_id


def new_directory(store: Any, clock: Clock | None = None, **changes: Any) -> Directory:
    return Directory(store.pool, Settings(**changes), clock or Clock())


async def test_a_channel_is_asked_for_once(store: Any) -> None:
    directory, channel_id = new_directory(store), await new_channel(store)
    assert directory.channel_nowait(channel_id) is None
    first = await directory.channel(channel_id)
    assert first is not None
    assert (first.id, first.visibility, first.archived) == (channel_id, "private", False)
    assert await directory.channel(channel_id) is first
    assert directory.channel_nowait(channel_id) is first
    assert len(store.statements) == 1


async def test_memberships_both_ways(store: Any) -> None:
    directory, channel_id = new_directory(store), await new_channel(store)
    assert directory.is_member_nowait(channel_id, OWNER) is None
    assert await directory.is_member(channel_id, OWNER) is True
    assert await directory.is_member(channel_id, OTHER) is False
    asked = len(store.statements)
    assert asked == 3  # the channel once, two memberships
    assert await directory.is_member(channel_id, OTHER) is False
    assert directory.is_member_nowait(channel_id, OWNER) is True
    assert directory.is_member_nowait(channel_id, OTHER) is False
    assert len(store.statements) == asked


async def test_unknown_channels_push_nothing_out(store: Any) -> None:
    directory, channel_id = new_directory(store, cache_entries=2), await new_channel(store)
    await directory.is_member(channel_id, OWNER)
    for _ in range(10):
        assert await directory.channel(str(uuid4())) is None
        assert await directory.is_member(str(uuid4()), OWNER) is False
    statistics = directory.statistics()
    assert (statistics.channels.entries, statistics.memberships.entries) == (1, 1)
    assert directory.is_member_nowait(channel_id, OWNER) is True
    # And so a channel is seen as soon as it is there, without anybody having to say so.
    unknown = str(uuid4())
    assert await directory.channel(unknown) is None
    await store.con.execute(
        "INSERT INTO channels (id, name, created_by) VALUES ($1, 'new', $2)", unknown, bytes.fromhex(OWNER)
    )
    assert await directory.channel(unknown) is not None


async def test_the_list(store: Any) -> None:
    directory = new_directory(store)
    private, public = await new_channel(store), await new_channel(store, "open")
    assert await directory.accessible(OWNER) == {private, public}
    assert await directory.accessible(OTHER) == {public}
    assert await directory.accessible(OTHER) == {public}
    assert len(store.statements) == 2


async def test_invalidating_a_membership_drops_it_and_the_list(store: Any) -> None:
    directory, channel_id = new_directory(store), await new_channel(store)
    for pubkey in (OWNER, OTHER):
        await directory.is_member(channel_id, pubkey)
        await directory.accessible(pubkey)
    await members.put(store.con, channel_id, OTHER, "member", OWNER)
    assert await directory.is_member(channel_id, OTHER) is False  # remembered
    directory.invalidate_membership(channel_id, OTHER)
    assert await directory.is_member(channel_id, OTHER) is True
    assert await directory.accessible(OTHER) == {channel_id}
    assert directory.is_member_nowait(channel_id, OWNER) is True


async def test_invalidating_a_channel_drops_its_record_only(store: Any) -> None:
    directory, channel_id = new_directory(store), await new_channel(store)
    await directory.is_member(channel_id, OWNER)
    await store.con.execute("UPDATE channels SET archived_at = now()")
    directory.invalidate_channel(channel_id)
    record = await directory.channel(channel_id)
    assert record is not None
    assert record.archived
    assert directory.is_member_nowait(channel_id, OWNER) is True


async def test_everybodys_lists_and_everything(store: Any) -> None:
    directory, channel_id = new_directory(store), await new_channel(store)
    await directory.is_member(channel_id, OWNER)
    await directory.accessible(OWNER)
    directory.invalidate_accessible_all()
    statistics = directory.statistics()
    assert (statistics.channels.entries, statistics.memberships.entries, statistics.accessible.entries) == (1, 1, 0)
    await directory.accessible(OWNER)
    directory.clear()
    statistics = directory.statistics()
    assert (statistics.channels.entries, statistics.memberships.entries, statistics.accessible.entries) == (0, 0, 0)


async def test_the_life_of_an_answer_is_the_setting(store: Any) -> None:
    clock = Clock()
    directory, channel_id = new_directory(store, clock, cache_seconds=7), await new_channel(store)
    await directory.is_member(channel_id, OWNER)
    await store.con.execute("UPDATE channel_members SET removed_at = now()")
    clock.now = 6.9
    assert await directory.is_member(channel_id, OWNER) is True
    clock.now = 7.0
    assert await directory.is_member(channel_id, OWNER) is False


async def test_a_read_under_way_is_not_joined_after_an_invalidation(store: Any) -> None:
    """The read waits in the database while the membership changes; whoever asks afterwards makes a read of its own."""
    directory, channel_id = new_directory(store), await new_channel(store)
    await directory.channel(channel_id)
    early: list[bool] = []

    async def ask() -> None:
        early.append(await directory.is_member(channel_id, OWNER))

    async with trio.open_nursery() as nursery:
        async with store.con.transaction():
            await store.con.execute("LOCK TABLE channel_members IN ACCESS EXCLUSIVE MODE")
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            assert directory.statistics().memberships.flights == 1
            directory.invalidate_membership(channel_id, OWNER)
        with trio.fail_after(5):
            assert await directory.is_member(channel_id, OWNER) is True
    assert early == [True]
    assert len([text for text in store.statements if "channel_members" in text]) == 2


async def test_a_store_that_fails_is_not_remembered(store: Any) -> None:
    directory, channel_id = new_directory(store), await new_channel(store)
    store.pool.abort()
    for call in (directory.channel(channel_id), directory.is_member(channel_id, OWNER), directory.accessible(OWNER)):
        with pytest.raises(PoolClosed):
            await call
    assert directory.statistics().channels.entries == 0


async def test_what_is_readable_now_is_not_what_a_removal_has_overtaken(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is read before the removal and arrives after it."""
    directory, lost, kept = new_directory(store), await new_channel(store), await new_channel(store)
    load, loads = members.accessible_channel_ids, 0

    async def overtaken(*args: Any) -> frozenset[str]:
        nonlocal loads
        loads += 1
        found = await load(*args)
        if loads == 1:
            assert found == {lost, kept}
            removed = "UPDATE channel_members SET removed_at = now() WHERE channel_id = $1"
            await store.con.execute(removed, lost)
            directory.invalidate_membership(lost, OWNER)
        return found

    monkeypatch.setattr(members, "accessible_channel_ids", overtaken)
    caller = Caller(OWNER, frozenset(), AuthMethod.API_TOKEN, channel_ids=frozenset({lost, kept, str(uuid4())}))
    assert await directory.readable_now(caller) == {kept}
    assert loads == 2
