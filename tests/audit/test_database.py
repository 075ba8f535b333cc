"""Outbox, log and worker on a real PostgreSQL, with the ways in which one fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.asyncpg_trio import CommitOutcomeUnknown, ConnectionLost, Pool, PostgresError, connect
from relay.asyncpg_trio.errors import LockNotAvailableError, QueryCanceledError, UniqueViolationError
from relay.audit import log, outbox
from relay.audit.chain import GENESIS, hash_v2, link
from relay.audit.log import ADVISORY_LOCK, chain_outbox, read_rows
from relay.audit.sink import PoolSink
from relay.audit.verify import verify
from relay.audit.worker import AuditWorker
from tests.audit.conftest import MIGRATION
from tests.audit.memory import entries, entry
from tests.audit.proxy import proxied
from tests.audit.strategies import entries as any_entries


async def chained(con):
    return [row.entry for row in await read_rows(con, 0, 10**9, 10**6)]


async def assert_exactly_once(con, expected):
    found = await chained(con)
    assert sorted(one.uuid for one in found) == sorted(one.uuid for one in expected)
    assert await outbox.count(con) == 0
    report = await verify(con)
    assert report.ok, report.summary()


async def until(condition):
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


class TestOutbox:
    async def test_it_shares_the_fate_of_the_action(self, con):
        async def fail():
            async with con.transaction():
                await outbox.insert(con, entries(1, 3))
                raise KeyError

        with pytest.raises(KeyError):
            await fail()
        assert await outbox.count(con) == 0
        async with con.transaction():
            await outbox.insert(con, entries(1, 3))
        assert await outbox.count(con) == 3

    async def test_nothing_is_no_statement(self, con):
        before = con.statements
        await outbox.insert(con, [])
        assert con.statements == before

    async def test_many_are_one_statement_in_order(self, con):
        before = con.statements
        some = [entry(number) for number in range(500, 0, -1)]
        await outbox.insert(con, some)
        assert con.statements == before + 1
        rows = await con.fetch("SELECT uuid::text FROM audit_outbox ORDER BY id")
        assert [row["uuid"] for row in rows] == [one.uuid for one in some]

    async def test_a_uuid_waits_once(self, con):
        await outbox.insert(con, entries(1, 1))
        with pytest.raises(UniqueViolationError):
            await outbox.insert(con, entries(1, 1))

    async def test_age_is_that_of_the_next_one(self, con):
        assert await outbox.oldest_age_seconds(con) == 0.0
        now = await con.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint")
        await outbox.insert(con, [entry(1, time_us=now - 30_000_000), entry(2, time_us=now)])
        assert 30 <= await outbox.oldest_age_seconds(con) < 60

    async def test_a_clock_in_the_future_gives_no_negative_age(self, con):
        await outbox.insert(con, [entry(1, time_us=2**62)])
        assert await outbox.oldest_age_seconds(con) == 0.0


class TestSchema:
    @pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log",
                                           "TRUNCATE audit_log"])  # fmt: skip
    async def test_the_log_is_append_only(self, con, statement):
        await outbox.insert(con, entries(1, 1))
        await chain_outbox(con)
        with pytest.raises(PostgresError, match="append-only"):
            await con.execute(statement)
        assert await chained(con) == entries(1, 1)

    @pytest.mark.parametrize("table", ["audit_log", "audit_outbox"])
    async def test_auth_events_are_refused_here_too(self, con, table):
        bad = replace(entry(1), kind=22242)
        insert = outbox.insert(con, [bad]) if table == "audit_outbox" else log.insert_rows(con, link(GENESIS, [bad]))
        with pytest.raises(PostgresError, match="kind_check"):
            await insert

    async def test_a_fork_is_refused(self, con):
        await log.insert_rows(con, link(GENESIS, entries(1, 2)))
        fork = [replace(row, seq=row.seq + 2) for row in link(GENESIS, entries(3, 1))]
        with pytest.raises(UniqueViolationError, match="prev_hash"):
            await log.insert_rows(con, fork)


class TestRoundTrip:
    """The test the original lacks: it hashed nanoseconds and kept microseconds, and no chain of its ever verified."""

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(some=st.lists(any_entries(), min_size=20, max_size=40, unique_by=lambda one: one.uuid))
    def test_every_field_comes_back_as_it_went_in(self, empty_dsn, some):
        async def check():
            con = await connect(empty_dsn)
            # A fresh schema each time, rolled back with everything else when the connection ends.
            await con.execute("BEGIN")
            await con.execute(MIGRATION.read_text())
            await outbox.insert(con, some)
            batch = await log.chain_batch(con, entries_max=100)
            rows = await read_rows(con, 0, batch.head.seq, 100)
            con.terminate()
            return rows

        rows = trio.run(check)
        assert [row.entry for row in rows] == some
        assert [row.hash for row in rows] == [hash_v2(row.seq, row.entry, row.prev_hash) for row in rows]


class TestStart:
    async def test_what_a_crash_left_is_chained(self, con):
        await outbox.insert(con, entries(1, 600))
        assert await chain_outbox(con) == 600
        assert await chained(con) == entries(1, 600)
        assert await chain_outbox(con) == 0

    async def test_a_full_last_batch_is_not_the_end(self, con):
        await outbox.insert(con, entries(1, 8))
        assert await chain_outbox(con, entries_max=4) == 8


class TestAmbiguousCommit:
    @pytest.mark.parametrize("cut", ["before", "after"])
    async def test_a_retry_chains_exactly_once(self, con, empty_dsn, cut):
        async with proxied(empty_dsn) as (proxy, dsn), Pool(dsn, size_min=1, size_max=5) as pool:
            sink = PoolSink(pool)
            await outbox.insert(con, entries(1, 5))
            proxy.cut_commit = cut
            with pytest.raises(CommitOutcomeUnknown):
                await sink.chain_batch()
            assert proxy.cut_commit is None
            if cut == "after":
                assert await chained(con) == entries(1, 5)
            await outbox.insert(con, entries(6, 1))
            batch = await sink.chain_batch()
            assert batch.written == 6  # also those whose commit nobody heard of
            await assert_exactly_once(con, entries(1, 6))
            await outbox.insert(con, entries(7, 1))
            assert (await sink.chain_batch()).written == 1  # the doubt is settled, once

    async def test_an_id_that_a_killed_server_forgot_does_not_stop_the_chain(self, con, pool, empty_dsn):
        async with proxied(empty_dsn) as (proxy, dsn), Pool(dsn, size_min=1, size_max=5) as other:
            sink = PoolSink(other)
            await outbox.insert(con, entries(1, 2))
            proxy.cut_commit = "before"
            with pytest.raises(CommitOutcomeUnknown):
                await sink.chain_batch()
            # As if the server had lost its last transactions in a crash: the id has not been given out (again) yet.
            forgotten = int(await con.fetchval("SELECT pg_current_xact_id()::text")) + 1_000_000
            sink._in_doubt = replace(sink._in_doubt, xid=str(forgotten))
            assert (await sink.chain_batch()).written == 2
            await assert_exactly_once(con, entries(1, 2))

    async def test_another_writer_on_top_does_not_confuse_the_count(self, con, pool, empty_dsn):
        async with proxied(empty_dsn) as (proxy, dsn), Pool(dsn, size_min=1, size_max=5) as other:
            sink = PoolSink(other)
            await outbox.insert(con, entries(1, 2))
            proxy.cut_commit = "before"
            with pytest.raises(CommitOutcomeUnknown):
                await sink.chain_batch()
            await outbox.insert(con, entries(3, 1))
            assert (await PoolSink(pool).chain_batch()).written == 3
            assert (await sink.chain_batch()).written == 0
            await assert_exactly_once(con, entries(1, 3))

    @pytest.mark.parametrize("cut", ["before", "after"])
    async def test_the_worker_gets_over_it(self, con, empty_dsn, cut):
        async with proxied(empty_dsn) as (proxy, dsn), Pool(dsn, size_min=1, size_max=5) as pool:
            worker = AuditWorker(PoolSink(pool))
            proxy.cut_commit = cut
            async with trio.open_nursery() as nursery:
                await nursery.start(worker.run)
                with worker.producer() as producer:
                    await outbox.insert(con, entries(1, 20))
                    await producer.send(entries(1, 20))
                worker.begin_drain(trio.current_time() + 5)
            assert (worker.report.written, worker.report.left, worker.report.finished) == (20, 0, True)
            assert worker.statistics().errors_total == 1
            await assert_exactly_once(con, entries(1, 20))


class TestLimits:
    @pytest.mark.parametrize("entries_max", [0, 501])
    async def test_a_batch_is_no_larger_than_500(self, con, pool, entries_max):
        with pytest.raises(ValueError, match="1 to 500"):
            await log.chain_batch(con, entries_max=entries_max)
        with pytest.raises(AssertionError):
            PoolSink(pool, entries_max=entries_max)

    async def test_the_server_itself_ends_what_takes_too_long(self, con):
        async with con.transaction(isolation="read_committed"):
            await log.chain_batch(con)
            limits = [await con.fetchval(f"SHOW {name}") for name in ("lock_timeout", "statement_timeout")]
        assert limits == ["2s", "5s"]
        assert await con.fetchval("SHOW statement_timeout") == "0"  # they are the transaction's, not the session's

    async def test_a_statement_that_takes_too_long_is_a_retry(self, con, pool, monkeypatch):
        monkeypatch.setattr(log, "_LOCK", log._LOCK.replace("statement_timeout = 5000", "statement_timeout = 30"))
        await outbox.insert(con, entries(1, 1))
        slow = "BEGIN PERFORM pg_sleep(CASE WHEN current_setting('statement_timeout') = '30ms' THEN 5 ELSE 0 END);"
        await con.execute(f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ {slow} RETURN NEW; END $$")
        await con.execute("CREATE TRIGGER slow BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION slow()")
        sink = PoolSink(pool)
        with pytest.raises(QueryCanceledError):
            await sink.chain_batch()
        await con.execute("DROP TRIGGER slow ON audit_log")
        assert (await sink.chain_batch()).written == 1
        await assert_exactly_once(con, entries(1, 1))


class TestHeldRows:
    """A session that keeps rows of the outbox locked holds up those rows, and nothing else."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch):
        monkeypatch.setattr(log, "_LOCK", log._LOCK.replace("lock_timeout = 2000", "lock_timeout = 20"))

    @pytest.fixture
    async def hold(self, con, empty_dsn):
        other = await connect(empty_dsn)

        async def hold(*numbers):
            await other.execute("ROLLBACK; BEGIN")
            uuids = [one.uuid for one in entries(1, 20) if int(one.uuid[-4:], 16) in numbers]
            await other.fetch("SELECT FROM audit_outbox WHERE uuid = ANY ($1::uuid[]) FOR UPDATE", uuids)

        yield hold
        other.terminate()

    async def test_the_others_are_chained_and_the_held_are_known(self, con, pool, hold):
        await outbox.insert(con, entries(1, 5))
        await hold(2, 4)
        sink = PoolSink(pool)
        with pytest.raises(LockNotAvailableError):
            await sink.chain_batch()
        batch = await sink.chain_batch()
        assert (batch.written, batch.full, batch.held) == (3, False, (entry(2).uuid, entry(4).uuid))
        await outbox.insert(con, entries(6, 2))
        batch = await sink.chain_batch()  # as long as it lasts, without a timeout each time
        assert (batch.written, len(batch.held)) == (2, 2)
        await hold()
        batch = await sink.chain_batch()
        assert (batch.written, batch.held) == (2, ())
        assert [int(one.uuid[-4:], 16) for one in await chained(con)] == [1, 3, 5, 6, 7, 2, 4]
        await assert_exactly_once(con, entries(1, 7))

    async def test_full_batches_go_on_past_them(self, con, pool, hold):
        await outbox.insert(con, entries(1, 9))
        await hold(1, 2, 3)
        sink = PoolSink(pool, entries_max=2)
        with pytest.raises(LockNotAvailableError):
            await sink.chain_batch()
        batches = [await sink.chain_batch() for _ in range(4)]
        assert [(one.written, one.full) for one in batches] == [(2, True), (2, True), (2, True), (0, False)]
        assert batches[-1].held == tuple(one.uuid for one in entries(1, 2))  # as many as a batch has
        await hold()
        await chain_outbox(con)
        await assert_exactly_once(con, entries(1, 9))

    async def test_the_worker_counts_them_until_they_are_free(self, con, pool, hold, monkeypatch):
        monkeypatch.setattr("relay.audit.worker.SWEEP_SECONDS", 0.02)
        worker = AuditWorker(PoolSink(pool))
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await outbox.insert(con, entries(1, 6))
                await hold(1)
                await producer.send(entries(1, 6))
                await until(lambda: worker.statistics().held == 1)
                assert worker.statistics().written_total == 5
                await hold()
                await until(lambda: worker.statistics().written_total == 6)
                assert worker.statistics().held == 0
            worker.begin_drain(trio.current_time() + 5)
        assert worker.report.left == 0
        await assert_exactly_once(con, entries(1, 6))

    async def test_at_the_end_they_are_left_and_said_to_be(self, con, pool, hold):
        worker = AuditWorker(PoolSink(pool))
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                await outbox.insert(con, entries(1, 6))
                await hold(3, 5)
                await producer.send(entries(1, 6))
            worker.begin_drain(trio.current_time() + 5)
        assert (worker.report.written, worker.report.left) == (4, 2)

    async def test_a_dead_nodes_rows_behind_a_held_one_are_swept_up(self, con, pool, hold, monkeypatch):
        monkeypatch.setattr("relay.audit.worker.SWEEP_SECONDS", 0.02)
        monkeypatch.setattr("relay.audit.worker.ORPHAN_SECONDS", 0.05)
        worker = AuditWorker(PoolSink(pool))
        await outbox.insert(con, entries(1, 6))  # and nobody tells the worker
        await hold(1)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await until(lambda: worker.statistics().written_total == 5)
            await hold()
            await until(lambda: worker.statistics().written_total == 6)
            worker.begin_drain(trio.current_time() + 5)
        await assert_exactly_once(con, entries(1, 6))

    async def test_the_start_does_not_wait_for_them(self, con, empty_dsn, hold):
        await outbox.insert(con, entries(1, 6))
        await hold(1)
        assert await chain_outbox(con) == 5
        await hold()
        assert await chain_outbox(con) == 1
        await assert_exactly_once(con, entries(1, 6))

    async def test_a_writer_that_never_ends_is_an_error_of_the_start(self, con, empty_dsn):
        other = await connect(empty_dsn)
        await other.execute(f"SELECT pg_advisory_lock({ADVISORY_LOCK})")
        with pytest.raises(LockNotAvailableError):
            await chain_outbox(con)
        other.terminate()


class TestWorker:
    async def test_two_workers_on_one_database_make_one_chain(self, con, pool, empty_dsn):
        async def produce(worker, dsn_con, first):
            with worker.producer() as producer:
                for start in range(first, first + 400, 10):
                    some = entries(start, 10)
                    await outbox.insert(dsn_con, some)
                    await producer.send(some)
            dsn_con.terminate()

        workers = [AuditWorker(PoolSink(pool, entries_max=16), batch_entries=16, linger_seconds=0.001) for _ in "ab"]
        async with trio.open_nursery() as running:
            for worker in workers:
                await running.start(worker.run)
            async with trio.open_nursery() as producing:
                for number, worker in enumerate(workers * 2):
                    own = await connect(empty_dsn)
                    producing.start_soon(produce, worker, own, 1 + 400 * number)
            for worker in workers:
                worker.begin_drain(trio.current_time() + 5)
        assert sum(worker.statistics().written_total for worker in workers) == 1600
        assert [worker.report.left for worker in workers] == [0, 0]
        await assert_exactly_once(con, entries(1, 1600))

    async def test_a_lost_backend_is_a_retry(self, con, pool):
        worker = AuditWorker(PoolSink(pool))
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            with worker.producer() as producer:
                # The batch waits here for the advisory lock, in mid-transaction.
                await con.execute(f"SELECT pg_advisory_lock({ADVISORY_LOCK})")
                await outbox.insert(con, entries(1, 3))
                await producer.send(entries(1, 3))
                waiting = "FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                with trio.fail_after(5):
                    while await con.fetchval(f"SELECT count(pg_terminate_backend(pid)) {waiting}") == 0:
                        await trio.sleep(0.01)
                await con.execute("SELECT pg_advisory_unlock_all()")
            worker.begin_drain(trio.current_time() + 5)
        assert worker.statistics().errors_total >= 1
        assert worker.report.finished
        await assert_exactly_once(con, entries(1, 3))

    async def test_a_lock_that_is_never_released_times_out_and_is_tried_again(self, con, pool, monkeypatch):
        monkeypatch.setattr(log, "_LOCK", log._LOCK.replace("lock_timeout = 2000", "lock_timeout = 20"))
        worker = AuditWorker(PoolSink(pool))
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await con.execute(f"SELECT pg_advisory_lock({ADVISORY_LOCK})")
            with worker.producer() as producer:
                await outbox.insert(con, entries(1, 1))
                await producer.send(entries(1, 1))
                await until(lambda: worker.statistics().errors_total >= 2)
                assert not worker.statistics().healthy
                await con.execute("SELECT pg_advisory_unlock_all()")
                await until(lambda: worker.statistics().written_total == 1)
                assert worker.statistics().healthy
            worker.begin_drain(trio.current_time() + 5)
        await assert_exactly_once(con, entries(1, 1))

    @pytest.mark.parametrize("how", ["deaf", "table lock"])
    async def test_a_stuck_database_costs_the_deadline_and_nothing_else(self, con, empty_dsn, how):
        async with proxied(empty_dsn) as (proxy, dsn), Pool(dsn, size_min=1, size_max=5) as pool:
            worker = AuditWorker(PoolSink(pool))
            await outbox.insert(con, entries(1, 1000))
            async with trio.open_nursery() as nursery:
                await nursery.start(worker.run)
                if how == "deaf":
                    proxy.deaf.set()
                else:
                    await con.execute("BEGIN; LOCK TABLE audit_log")
                with worker.producer() as producer:
                    await producer.send(entries(1, 1000))
                began = trio.current_time()
                worker.begin_drain(began + 0.5)
            took = trio.current_time() - began
            assert 0.5 <= took < 0.9
            assert worker.report.left == 1000
            assert not worker.report.finished
            if how == "table lock":
                await con.execute("ROLLBACK")
            pool.abort()
        # The next start: every entry is still there, once.
        await chain_outbox(con)
        await assert_exactly_once(con, entries(1, 1000))

    async def test_entries_of_a_dead_node_are_swept_up(self, con, pool, monkeypatch):
        monkeypatch.setattr("relay.audit.worker.SWEEP_SECONDS", 0.02)
        monkeypatch.setattr("relay.audit.worker.ORPHAN_SECONDS", 0.05)
        worker = AuditWorker(PoolSink(pool))
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await outbox.insert(con, entries(1, 300))  # and nobody tells the worker
            await until(lambda: worker.statistics().written_total == 300)
            worker.begin_drain(trio.current_time() + 5)
        await assert_exactly_once(con, entries(1, 300))

    async def test_abort_in_mid_statement_is_at_once(self, con, pool):
        sink = PoolSink(pool)
        await con.execute(f"SELECT pg_advisory_lock({ADVISORY_LOCK})")
        async with trio.open_nursery() as nursery:

            async def write():
                with pytest.raises(ConnectionLost):
                    await sink.chain_batch()

            nursery.start_soon(write)
            with trio.fail_after(5):
                while not await con.fetchval("SELECT count(*) FROM pg_locks WHERE locktype='advisory' AND NOT granted"):
                    await trio.sleep(0.005)
            began = trio.current_time()
            sink.abort()
        assert trio.current_time() - began < 0.5
