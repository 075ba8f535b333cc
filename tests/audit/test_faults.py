"""The fault matrix: every step on the way of an entry, failing in every way, tried again by every one.

A cell is (step, mode, who tries again). After each the chain of the real database is verified from its first row, and
every entry is in it exactly once. The table is the one by which logs of certificates are tested; the modes are told in
tests/audit/faults.py.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from itertools import count as counter
from pathlib import Path

import pytest
import trio

from relay.audit import checkpoint_file, checkpointer, checkpoints, log, note, outbox, signing, spool_file, worker
from relay.audit.log import chain_outbox
from relay.audit.sink import RETRIED, PoolSink
from relay.audit.spool import Spool, SpoolError
from relay.audit.verify import verify
from relay.audit.worker import AuditWorker
from relay.errors import StoreBusy
from relay.nostr.keys import SecretKey
from tests.audit.faults import MODES, Fault, FaultyConnection, FaultyPool
from tests.audit.memory import entries

CHAIN_STEPS = ("begin", "lock", "head", "take", "insert", "commit")
FILE_STEPS = ("open", "write", "fsync", "directory")
REPLAY_FILE_STEPS = ("rename", "read", "unlink", "directory")
REPLAY_STEPS = ("begin", "outbox", "commit")
WHO = ("same", "other")
KEY = SecretKey.from_hex("11" * 32)
ORIGIN = note.origin_of(KEY.public_hex)
ENTRIES = 3


class Ledger:
    """What must be in the log by now: entries of each cell, numbered through."""

    def __init__(self, con):
        self.con = con
        self._next = counter(1, ENTRIES)
        self.expected = []

    def more(self):
        some = entries(next(self._next), ENTRIES)
        self.expected += some
        return some

    async def check(self, cell):
        report = await verify(self.con)
        assert report.ok, (cell, report.summary())
        rows = await log.read_rows(self.con, 0, 10**9, 10**6)
        assert sorted(row.entry.uuid for row in rows) == sorted(one.uuid for one in self.expected), cell
        assert await outbox.count(self.con) == 0, cell


@pytest.fixture
def ledger(con):
    return Ledger(con)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(worker, "BATCH_SECONDS", 0.15)
    monkeypatch.setattr(worker, "BACKOFF_SECONDS_MIN", 0.001)


class TestChaining:
    """18 cells in which the worker itself goes on, 18 in which another node comes first."""

    @pytest.mark.parametrize("mode", MODES)
    async def test_the_worker_tries_again(self, con, pool, ledger, impatient, mode):
        for step in CHAIN_STEPS:
            fault = Fault(step, mode)
            some = ledger.more()
            working = AuditWorker(PoolSink(FaultyPool(pool, fault)), linger_seconds=0)
            async with trio.open_nursery() as nursery:
                await nursery.start(working.run)
                with working.producer() as producer:
                    await outbox.insert(con, some)
                    await producer.send(some)
                working.begin_drain(trio.current_time() + 5)
            assert fault.met
            assert (working.report.written, working.report.left, working.report.finished) == (ENTRIES, 0, True), step
            assert working.statistics().errors_total == 1
            await ledger.check((step, mode))

    @pytest.mark.parametrize("mode", MODES)
    async def test_another_node_goes_on_before_it(self, con, pool, ledger, mode):
        for step in CHAIN_STEPS:
            fault = Fault(step, mode)
            first, other = PoolSink(FaultyPool(pool, fault)), PoolSink(pool)
            await outbox.insert(con, ledger.more())
            with pytest.raises(RETRIED), trio.fail_after(0.15):
                await first.chain_batch()
            assert fault.met
            written = (await other.chain_batch()).written
            written += (await first.chain_batch()).written
            assert written == ENTRIES, (step, mode)  # whoever it was: each counted once
            await ledger.check((step, mode))


@contextmanager
def file_fault(step, mode):
    """Makes one system call of the spool fail once, in this way; yields a Fault."""
    fault = Fault(step, mode)
    go_on = threading.Event()
    owner, name = {
        "open": (spool_file, "_open_locked"),
        "write": (os, "write"),
        "fsync": (os, "fsync"),
        "directory": (spool_file, "sync_directory"),
        "name": (checkpoint_file, "_sync_directory"),
        "rename": (Path, "rename"),
        "read": (spool_file, "_read_all"),
        "unlink": (Path, "unlink"),
    }[step]
    real = getattr(owner, name)

    def faulty(*args):
        if not _is_ours(step, args) or not fault.due(step):
            return real(*args)
        if mode == "fail":
            raise OSError(5, "as if the disk had failed")
        result = real(*args)
        if mode == "hang":
            go_on.wait(10)
            return result
        if step == "open":
            os.close(result)
        raise OSError(5, "as if the disk had failed afterwards")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, faulty)
        try:
            yield fault
        finally:
            go_on.set()


def _is_ours(step, args):
    # Trio and the interpreter write to pipes meanwhile; a directory is synced by a step of its own.
    if step == "write":
        return len(args[1]) > 100
    return step != "fsync" or not os.path.isdir(f"/proc/self/fd/{args[0]}")


async def settled(spool):
    """Until the thread that hung has ended."""
    with trio.fail_after(5):
        await spool._thread.acquire()
    spool._thread.release()


def make_spool(path):
    return Spool(path, lambda: 1, disk_seconds=0.1)


class TestSpooling:
    """24 cells: what was not acknowledged is tried again, by this process or by another that shares the file."""

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("who", WHO)
    async def test_append(self, con, ledger, tmp_path, mode, who):
        for step in FILE_STEPS:
            spool = make_spool(tmp_path / step)
            some = ledger.more()
            with file_fault(step, mode) as fault:
                with pytest.raises(SpoolError):
                    await spool.append(some)
                assert fault.met
            await settled(spool)
            again = spool if who == "same" else make_spool(spool.path)
            await again.append(some)
            assert (await again.replay(con)).added == ENTRIES
            await chain_outbox(con)
            await ledger.check((step, mode, who))


class TestReplaying:
    """24 cells on the side of the file, 18 on that of the database."""

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("who", WHO)
    async def test_the_file(self, con, ledger, tmp_path, mode, who):
        for step in REPLAY_FILE_STEPS:
            spool = make_spool(tmp_path / step)
            await spool.append(ledger.more())
            with file_fault(step, mode) as fault:
                with pytest.raises(SpoolError):
                    await spool.replay(con)
                assert fault.met
            assert spool.pending
            await settled(spool)
            if who == "other":
                spool._close_asides()  # the process has ended, and with it its locks
            await self._again(spool, con, ledger, (step, mode, who))

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("who", WHO)
    async def test_the_database(self, con, pool, ledger, tmp_path, mode, who):
        for step in REPLAY_STEPS:
            spool = make_spool(tmp_path / step)
            await spool.append(ledger.more())
            fault = Fault(step, mode)
            with pytest.raises(RETRIED), trio.fail_after(0.2):
                async with pool.acquire() as own:
                    await spool.replay(FaultyConnection(own, fault))
            assert fault.met
            assert spool.pending
            await chain_outbox(con)  # what was applied may be in the log when it comes again
            await self._again(spool, con, ledger, (step, mode, who))

    async def _again(self, spool, con, ledger, cell):
        again = spool if cell[-1] == "same" else make_spool(spool.path)
        await again.replay(con)
        assert not again.pending
        assert not spool.path.with_name(f"{spool.path.name}.replaying").exists()
        await chain_outbox(con)
        await ledger.check(cell)


class TestCheckpointing:
    """6 cells of the row, 18 of the record in the file: signed again, it is the same checkpoint."""

    @pytest.mark.parametrize("mode", MODES)
    async def test_the_row(self, con, pool, ledger, mode):
        for who in WHO:
            await outbox.insert(con, ledger.more())
            await chain_outbox(con)
            fault = Fault("checkpoint", mode)
            async with pool.acquire() as own:
                with pytest.raises(RETRIED), trio.fail_after(0.2):
                    await signing.sign_next(FaultyConnection(own, fault), KEY, lambda: 1)
                assert fault.met
                # The lock of a session that was cut off goes with it, a moment later.
                with trio.fail_after(5):
                    again = await sign_when_free(con if who == "other" or own.is_closed() else own)
            assert again.made is (mode == "fail"), (mode, who)
            assert again.checkpoint.size == len(ledger.expected)
            kept = await checkpoints.listed(con, ORIGIN, -1, 100)
            assert [stored.checkpoint.size for stored in kept] == list(range(3, len(ledger.expected) + 1, 3))
            assert (await signing.tree_of(con, again.checkpoint)).root() == again.checkpoint.root
            await ledger.check(("checkpoint", mode, who))

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("who", WHO)
    async def test_the_record(self, tmp_path, monkeypatch, mode, who):
        monkeypatch.setattr(checkpointer, "FILE_SECONDS", 0.1)
        signed = note.sign(ORIGIN, 3, bytes(32), KEY)
        for step in ("write", "fsync", "name"):
            path = tmp_path / step
            first = checkpointer.File(path)
            with file_fault(step, mode) as fault:
                with pytest.raises((OSError, trio.TooSlowError)):
                    await first.append(signed)
                assert fault.met
            with trio.fail_after(5):
                await append_when_free(first if who == "same" else checkpointer.File(path), signed)
            problems = []
            found = list(checkpoint_file.read(path, problems.append))
            assert set(found) == {signed}, (step, mode, who)
            assert problems == []


async def sign_when_free(con):
    while True:
        try:
            return await signing.sign_next(con, KEY, lambda: 1)
        except StoreBusy:
            await trio.sleep(0.005)


async def append_when_free(file, checkpoint):
    while True:
        try:
            return await file.append(checkpoint)
        except trio.TooSlowError:
            pass  # behind the thread that had hung
