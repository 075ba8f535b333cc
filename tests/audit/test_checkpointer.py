"""The checkpointer: what it signs on a real database, and when it does so on a clock that jumps."""

from __future__ import annotations

import pytest
import structlog.testing
import trio
import trio.testing

from relay.asyncpg_trio import ConnectionLost, connect
from relay.audit import checkpoint_file, checkpoints, note, outbox, signing, tree_store
from relay.audit.chain import GENESIS, Head, link
from relay.audit.checkpointer import Checkpointer, File, event_of
from relay.audit.checkpoints import Stored
from relay.audit.entry import Action
from relay.audit.log import Batch, chain_batch, chain_outbox
from relay.audit.signing import DatabaseLedger, Latest, Memory
from relay.audit.tree import Frontier, leaf_hash, root_of, verify_consistency
from relay.errors import ChainTruncated, HeadMismatch, StoreBusy
from relay.nostr.event import verify as verify_event
from relay.nostr.keys import SecretKey
from relay.store.own_connection import OwnConnection
from tests.audit.memory import entries, entry

KEY = SecretKey.from_hex("11" * 32)
ORIGIN = note.origin_of(KEY.public_hex)


def now_us() -> int:
    return 1_767_225_600_000_000


# -- what is signed, on a database -----------------------------------------------------------------------------------


async def chain(con, first, count):
    await outbox.insert(con, entries(first, count))
    await chain_outbox(con)


async def tamper(con, *statements):
    await con.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
    for statement in statements:
        await con.execute(statement)


async def sign(con, **options):
    return await signing.sign_next(con, KEY, now_us, **options)


async def leaves(con):
    return [leaf_hash(row["hash"]) for row in await con.fetch("SELECT hash FROM audit_log ORDER BY seq")]


class TestSigning:
    async def test_an_empty_log_has_nothing_to_sign(self, con):
        assert await sign(con) is None

    async def test_the_root_of_all_entries_and_then_of_more(self, con):
        await chain(con, 1, 300)
        first = await sign(con)
        await chain(con, 301, 500)
        second = await sign(con, last_frontier=first.frontier)
        every = await leaves(con)
        assert (first.checkpoint.size, first.checkpoint.root) == (300, root_of(every[:300]))
        assert (second.checkpoint.size, second.checkpoint.root) == (800, root_of(every))
        assert note.is_signed_by(second.checkpoint, KEY.public_hex)
        proof = await tree_store.consistency_path(con, 300, 800)
        assert verify_consistency(300, 800, first.checkpoint.root, second.checkpoint.root, proof)
        assert await con.fetchval("SELECT count(*) FROM audit_tree") == 3
        assert await checkpoints.listed(con, ORIGIN, -1, 10) == [first.stored, second.stored]

    async def test_nothing_new_is_not_signed_again(self, con):
        await chain(con, 1, 3)
        first = await sign(con)
        again = await sign(con)
        assert (again.made, again.stored) == (False, first.stored)

    async def test_the_event_of_a_checkpoint_is_nothing_new_and_covered_by_the_next_one(self, con):
        await chain(con, 1, 3)
        await sign(con)
        own = entry(4, kind=48010, actor=KEY.public_hex)
        await outbox.insert(con, [own])
        await chain_outbox(con)
        assert not (await sign(con)).made
        await outbox.insert(con, [entry(5, kind=48010, actor="ab" * 32)])  # somebody else's is
        await chain_outbox(con)
        assert (await sign(con)).checkpoint.size == 5

    @pytest.mark.parametrize("action", [Action.EVENT_DELETED, Action.ACCESS_REFUSED])
    async def test_other_actions_about_such_an_event_are_new(self, con, action):
        await chain(con, 1, 3)
        await sign(con)
        await outbox.insert(con, [entry(4, action=action, kind=48010, actor=KEY.public_hex)])
        await chain_outbox(con)
        assert (await sign(con)).made

    async def test_a_log_that_does_not_continue_what_was_signed(self, con):
        await chain(con, 1, 10)
        await sign(con)
        await tamper(con, "UPDATE audit_log SET hash = sha256('x') WHERE seq = 5")
        await chain(con, 11, 3)
        with pytest.raises(HeadMismatch, match="not those that were signed"):
            await sign(con)
        assert len(await checkpoints.listed(con, ORIGIN, -1, 10)) == 1

    async def test_a_log_that_is_shorter_than_what_was_signed(self, con):
        await chain(con, 1, 10)
        first = await sign(con)
        await tamper(con, "DELETE FROM audit_log WHERE seq > 8")
        for frontier in (None, first.frontier):
            with pytest.raises(ChainTruncated, match="seq 8"):
                await sign(con, last_frontier=frontier)

    async def test_stored_nodes_are_not_what_is_signed(self, con):
        await chain(con, 1, 600)
        await sign(con)
        await chain(con, 601, 1)
        await con.execute("UPDATE audit_tree SET hash = sha256('x')")
        with structlog.testing.capture_logs() as logs:
            latest = await sign(con)
        assert latest.checkpoint.root == root_of(await leaves(con))
        assert [line["log_level"] for line in logs] == ["error"]

    async def test_one_node_at_a_time(self, con, empty_dsn):
        await chain(con, 1, 3)
        other = await connect(empty_dsn)
        try:
            await other.execute(f"SELECT pg_advisory_lock({signing.ADVISORY_LOCK})")
            with pytest.raises(StoreBusy, match="another node"):
                await sign(con)
            await other.execute("SELECT pg_advisory_unlock_all()")
            assert (await sign(con)).made
            assert not (await signing.sign_next(other, KEY, now_us)).made  # the lock was given back
        finally:
            other.terminate()

    async def test_a_changed_row_shows_before_it_is_signed_if_this_process_wrote_it(self, con):
        await chain(con, 1, 3)
        memory = Memory()
        memory.signed((await sign(con)).frontier)
        await outbox.insert(con, entries(4, 5))
        async with con.transaction(isolation="read_committed"):
            batch = await chain_batch(con)
        memory.chained(batch)
        assert memory.size == 8
        await tamper(con, "UPDATE audit_log SET hash = sha256('x') WHERE seq = 6")
        with pytest.raises(HeadMismatch, match="this relay has written"):
            await sign(con, known=memory.snapshot())
        await tamper(con, "DELETE FROM audit_log WHERE seq > 6")
        with pytest.raises(ChainTruncated, match="what this relay has written"):
            await sign(con, known=memory.snapshot())

    async def test_cancelled_anywhere_it_can_be_done_again(self, con, empty_dsn):
        await chain(con, 1, 700)
        for checkpoints_passed in range(1, 40):
            other = await connect(empty_dsn, settle_seconds=0.5)
            with trio.CancelScope() as scope:
                counted = _after(scope, checkpoints_passed)
                await signing.sign_next(_Counting(other, counted), KEY, now_us)
            other.terminate()
            if not scope.cancelled_caught:
                break
        else:
            pytest.fail("it never came to its end")
        latest = await sign(con)
        assert latest.checkpoint.root == root_of(await leaves(con))


def _after(scope, calls):
    left = [calls]

    def count():
        left[0] -= 1
        if left[0] == 0:
            scope.cancel()

    return count


class _Counting:
    """A connection that says when a statement begins."""

    def __init__(self, con, count):
        self._con = con
        self._count = count

    def __getattr__(self, name):
        if name in ("fetch", "fetchrow", "fetchval", "execute"):
            self._count()
        return getattr(self._con, name)


# -- when, on a clock that jumps -------------------------------------------------------------------------------------


class MemoryLedger:
    """A log and its checkpoints in memory; `faults` are raised by the next calls, one each."""

    def __init__(self) -> None:
        self.rows = []
        self.signed: list[Stored] = []
        self.frontier = Frontier()
        self.faults: list[Exception] = []
        self.calls = 0
        self.asleep = False
        self.aborted = False

    def chain(self, *made):
        prev = self.rows[-1].head if self.rows else GENESIS
        rows = link(prev, made)
        self.rows += rows
        return Batch(
            tuple(each.uuid for each in made), len(made), prev, rows[-1].head, False, None,
            hashes=tuple(row.hash for row in rows),
        )  # fmt: skip

    async def sign_next(self, memory):
        self.calls += 1
        await trio.sleep(10_000 if self.asleep else 0)
        if self.faults:
            raise self.faults.pop(0)
        news = [row for row in self.rows[self.frontier.size :] if row.entry.kind != 48010]
        if not self.rows:
            return None
        if not news and self.signed:
            return Latest(self.signed[-1], self.frontier, made=False)
        grown = signing.copy_of(self.frontier)
        for row in self.rows[grown.size :]:
            grown.append(row.hash)
        self.frontier = grown
        self.signed.append(Stored(note.sign(ORIGIN, grown.size, grown.root(), KEY), now_us(), None))
        return Latest(self.signed[-1], grown, made=True)

    async def note_event(self, checkpoint, event_id):
        if self.faults:
            raise self.faults.pop(0)
        last = self.signed.pop()
        assert last.checkpoint.text == checkpoint.text
        self.signed.append(Stored(last.checkpoint, last.time_us, event_id))

    def abort(self):
        self.aborted = True


class Desk:
    """A checkpointer and everything around it."""

    def __init__(self, **options) -> None:
        self.ledger = MemoryLedger()
        self.kept, self.published, self.told = [], [], []
        self.keep_faults: list[Exception] = []
        self.publishes = True
        self.number = 0
        self.checkpointer = Checkpointer(
            self.ledger, key=KEY, keep=self.keep, publish=self.publish, on_checkpoint=self.told.append, **options
        )
        self.began = trio.current_time()

    async def keep(self, checkpoint):
        if self.keep_faults:
            raise self.keep_faults.pop(0)
        self.kept.append((round(trio.current_time() - self.began, 1), checkpoint.size))

    async def publish(self, event):
        if self.publishes:
            self.published.append(event)
        return self.publishes

    def chain(self, count=1, **fields):
        made = [entry(self.number + place, **fields) for place in range(1, count + 1)]
        self.number += count
        self.checkpointer.chained(self.ledger.chain(*made))

    @property
    def sizes(self):
        return [size for _, size in self.kept]


@pytest.fixture
async def start(nursery):
    async def start(**options):
        desk = Desk(**options)
        await nursery.start(desk.checkpointer.run)
        return desk

    return start


class TestWhen:
    async def test_an_idle_relay_asks_once_and_never_again(self, start, autojump_clock):
        desk = await start()
        await trio.sleep(100_000)
        assert (desk.ledger.calls, desk.kept) == (1, [])

    async def test_what_the_last_run_left_is_signed_at_once(self, start, autojump_clock):
        desk = Desk()
        desk.ledger.chain(entry(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(desk.checkpointer.run)
            await trio.sleep(1)
            assert desk.kept == [(0.0, 1)]
            nursery.cancel_scope.cancel()

    async def test_a_minute_after_the_first_new_entry(self, start, autojump_clock):
        desk = await start(seconds=60)
        await trio.sleep(10)
        for _ in range(5):
            desk.chain()
            await trio.sleep(25)
        assert desk.kept == [(70.0, 3)]
        await trio.sleep(1000)
        assert desk.sizes == [3, 5]
        assert [event.kind for event in desk.published] == [48010] * 2

    async def test_ten_thousand_entries_before_the_minute(self, start, autojump_clock):
        desk = await start(entries_max=100)
        await trio.sleep(10)
        desk.chain(60)
        await trio.sleep(1)
        desk.chain(60)
        await trio.sleep(1)
        assert desk.kept == [(11.0, 120)]

    async def test_its_own_event_does_not_feed_it(self, start, autojump_clock):
        desk = await start()
        desk.chain()
        await trio.sleep(100)
        desk.chain(kind=48010, actor=KEY.public_hex)
        await trio.sleep(1000)
        assert (desk.sizes, desk.ledger.calls) == ([1], 3)

    async def test_a_database_that_is_away_is_asked_less_and_less_often_for_ever(self, start, autojump_clock):
        desk = await start()
        desk.ledger.faults = [ConnectionLost("gone")] * 30
        desk.chain()
        await trio.sleep(400)
        assert 8 <= desk.ledger.calls <= 16
        assert desk.checkpointer.statistics().failures > 5
        assert desk.checkpointer.statistics().healthy  # it is the database that is ill
        await trio.sleep(3600)
        assert desk.sizes == [1]
        assert desk.checkpointer.statistics().failures == 0

    async def test_a_disk_that_is_full_stops_neither_the_database_nor_the_event(self, start, autojump_clock):
        desk = await start()
        await trio.sleep(1)
        desk.keep_faults = [OSError(28, "No space left on device")] * 5
        desk.chain()
        await trio.sleep(61)
        assert (len(desk.ledger.signed), len(desk.published), desk.kept) == (1, 1, [])
        assert not desk.checkpointer.statistics().in_file
        await trio.sleep(300)
        assert (desk.sizes, len(desk.published)) == ([1], 1)
        assert desk.checkpointer.statistics().in_file

    async def test_an_event_that_was_refused_is_published_later_and_once(self, start, autojump_clock):
        desk = await start()
        desk.publishes = False
        desk.chain()
        await trio.sleep(100)
        assert not desk.checkpointer.statistics().published
        desk.publishes = True
        await trio.sleep(1000)
        assert (len(desk.published), desk.sizes) == (1, [1])
        assert desk.ledger.signed[0].event_id == desk.published[0].id

    async def test_an_event_whose_publishing_could_not_be_noted_is_the_same_again(self, start, autojump_clock):
        desk = await start()
        real = desk.publish

        async def lost(event):
            desk.ledger.faults = [ConnectionLost("gone")]
            desk.checkpointer._publish = real
            return await real(event)

        desk.checkpointer._publish = lost
        desk.chain()
        await trio.sleep(1000)
        assert len(desk.published) == 2
        assert desk.published[0].id == desk.published[1].id

    async def test_a_log_that_was_changed_is_not_signed_and_looked_at_again(self, start, autojump_clock):
        desk = await start()
        await trio.sleep(1)
        desk.ledger.faults = [HeadMismatch("not the log that was signed")] * 3
        desk.chain()
        with structlog.testing.capture_logs() as logs:
            await trio.sleep(70)
        assert [line["log_level"] for line in logs] == ["critical"]
        statistics = desk.checkpointer.statistics()
        assert (statistics.healthy, statistics.disagreement) == (False, "not the log that was signed")
        assert (desk.kept, desk.published) == ([], [])
        calls = desk.ledger.calls
        await trio.sleep(3600)
        assert desk.ledger.calls - calls < 10
        assert desk.checkpointer.statistics().healthy
        assert desk.sizes == [1]

    async def test_a_large_number_of_entries_does_not_make_it_spin(self, start, autojump_clock):
        desk = await start(entries_max=10)
        await trio.sleep(1)
        desk.ledger.faults = [HeadMismatch("not the log that was signed")] * 1000
        desk.chain(50)
        await trio.sleep(600)
        assert desk.ledger.calls < 15

    async def test_whoever_wants_more_signatures_is_told_once(self, start, autojump_clock):
        desk = await start()
        desk.chain()
        await trio.sleep(100)
        desk.chain()
        await trio.sleep(100)
        assert [each.size for each in desk.told] == [1, 2]

    async def test_what_the_file_ends_with_is_not_written_again(self, autojump_clock):
        desk = Desk()
        desk.ledger.chain(entry(1))
        latest = await desk.ledger.sign_next(Memory())
        desk.checkpointer.filed(latest.checkpoint)
        async with trio.open_nursery() as nursery:
            await nursery.start(desk.checkpointer.run)
            await trio.sleep(1)
            assert (desk.kept, len(desk.published)) == ([], 1)  # and what was not published is
            nursery.cancel_scope.cancel()


class TestTheLast:
    async def test_covers_what_came_since_and_is_not_published(self, start, autojump_clock):
        desk = await start()
        desk.chain(3)
        await trio.sleep(61)
        desk.chain(2)
        await desk.checkpointer.last()
        assert (desk.sizes, len(desk.published), len(desk.ledger.signed)) == ([3, 5], 1, 2)
        await desk.checkpointer.last()
        assert len(desk.ledger.signed) == 2

    @pytest.mark.parametrize("stuck", ["asleep", "gone", "cut off"])
    async def test_goes_to_the_file_alone_where_the_database_is_stuck(self, start, stuck, autojump_clock):
        desk = await start()
        desk.chain(3)
        await trio.sleep(61)
        desk.chain(2)
        kept = []
        desk.checkpointer._keep = lambda checkpoint: _note(kept, checkpoint)
        if stuck == "asleep":
            desk.ledger.asleep = True
        elif stuck == "gone":
            desk.ledger.faults = [ConnectionLost("gone")]
        else:
            desk.checkpointer.cut_off()
            assert desk.ledger.aborted
        began = trio.current_time()
        await desk.checkpointer.last()
        assert trio.current_time() - began <= 0.3
        assert len(desk.ledger.signed) == 1
        # The same that the database would have got.
        desk.ledger.asleep = False
        assert [each.text for each in kept] == [(await desk.ledger.sign_next(Memory())).checkpoint.text]

    async def test_is_none_where_nothing_is_known_or_new(self, start, autojump_clock):
        desk = await start()
        desk.chain(3)
        desk.checkpointer.cut_off()
        await desk.checkpointer.last()
        assert desk.kept == []

    async def test_a_log_that_was_changed_has_no_last_one(self, start, autojump_clock):
        desk = await start()
        desk.chain(3)
        await trio.sleep(61)
        desk.chain(2)
        desk.ledger.faults = [HeadMismatch("not the log that was signed")]
        await desk.checkpointer.last()
        desk.checkpointer.cut_off()
        await desk.checkpointer.last()
        assert desk.sizes == [3]

    async def test_a_file_that_cannot_be_written_does_not_stop_the_stop(self, start, autojump_clock):
        desk = await start()
        desk.chain(3)
        desk.keep_faults = [OSError(5, "Input/output error")] * 3
        await desk.checkpointer.last()
        assert desk.kept == []


async def _note(kept, checkpoint):
    kept.append(checkpoint)


class TestMemory:
    def test_knows_nothing_before_the_first_checkpoint(self):
        memory = Memory()
        memory.chained(MemoryLedger().chain(entry(1)))
        assert (memory.size, memory.snapshot()) == (-1, None)

    def test_a_batch_of_another_node_makes_it_forget(self):
        ledger, memory = MemoryLedger(), Memory()
        memory.signed(Frontier())
        memory.chained(ledger.chain(entry(1)))
        ledger.chain(entry(2))
        memory.chained(ledger.chain(entry(3)))
        assert memory.size == -1
        memory.signed(Frontier())
        assert memory.size == 0

    def test_a_batch_without_hashes_too(self):
        memory = Memory()
        memory.signed(Frontier())
        memory.chained(Batch(("x",), 1, GENESIS, Head(1, bytes(32)), False))
        assert memory.size == -1


# -- together --------------------------------------------------------------------------------------------------------


def test_the_event_is_the_relays_and_always_the_same():
    checkpoint = note.sign(ORIGIN, 7, b"r" * 32, KEY)
    cosigned = checkpoint.with_lines([note.cosign(checkpoint, "relay-witness/x", KEY, 1)])
    event = event_of(KEY, checkpoint, now_us())
    verify_event(event)
    assert (event.kind, event.pubkey, event.created_at) == (48010, KEY.public_hex, 1_767_225_600)
    assert event.tags == [
        ["origin", ORIGIN], ["size", "7"], ["root", (b"r" * 32).hex()],
        ["alt", "checkpoint of the audit log at 7 entries"],
    ]  # fmt: skip
    assert note.parse(event.content) == checkpoint
    assert event_of(KEY, cosigned, now_us()).id == event.id


async def test_on_a_database_and_a_file(con, empty_dsn, tmp_path):
    own = OwnConnection(lambda: connect(empty_dsn), name="checkpointer", patience_seconds=1)
    file, published = tmp_path / "checkpoints.txt", []

    async def publish(event):
        published.append(event)
        done.set()
        return True

    checkpointer = Checkpointer(
        DatabaseLedger(own, KEY, now_us), key=KEY, keep=File(file).append, publish=publish, entries_max=100
    )
    await chain(con, 1, 5)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            done = trio.Event()
            await nursery.start(checkpointer.run)
            await done.wait()
            done = trio.Event()
            await outbox.insert(con, entries(6, 100))
            async with con.transaction(isolation="read_committed"):
                batch = await chain_batch(con)
            checkpointer.chained(batch)
            await done.wait()
            nursery.cancel_scope.cancel()
    await chain(con, 106, 1)
    await checkpointer.last()
    own.close()
    assert [each.size for each in checkpoint_file.read(file)] == [5, 105, 106]
    rows = await checkpoints.listed(con, ORIGIN, -1, 10)
    assert [row.checkpoint for row in rows] == list(checkpoint_file.read(file))
    assert [row.event_id for row in rows][:1] == [published[0].id]
    assert rows[-1].event_id is None
