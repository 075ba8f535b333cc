"""The worker by the mock clock: pressure, retries, and every way to end. The sink is `tests.audit.memory`."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relay import metrics
from relay.asyncpg_trio import ConnectionLost
from relay.audit.queue import AuditQueueClosed
from relay.audit.walk import Walk
from relay.audit.worker import AuditWorker
from tests.audit.memory import MemoryDatabase, MemorySink, entries, entry

DRAIN = 5.0


async def hand_over(sink, producer, some):
    """What the commit task does: first the outbox, then the queue."""
    sink.database.commit(some)
    await producer.send(some)


def drain(worker, seconds=DRAIN):
    worker.begin_drain(trio.current_time() + seconds)


def assert_whole(database, expected):
    """Every entry in exactly one of the two places, and a sound chain."""
    found = [one.uuid for one in (*database.chained, *database.outbox.values())]
    assert sorted(found) == sorted(one.uuid for one in expected)
    walk = Walk()
    walk.feed(database.log)
    assert walk.faults == []


def stuck_until(moment):
    async def wait():
        await trio.sleep_until(moment)

    return wait


class TestChaining:
    async def test_company_is_waited_for_and_chained_at_once(self, autojump_clock):
        sink = MemorySink()
        worker = AuditWorker(sink)
        async with trio.open_nursery() as nursery:
            assert await nursery.start(worker.run) is worker
            with worker.producer() as producer:
                for number in range(1, 5):
                    await hand_over(sink, producer, [entry(number)])
                    await trio.sleep(0.01)
                await trio.sleep(0.1)
                assert sink.batches == [4]
                assert worker.statistics().last_batch == 4
            drain(worker)
        assert worker.report.finished
        assert_whole(sink.database, entries(1, 4))

    async def test_a_full_batch_does_not_linger(self, autojump_clock):
        sink = MemorySink()
        worker = AuditWorker(sink, linger_seconds=60)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, entries(1, 256))
                await trio.sleep(0.001)
                assert sink.batches[0] == 256
            drain(worker)

    async def test_the_drain_does_not_linger(self, autojump_clock):
        sink = MemorySink()
        worker = AuditWorker(sink, linger_seconds=60)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, [entry(1)])
                await trio.sleep(1)
                assert sink.batches == []
                drain(worker)
                await wait_all_tasks_blocked()
                assert sink.batches == [1]
                await hand_over(sink, producer, [entry(2)])
                await wait_all_tasks_blocked()
                assert sink.batches == [1, 1]
        assert worker.report.seconds == 0.0

    async def test_more_than_a_batch_is_chained_without_a_pause(self, autojump_clock):
        sink = MemorySink(entries_max=10)
        worker = AuditWorker(sink, batch_entries=10)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            sink.database.commit(entries(1, 95))
            with worker.producer() as producer:
                await producer.send([entry(95)])  # the last of them; nobody told us of the others
                await trio.sleep(0.051)
                assert sink.batches == [10] * 9 + [5]
            drain(worker)
        assert (worker.report.left, worker.statistics().written_total) == (0, 95)

    async def test_statistics(self, autojump_clock):
        sink = MemorySink(before=stuck_until(3))
        worker = AuditWorker(sink, capacity=7)
        empty = worker.statistics()
        assert (empty.queued, empty.capacity, empty.written_total, empty.head_seq) == (0, 7, 0, 0)
        assert empty.healthy
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, entries(1, 3))
                await trio.sleep(1)
                await hand_over(sink, producer, entries(4, 2))
                now = worker.statistics()
                assert (now.queued, now.written_total, now.oldest_outbox_seconds) == (2, 0, 1.0)
                await trio.sleep(5)
                after = worker.statistics()
                assert (after.queued, after.written_total, after.head_seq, after.errors_total) == (0, 5, 5, 0)
                assert after.oldest_outbox_seconds == 0.0
                assert not after.draining
            drain(worker)
            assert worker.statistics().draining

    async def test_an_old_entry_is_unhealthy(self, autojump_clock):
        sink = MemorySink(before=stuck_until(9.9))
        worker = AuditWorker(sink)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, [entry(1)])
                await trio.sleep(9.89)
                assert worker.statistics().healthy
            sink.before = trio.sleep_forever
            with worker.producer() as producer:
                await trio.sleep(1)
                await hand_over(sink, producer, [entry(2)])
                await trio.sleep(10.01)
                assert not worker.statistics().healthy
            drain(worker, 0)


class TestSweep:
    async def test_an_entry_that_nobody_handed_over_is_chained_after_two_seconds(self, autojump_clock):
        sink = MemorySink()
        worker = AuditWorker(sink)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await trio.sleep(0.5)
            sink.database.commit(entries(1, 3))
            await trio.sleep(2)
            assert sink.batches == []  # its own node may still be about to
            assert 0 < worker.statistics().oldest_outbox_seconds <= 2
            await trio.sleep(1.1)
            assert sink.batches == [3]
            assert worker.statistics().oldest_outbox_seconds == 0.0
            drain(worker)

    async def test_a_busy_neighbour_is_left_alone(self, autojump_clock):
        sink, neighbour = MemorySink(), None
        neighbour = MemorySink(sink.database)
        worker = AuditWorker(sink)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            for number in range(1, 20):
                sink.database.commit([entry(number)])
                await trio.sleep(0.7)
                await neighbour.chain_batch()
            assert sink.batches == []
            drain(worker)

    async def test_a_sweep_that_fails_is_an_error_like_any_other(self, autojump_clock):
        class Gone(MemorySink):
            async def oldest(self):
                raise ConnectionLost("gone")

        worker = AuditWorker(Gone())
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await trio.sleep(1.01)
            assert (worker.statistics().errors_total, worker.statistics().healthy) == (1, False)
            drain(worker)


class TestPressure:
    async def test_number_1001_waits_and_all_go_in_order(self, autojump_clock):
        sink = MemorySink()
        worker = AuditWorker(sink)
        some = entries(1, 1300)
        sink.database.commit(some)
        sent = []
        async with trio.open_nursery() as nursery:

            async def produce():
                with worker.producer() as producer:
                    for one in some:
                        await producer.send([one])
                        sent.append(one)

            nursery.start_soon(produce)
            await wait_all_tasks_blocked()
            assert len(sent) == worker.statistics().queued == 1000
            await nursery.start(worker.run)
            await trio.sleep(1)
            assert sent == some
            drain(worker)
        assert sink.database.chained == some

    async def test_a_sender_cancelled_while_it_waits_loses_nothing(self, autojump_clock):
        sink = MemorySink(before=stuck_until(2))
        worker = AuditWorker(sink, capacity=1, batch_entries=1)
        some = entries(1, 9)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                with trio.move_on_after(1) as scope:
                    await hand_over(sink, producer, some)
                assert scope.cancelled_caught
            drain(worker)
        assert sink.database.chained == some
        assert (worker.report.left, worker.report.finished) == (0, True)


class TestErrors:
    async def test_two_failures_then_success_is_one_row_each_in_order(self, autojump_clock):
        failures = [ConnectionLost("gone"), OSError("refused")]

        async def fail():
            await trio.lowlevel.checkpoint()
            if failures:
                raise failures.pop(0)

        before = metrics.AUDIT_LOG_ERRORS._value.get()
        sink = MemorySink(before=fail)
        worker = AuditWorker(sink)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, entries(1, 5))
                await trio.sleep(0.06)
                assert not worker.statistics().healthy
                await trio.sleep(1)
                assert worker.statistics().healthy
            drain(worker)
        assert sink.database.chained == entries(1, 5)
        assert worker.statistics().errors_total == 2
        assert metrics.AUDIT_LOG_ERRORS._value.get() - before == 2

    async def test_committed_but_reported_lost_is_still_once(self, autojump_clock):
        failures = [ConnectionLost("after the commit")]

        async def fail():
            await trio.lowlevel.checkpoint()
            if failures:
                raise failures.pop()

        sink = MemorySink(after=fail)
        worker = AuditWorker(sink)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, entries(1, 5))
            drain(worker)
        assert sink.database.chained == entries(1, 5)
        assert (worker.report.left, worker.report.finished) == (0, True)

    async def test_pauses_grow_to_two_seconds_and_the_drain_cuts_them_short(self, autojump_clock):
        times = []

        async def fail():
            times.append(trio.current_time())
            await trio.lowlevel.checkpoint()
            raise ConnectionLost("gone")

        sink = MemorySink(before=fail)
        worker = AuditWorker(sink, linger_seconds=0)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, [entry(1)])
                await trio.sleep(60)
                pauses = [later - earlier for earlier, later in pairwise(times)]
                assert pauses[:6] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
                assert pauses[6:] == pytest.approx([2.0] * (len(pauses) - 6))
                tried = len(times)
                drain(worker)
                await wait_all_tasks_blocked()
                assert len(times) == tried + 1
        assert max(later - earlier for earlier, later in pairwise(times[tried:])) <= 0.2501
        assert (worker.report.left, worker.report.finished, worker.report.seconds) == (1, False, DRAIN)

    async def test_a_server_that_says_nothing_at_all_is_given_up_after_ten_seconds(self, autojump_clock):
        sink = MemorySink(before=trio.sleep_forever)
        worker = AuditWorker(sink, linger_seconds=0)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, [entry(1)])
                await trio.sleep(10.01)
                assert worker.statistics().errors_total == 1
                sink.before = trio.lowlevel.checkpoint
                await trio.sleep(1)
                assert worker.statistics().written_total == 1
            drain(worker)

    async def test_a_bug_ends_the_worker_loudly(self, autojump_clock):
        async def bug():
            raise ZeroDivisionError

        sink = MemorySink(before=bug)
        worker = AuditWorker(sink, capacity=2, batch_entries=1)
        refused = []
        some = entries(1, 9)
        with pytest.RaisesGroup(pytest.RaisesGroup(ZeroDivisionError), allow_unwrapped=False):
            async with trio.open_nursery() as nursery:
                await nursery.start(worker.run)
                producer = worker.producer()

                async def produce():
                    with trio.CancelScope(shield=True), pytest.raises(AuditQueueClosed) as info:
                        await hand_over(sink, producer, some)
                    refused.append(info.value)

                nursery.start_soon(produce)
        assert len(refused) == 1
        assert not worker.report.finished
        assert worker.report.left == 9
        assert_whole(sink.database, some)


class TestDrain:
    async def test_everything_queued_is_chained(self, autojump_clock):
        sink = MemorySink()
        worker = AuditWorker(sink)
        async with trio.open_nursery() as nursery:
            with worker.producer() as producer:
                await hand_over(sink, producer, entries(1, 900))
            await nursery.start(worker.run)
            drain(worker)
        assert (worker.report.written, worker.report.left, worker.report.finished) == (900, 0, True)
        assert worker.report.seconds < 0.1

    async def test_producers_that_nobody_closes_do_not_hold_it_up(self, autojump_clock):
        sink = MemorySink()
        worker = AuditWorker(sink)
        leaked = [worker.producer() for _ in range(20)]
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await hand_over(sink, leaked[0], entries(1, 50))
            drain(worker)
        assert (worker.report.left, worker.report.finished, worker.report.seconds) == (0, True, 2.0)
        assert_whole(sink.database, entries(1, 50))
        assert len(sink.database.log) == 50

    async def test_late_producers_are_refused_and_counted(self, autojump_clock):
        sink = MemorySink()
        worker = AuditWorker(sink)
        producer = worker.producer()
        before = metrics.AUDIT_SEND_ERRORS._value.get()
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            drain(worker)
            with pytest.raises(AuditQueueClosed, match="no new producers"):
                worker.producer()
        assert metrics.AUDIT_SEND_ERRORS._value.get() == before
        with pytest.raises(AuditQueueClosed, match="outbox: 3"):
            await hand_over(sink, producer, entries(1, 3))
        assert metrics.AUDIT_SEND_ERRORS._value.get() - before == 3
        assert_whole(sink.database, entries(1, 3))  # in the outbox, for the next start

    @pytest.mark.parametrize("released_at", [1.0, 4.0])
    async def test_senders_that_wait_at_the_full_queue_are_answered(self, autojump_clock, released_at):
        sink = MemorySink(before=stuck_until(released_at))
        worker = AuditWorker(sink, capacity=10, batch_entries=10)
        outcomes = []
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)

            async def produce(number):
                with worker.producer() as producer:
                    try:
                        await hand_over(sink, producer, entries(number * 10, 2))
                    except AuditQueueClosed:
                        outcomes.append("refused")
                    else:
                        outcomes.append("taken")

            for number in range(1, 21):
                nursery.start_soon(produce, number)
            await trio.sleep(0.5)
            assert len(outcomes) < 20
            drain(worker)
        # Before the producers are closed (2 s) they land in the queue; after, they are told; all is chained either way.
        assert len(outcomes) == 20
        assert ("refused" in outcomes) is (released_at > 2.5)
        assert (worker.report.left, worker.report.finished) == (0, True)
        assert len(sink.database.log) == 40
        assert_whole(sink.database, [one for number in range(1, 21) for one in entries(number * 10, 2)])

    async def test_a_stuck_database_ends_at_the_deadline(self, autojump_clock):
        sink = MemorySink(before=trio.sleep_forever)
        worker = AuditWorker(sink)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, entries(1, 700))
            drain(worker)
        assert (worker.report.written, worker.report.left, worker.report.finished) == (0, 700, False)
        assert worker.report.seconds == DRAIN
        assert sink.aborted == 1  # at once, and not by asking the server
        assert_whole(sink.database, entries(1, 700))

    async def test_waiting_senders_count_as_left_when_the_deadline_comes_first(self, autojump_clock):
        sink = MemorySink(before=trio.sleep_forever)
        worker = AuditWorker(sink, capacity=3, batch_entries=1)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)

            async def produce():
                with worker.producer() as producer, pytest.raises(AuditQueueClosed):
                    await hand_over(sink, producer, entries(1, 50))

            nursery.start_soon(produce)
            await trio.sleep(1)
            drain(worker, 1)
        assert worker.report.left == 50

    async def test_stuck_and_then_well_again_in_time(self, autojump_clock):
        sink = MemorySink(before=stuck_until(4.9))
        worker = AuditWorker(sink)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, entries(1, 900))
            drain(worker)
        assert (worker.report.written, worker.report.left, worker.report.finished) == (900, 0, True)

    async def test_the_first_signal_counts(self, autojump_clock):
        sink = MemorySink(before=trio.sleep_forever)
        worker = AuditWorker(sink)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, [entry(1)])
            drain(worker, 3)
            await trio.sleep(1)
            drain(worker, 0)
            drain(worker, 60)
        assert worker.report.seconds == 3

    async def test_cancelled_in_the_middle_of_a_write_is_exactly_one_row(self, autojump_clock):
        sink = MemorySink(after=stuck_until(1))
        worker = AuditWorker(sink, linger_seconds=0)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await hand_over(sink, producer, [entry(1)])
            await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
        assert sink.database.chained == [entry(1)]
        assert (worker.report.left, worker.report.finished) == (0, True)

    @pytest.mark.parametrize("stuck", [False, True])
    async def test_a_crash_beside_it_still_drains_and_the_error_goes_on(self, autojump_clock, stuck):
        sink = MemorySink(before=trio.sleep_forever if stuck else stuck_until(1))
        worker = AuditWorker(sink, drain_seconds=4)

        async def crash():
            raise KeyError("the other task")

        with pytest.RaisesGroup(KeyError):
            async with trio.open_nursery() as nursery:
                await nursery.start(worker.run)
                with worker.producer() as producer:
                    await hand_over(sink, producer, entries(1, 300))
                nursery.start_soon(crash)
        assert worker.report.left == (300 if stuck else 0)
        assert worker.report.seconds == (4 if stuck else 1)  # a shield, and an end to it
        assert_whole(sink.database, entries(1, 300))

    async def test_a_supervisor_may_begin_it_before_the_worker_runs(self, autojump_clock):
        sink = MemorySink()
        sink.database.commit(entries(1, 3))
        worker = AuditWorker(sink)
        drain(worker)
        report = await worker.run()
        assert (report.written, report.left, report.finished) == (3, 0, True)


def simulate(seed):
    """50 producers, a moody database, a drain at a random moment. Returns what became of it."""
    dice = random.Random(seed)
    database = MemoryDatabase()
    committed, accepted, refused = [], [], []

    async def mood():
        await trio.sleep(dice.choice([0, 0, 0, 0.01, 0.3]))
        if dice.random() < 0.2:
            raise ConnectionLost("mood")

    sink = MemorySink(database, entries_max=8, before=mood, after=mood)
    worker = AuditWorker(sink, capacity=dice.choice([1, 5, 50]), batch_entries=8, drain_seconds=2)

    async def produce(first):
        try:
            with worker.producer() as producer:
                for start in range(first, first + 40, 4):
                    await trio.sleep(dice.random() * 0.2)
                    some = entries(start, dice.randint(1, 4))
                    committed.extend(some)
                    database.commit(some)
                    try:
                        await producer.send(some)
                    except AuditQueueClosed:
                        refused.extend(some)
                        return
                    accepted.extend(some)
        except AuditQueueClosed:
            return  # it came too late to begin

    async def main():
        async with trio.open_nursery() as audit:
            await audit.start(worker.run)
            try:
                async with trio.open_nursery() as producing:
                    for number in range(50):
                        producing.start_soon(produce, 1 + 40 * number)
                    await trio.sleep(dice.random() * 2)
                    if dice.random() < 0.3:
                        producing.cancel_scope.cancel()
                    if dice.random() < 0.7:
                        worker.begin_drain(trio.current_time() + dice.choice([0.1, 1, 5]))
            finally:
                worker.begin_drain(trio.current_time() + 5)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return committed, accepted, refused, worker, database


class TestSeeds:
    @pytest.mark.torture
    @pytest.mark.parametrize("block", range(5))
    def test_accepted_is_chained_or_left_and_nothing_is_lost(self, block):
        ends = set()
        for seed in range(block * 8, block * 8 + 8):
            committed, accepted, refused, worker, database = simulate(seed)
            assert_whole(database, committed)
            chained = {one.uuid for one in database.chained}
            unaccounted = [one for one in accepted if one.uuid not in chained]
            assert len(unaccounted) <= worker.report.left, seed
            if worker.report.finished:
                assert not unaccounted, seed
            ends.add((worker.report.finished, bool(refused)))
        assert len(ends) > 1  # the seeds do reach different ends
