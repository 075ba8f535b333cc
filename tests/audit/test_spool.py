"""The spool: what it has taken is there after anything, and comes into the outbox once."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.audit import outbox, spool_file
from relay.audit.log import chain_outbox, read_rows
from relay.audit.spool import FILE_NAME, Spool, SpoolError, count, place
from relay.config import Settings
from tests.audit.memory import entries, entry
from tests.audit.strategies import entries as any_entries

NOW_US = 1_800_000_000_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "spool.jsonl"


@pytest.fixture
def spool(path):
    return Spool(path, lambda: NOW_US)


def held(path):
    return list(spool_file.decode(path.read_bytes()).entries)


async def chained(con):
    return [row.entry for row in await read_rows(con, 0, 10**9, 10**6)]


def fail(number):
    def raise_it(*_):
        raise OSError(number, os.strerror(number))

    return raise_it


def test_where_it_is(tmp_path):
    assert place(Settings(), tmp_path) == tmp_path / FILE_NAME
    assert place(Settings(audit_spool_file=tmp_path / "x"), tmp_path / "y") == tmp_path / "x"


class TestFormat:
    @settings(max_examples=60, deadline=None)
    @given(some=st.lists(any_entries(), max_size=8))
    def test_every_field_comes_back_as_it_went_in(self, some):
        data = spool_file.encode(some)
        assert data.count(b"\n") == len(some)
        found = spool_file.decode(data)
        assert (list(found.entries), found.damaged, found.torn) == (some, 0, False)

    def test_any_changed_byte_costs_its_record_and_no_other(self):
        data = spool_file.encode(entries(1, 3))
        length = len(data) // 3
        for place_ in range(length, 2 * length - 1):
            broken = data[:place_] + bytes([data[place_] ^ 1]) + data[place_ + 1 :]
            found = spool_file.decode(broken)
            assert list(found.entries) == [entry(1), entry(3)], place_
            assert found.damaged >= 1

    def test_a_torn_end_is_no_damage_wherever_it_is_torn(self):
        data = spool_file.encode(entries(1, 2))
        length = len(data) // 2
        for cut in range(length + 1, len(data)):
            found = spool_file.decode(data[:cut])
            assert (list(found.entries), found.damaged, found.torn) == ([entry(1)], 0, True)

    @pytest.mark.parametrize(
        "fields",
        [{"kind": 22242}, {"uuid": "x"}, {"channel_id": "x"}, {"time_us": -1}, {"time_us": 2**63}, {"kind": 2**31},
         {"actor": "a\0b"}, {"action": None}, {"metadata": 5}, {"kind": True}],
    )  # fmt: skip
    def test_what_the_database_would_refuse_is_damage(self, fields):
        """One such record, however it came there, would keep all others out for ever."""
        from dataclasses import replace

        data = spool_file.encode([entry(1), replace(entry(2), **fields)])
        found = spool_file.decode(data)
        assert (list(found.entries), found.damaged) == ([entry(1)], 1)

    @given(data=st.binary(max_size=300))
    def test_anything_can_be_read(self, data):
        assert spool_file.decode(data).entries == ()


class TestAppend:
    async def test_it_is_there_in_order_and_private(self, spool, path):
        await spool.append([])
        assert not path.exists()
        assert not spool.pending
        await spool.append(entries(1, 2))
        await spool.append(entries(3, 1))
        assert held(path) == entries(1, 3)
        assert path.stat().st_mode & 0o777 == 0o600
        assert (spool.pending, count(path)) == (True, 3)

    async def test_a_torn_end_is_cut_off_before_the_next(self, spool, path):
        await spool.append(entries(1, 2))
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        assert count(path) == 1
        await spool.append(entries(3, 1))
        assert held(path) == [entry(1), entry(3)]
        assert spool_file.decode(path.read_bytes()).damaged == 0

    async def test_full_is_refused_and_changes_nothing(self, path):
        spool = Spool(path, lambda: NOW_US, bytes_max=len(spool_file.encode(entries(1, 2))))
        await spool.append(entries(1, 2))
        with pytest.raises(SpoolError, match="full"):
            await spool.append(entries(3, 1))
        assert held(path) == entries(1, 2)

    @pytest.mark.parametrize("step", ["write", "fsync"])
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
    async def test_a_disk_that_fails_leaves_no_half(self, spool, path, monkeypatch, step, number):
        await spool.append(entries(1, 1))
        real_write = os.write

        def half(descriptor, data):
            if len(data) > 100:
                return real_write(descriptor, data[:100])
            raise OSError(number, "no")

        with monkeypatch.context() as patch:
            patch.setattr(spool_file.os, step, half if step == "write" else fail(number))
            with pytest.raises(SpoolError, match="cannot be used"):
                await spool.append(entries(2, 1))
        await spool.append(entries(3, 1))
        assert held(path) == [entry(1), entry(3)]

    async def test_a_disk_that_hangs_costs_the_deadline_and_no_thread_more(self, path, monkeypatch):
        spool = Spool(path, lambda: NOW_US, disk_seconds=0.05)
        go_on, entered = threading.Event(), []
        real = os.fsync

        def hang(descriptor):
            entered.append(descriptor)
            go_on.wait(10)
            real(descriptor)

        monkeypatch.setattr(spool_file.os, "fsync", hang)
        for number in (1, 2, 3):
            with pytest.raises(SpoolError, match="in time"):
                await spool.append(entries(number, 1))
        assert len(entered) == 1
        go_on.set()
        monkeypatch.setattr(spool_file.os, "fsync", real)
        # Behind the thread that was given up, and what it wrote late is there, whole.
        with trio.fail_after(5):
            while True:
                try:
                    await spool.append(entries(4, 1))
                    break
                except SpoolError:
                    pass
        assert held(path) == [entry(1), entry(4)]

    async def test_another_process_that_holds_the_lock(self, path):
        spool = Spool(path, lambda: NOW_US, disk_seconds=0.2)
        await spool.append(entries(1, 1))
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(SpoolError, match="locked"):
                await spool.append(entries(2, 1))
        await spool.append(entries(3, 1))
        assert held(path) == [entry(1), entry(3)]

    async def test_a_link_is_not_followed(self, spool, path, tmp_path):
        path.parent.mkdir()
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(SpoolError, match="cannot be used"):
            await spool.append(entries(1, 1))
        assert not (tmp_path / "elsewhere").exists()


class TestReplay:
    async def test_nothing_is_nothing_even_where_nothing_may_be_written(self, spool, con, path):
        before = con.statements
        replayed = await spool.replay(con)
        assert (replayed.added, con.statements) == (0, before)
        assert not path.parent.exists()

    async def test_once_whatever_is_there_already(self, spool, con, path):
        await outbox.insert(con, entries(1, 2))
        await chain_outbox(con)  # 1 and 2 are in the log,
        await outbox.insert(con, entries(3, 1))  # 3 waits,
        await spool.append([*entries(1, 4), entry(4)])  # and 4 is in the spool twice
        replayed = await spool.replay(con)
        assert (replayed.added, replayed.known, replayed.damaged) == (1, 4, 0)
        assert not spool.pending
        assert list(path.parent.iterdir()) == []
        await chain_outbox(con)
        assert await chained(con) == entries(1, 4)

    async def test_more_than_a_chunk_in_order(self, spool, con):
        await spool.append(entries(1, 1200))
        assert (await spool.replay(con)).added == 1200
        await chain_outbox(con)
        assert await chained(con) == entries(1, 1200)

    async def test_a_failure_keeps_the_file_and_what_comes_meanwhile_too(self, spool, con, path):
        await spool.append(entries(1, 2))
        await con.execute("ALTER TABLE audit_outbox RENAME TO gone")
        with pytest.raises(Exception, match="audit_outbox"):
            await spool.replay(con)
        assert spool.pending
        await spool.append(entries(3, 1))
        assert count(path) == 3
        await con.execute("ALTER TABLE gone RENAME TO audit_outbox")
        assert (await spool.replay(con)).added == 3
        assert count(path) == 0
        await chain_outbox(con)
        assert await chained(con) == entries(1, 3)

    async def test_a_damaged_record_is_told_of_and_the_file_is_kept(self, spool, con, path):
        await spool.append(entries(1, 3))
        data = path.read_bytes().replace(b"000000000002", b"000000000009")
        path.write_bytes(data + b"torn")
        assert await _replays(spool, con) == (3, 0, 1)
        kept = path.with_name(f"{path.name}.damaged-{NOW_US}")
        assert kept.read_bytes() == data + b"torn"
        assert list(path.parent.iterdir()) == [kept]
        # As if we had died before the rename: the same file once more, and the log does not tell of it twice.
        kept.rename(path)
        assert await _replays(spool, con) == (0, 3, 1)
        await chain_outbox(con)
        found = await chained(con)
        assert [one.uuid for one in found[:2]] == [entry(1).uuid, entry(3).uuid]
        assert len(found) == 3
        assert '"records_damaged":1' in found[2].metadata
        assert '"what":"audit spool damaged"' in found[2].metadata

    async def test_two_processes_share_a_spool(self, con, path, pool):
        spools = [Spool(path, lambda: NOW_US) for _ in "ab"]

        async def work(spool, first):
            for number in range(first, first + 15):
                await spool.append(entries(number, 1))
                if number % 5 == 0:
                    async with pool.acquire() as own:
                        await spool.replay(own)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, spools[0], 1)
            nursery.start_soon(work, spools[1], 101)
        for spool in spools:
            await spool.replay(con)
        await chain_outbox(con)
        found = await chained(con)
        assert sorted(one.uuid for one in found) == sorted(one.uuid for one in entries(1, 15) + entries(101, 15))

    async def test_while_another_process_replays_there_is_nothing_to_do(self, spool, con, path):
        await spool.append(entries(1, 1))
        other = spool_file.set_aside(path)
        assert (await spool.replay(con)).added == 0
        other.close()  # it died
        assert (await spool.replay(con)).added == 1

    async def test_cancelled_in_the_transaction(self, spool, con, pool, path):
        await spool.append(entries(1, 2))
        await con.execute("BEGIN; LOCK TABLE audit_outbox")
        with trio.move_on_after(0.1) as scope:
            async with pool.acquire() as own:
                await spool.replay(own)
        assert scope.cancelled_caught
        assert (spool.pending, count(path)) == (True, 2)
        await con.execute("ROLLBACK")
        assert (await spool.replay(con)).added == 2


async def _replays(spool, con):
    replayed = await spool.replay(con)
    return replayed.added, replayed.known, replayed.damaged
