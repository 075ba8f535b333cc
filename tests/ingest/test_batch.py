"""A batch whose answer never comes: whatever had happened, each event is stored, audited and delivered once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from relay.asyncpg_trio import Connection, connect
from relay.asyncpg_trio.errors import ConnectionLost
from relay.asyncpg_trio.transaction import Transaction
from relay.audit.entry import Action, new_entry
from relay.errors import StoreGone
from relay.ingest import batch
from relay.ingest.batch import Submission
from relay.ingest.commit import CommitTask
from relay.ingest.types import STORED, Admission, Outcome
from relay.nostr.event import Event
from relay.store import events as stored_events
from relay.store import outcome
from relay.store.own_connection import OwnConnection
from tests.ingest.test_commit import Replies, Reply, admitted, stored_and_audited, wait_for
from tests.support.core import ALICE, CHANNEL, Core, running_core

Deliveries = list[tuple[str, int]]
Run = Callable[[Connection, tuple[Any, ...]], Awaitable[None]]

WAITS_FOR_A_LOCK = """
SELECT count(*) FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND query LIKE '%WITH input AS%' AND datname = current_database()"""


class Breaker:
    """Breaks the connection at the first batch that comes after `arm`, having done `run` with it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run: Run | None = None
        self.broken = 0
        self.fetchrow = Connection.fetchrow

        async def fetchrow(con: Connection, query: str, *args: Any) -> Any:
            if query != batch._STORE or self.run is None:
                return await self.fetchrow(con, query, *args)
            run, self.run = self.run, None
            self.broken += 1
            await run(con, args)
            con.terminate()
            raise ConnectionLost("as if the line had been cut")

        monkeypatch.setattr(Connection, "fetchrow", fetchrow)

    async def store(self, con: Connection, args: tuple[Any, ...]) -> None:
        await self.fetchrow(con, batch._STORE, *args)

    async def nothing(self, con: Connection, args: tuple[Any, ...]) -> None:
        await trio.lowlevel.checkpoint()


@pytest.fixture
def breaker(monkeypatch: pytest.MonkeyPatch) -> Breaker:
    return Breaker(monkeypatch)


@pytest.fixture
def deliveries(monkeypatch: pytest.MonkeyPatch) -> Deliveries:
    """What goes to the fan-out: ids, with the transactions that have stored them."""
    found: Deliveries = []
    deliver = CommitTask._deliver

    async def noted(self: CommitTask, part: Sequence[Submission], new: dict[str, int]) -> None:
        ids = [submission.event.id for submission in part]
        found.extend((event_id, new[event_id]) for event_id in ids if event_id in new)
        await deliver(self, part, new)

    monkeypatch.setattr(CommitTask, "_deliver", noted)
    return found


def ids_of(deliveries: Deliveries) -> list[str]:
    return [event_id for event_id, _ in deliveries]


async def publish(core: Core, events: Sequence[Event], replies: Replies) -> None:
    for event in events:
        await core.ingest.enqueue(admitted(event), Reply(replies, event.id))


def numbered(count: int = 20) -> list[Event]:
    return [ALICE.sign(1, str(number)) for number in range(count)]


@pytest.mark.parametrize("really", [True, False], ids=["stored", "not stored"])
async def test_an_answer_that_never_came(
    migrated_dsn: str, breaker: Breaker, deliveries: Deliveries, really: bool
) -> None:
    async with running_core(migrated_dsn) as core:
        breaker.run = breaker.store if really else breaker.nothing
        events, replies = numbered(), Replies()
        await publish(core, events, replies)
        assert set(await wait_for(replies, 20)) == {""}, "our own events are no duplicates of themselves"
        assert breaker.broken == 1
        assert await stored_and_audited(core) == (20, 20)
        assert sorted(ids_of(deliveries)) == sorted(event.id for event in events)


async def test_the_transaction_of_a_found_event_is_the_one_that_stored_it(
    migrated_dsn: str, breaker: Breaker, deliveries: Deliveries
) -> None:
    async with running_core(migrated_dsn) as core:
        breaker.run = breaker.store
        event, replies = ALICE.sign(1, "x"), Replies()
        await publish(core, [event], replies)
        assert await wait_for(replies, 1) == [""]
        row = await core.pool.fetchrow(
            "SELECT xmin::text::bigint, pg_current_xact_id()::text::bigint FROM events WHERE id = $1",
            bytes.fromhex(event.id),
        )
        assert dict(deliveries)[event.id] % 2**32 == row[0]
        assert row[1] - 100 < dict(deliveries)[event.id] < row[1]


async def test_a_first_try_that_is_still_running_is_waited_for(
    migrated_dsn: str, breaker: Breaker, deliveries: Deliveries
) -> None:
    other = await connect(migrated_dsn)
    async with running_core(migrated_dsn) as core:

        async def begin(con: Connection, args: tuple[Any, ...]) -> None:
            await other.execute("BEGIN")
            await breaker.store(other, args)

        breaker.run = begin
        events, replies = numbered(), Replies()
        await publish(core, events, replies)
        with trio.fail_after(5):
            while not await core.pool.fetchval(WAITS_FOR_A_LOCK):
                await trio.sleep(0.01)
        assert replies.outcomes == []
        await other.execute("COMMIT")
        assert set(await wait_for(replies, 20)) == {""}
        assert await stored_and_audited(core) == (20, 20)
        assert len(deliveries) == 20
    other.terminate()


async def test_a_first_try_that_begins_only_later_does_nothing(
    migrated_dsn: str, breaker: Breaker, deliveries: Deliveries
) -> None:
    """Its bytes lay in a buffer while the second try was served."""
    sent: list[tuple[Any, ...]] = []
    other = await connect(migrated_dsn)
    async with running_core(migrated_dsn) as core:

        async def keep(con: Connection, args: tuple[Any, ...]) -> None:
            await trio.lowlevel.checkpoint()
            sent.append(args)

        breaker.run = keep
        events, replies = numbered(), Replies()
        await publish(core, events, replies)
        assert set(await wait_for(replies, 20)) == {""}
        assert await stored_and_audited(core) == (20, 20)
        await breaker.store(other, sent[0])
        assert await stored_and_audited(core) == (20, 20)
        assert len(deliveries) == 20
    other.terminate()


async def test_an_event_of_somebody_elses_is_a_duplicate_in_doubt_as_well(
    migrated_dsn: str, breaker: Breaker, deliveries: Deliveries
) -> None:
    async with running_core(migrated_dsn) as core:
        events, replies = numbered(4), Replies()
        assert [await core.submit(ALICE, event) for event in events[:2]] == [STORED, STORED]
        breaker.run = breaker.store
        await publish(core, events, replies)
        assert await wait_for(replies, 4) == ["duplicate:", "duplicate:", "", ""]
        assert await stored_and_audited(core) == (4, 4)
        assert ids_of(deliveries) == [event.id for event in events]


@pytest.mark.parametrize("really", [True, False], ids=["stored", "not stored"])
async def test_entries_alone_are_written_once(migrated_dsn: str, breaker: Breaker, really: bool) -> None:
    async with running_core(migrated_dsn) as core:
        breaker.run = breaker.store if really else breaker.nothing
        entry = new_entry(Action.AUTH_SUCCESS, time_us=1, uuid=CHANNEL, actor=ALICE.pubkey)
        await core.ingest.record([entry])
        assert breaker.broken == 1
        await stored_and_audited(core)
        assert await core.pool.fetchval("SELECT count(*) FROM audit_log WHERE uuid = $1", CHANNEL) == 1


@pytest.mark.parametrize("patience_seconds", [10.0, -1.0], ids=["tried again", "open for a while"])
async def test_an_error_behind_the_commit_takes_nothing_back(
    migrated_dsn: str, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch, patience_seconds: float
) -> None:
    """What a batch did not store is looked up when the rest of it is stored already."""
    monkeypatch.setattr(outcome, "PATIENCE_SECONDS", patience_seconds)
    failures = 0

    async def known(con: Connection, ids: Sequence[str]) -> set[str]:
        nonlocal failures
        if failures == 0:
            failures += 1
            await con.execute("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(5)")
        return await events_known(con, ids)

    events_known = stored_events.known
    async with running_core(migrated_dsn) as core:
        old, new, replies = ALICE.sign(1, "old"), ALICE.sign(1, "new"), Replies()
        assert await core.submit(ALICE, old) == STORED
        monkeypatch.setattr(stored_events, "known", known)
        await publish(core, [old, new], replies)
        assert await wait_for(replies, 2) == ["duplicate:", ""]
        assert failures == 1
        assert ids_of(deliveries) == [old.id, new.id]
        assert await stored_and_audited(core) == (2, 2)


@pytest.mark.parametrize("really", [True, False], ids=["stored", "not stored"])
async def test_while_the_server_is_away_nobody_is_told_what_nobody_knows(
    migrated_dsn: str,
    breaker: Breaker,
    deliveries: Deliveries,
    monkeypatch: pytest.MonkeyPatch,
    really: bool,
) -> None:
    """What was sent waits, together with its twin; what comes later is refused, and true is what both are told."""
    monkeypatch.setattr(outcome, "PATIENCE_SECONDS", -1.0)
    away = trio.Event()
    get = OwnConnection.get

    async def unreachable(own: OwnConnection) -> Connection:
        if own._name == "commit task" and breaker.broken and not away.is_set():
            raise StoreGone("not there")
        return await get(own)

    monkeypatch.setattr(OwnConnection, "get", unreachable)
    async with running_core(migrated_dsn) as core:
        breaker.run = breaker.store if really else breaker.nothing
        sent, replies = ALICE.sign(1, "sent"), Replies()
        await publish(core, [sent, sent], replies)
        with trio.fail_after(5):
            while not breaker.broken:
                await trio.sleep(0.001)
        with trio.fail_after(5):
            refused = await core.submit(ALICE, ALICE.sign(1, "too late"))
        assert not refused.accepted
        assert replies.outcomes == deliveries == []
        away.set()
        assert await wait_for(replies, 2) == ["", "duplicate:"]
        assert ids_of(deliveries) == [sent.id]
        assert await stored_and_audited(core) == (1, 1)


@asynccontextmanager
async def thread(core: Core) -> AsyncIterator[tuple[Event, Callable[[str], Event]]]:
    await core.create(ALICE)
    root = ALICE.sign(9, "root", [["h", CHANNEL]])
    assert await core.submit(ALICE, root) == STORED

    def reply(text: str) -> Event:
        return ALICE.sign(9, text, [["h", CHANNEL], ["e", root.id, "", "reply"]])

    yield root, reply


@pytest.mark.parametrize("really", [True, False], ids=["committed", "not committed"])
async def test_a_commit_without_an_answer_counts_replies_once(
    migrated_dsn: str, monkeypatch: pytest.MonkeyPatch, deliveries: Deliveries, really: bool
) -> None:
    commit = Transaction._commit
    broken: list[bool] = []

    async def cut(self: Transaction) -> None:
        con = self._connection
        if not broken and await con.fetchval("SELECT count(*) FROM events WHERE content = 'answer'"):
            broken.append(True)
            if really:
                await con.execute("COMMIT")
            con.terminate()
        await commit(self)

    async with running_core(migrated_dsn) as core, thread(core) as (root, reply):
        monkeypatch.setattr(Transaction, "_commit", cut)
        event = reply("answer")
        assert await core.submit(ALICE, event) == STORED
        assert broken
        assert ids_of(deliveries).count(event.id) == 1
        counted = "SELECT reply_count FROM thread_metadata WHERE event_id = $1"
        assert await core.pool.fetchval(counted, bytes.fromhex(root.id)) == 1


async def test_plain_events_take_one_statement_and_replies_a_transaction(
    migrated_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fetchrow = Connection.fetchrow

    async def noted(con: Connection, query: str, *args: Any) -> Any:
        if query == batch._STORE:
            seen.append("in a transaction" if con.depth else "alone")
        return await fetchrow(con, query, *args)

    monkeypatch.setattr(Connection, "fetchrow", noted)
    async with running_core(migrated_dsn) as core, thread(core) as (_, reply):
        seen.clear()
        await core.submit(ALICE, ALICE.sign(1, "x"))
        await core.submit(ALICE, reply("answer"))
        assert seen == ["alone", "in a transaction"]


async def test_the_chain_has_the_order_of_the_batch(migrated_dsn: str) -> None:
    """Whatever the order in which the rows go in, which is that of their times."""
    async with running_core(migrated_dsn) as core:
        now = ALICE.sign(1, "").created_at
        events = [ALICE.sign(1, str(number), at=now - number % 7) for number in range(40)]
        replies = Replies()
        await publish(core, events, replies)
        await wait_for(replies, 40)
        await stored_and_audited(core)
        rows = await core.pool.fetch("SELECT event_id FROM audit_log WHERE kind = 1 ORDER BY seq")
        assert [row[0] for row in rows] == [event.id for event in events]


def test_a_refused_submission_is_resolved_once() -> None:
    replies = Replies()
    submission = Submission(admitted(ALICE.sign(1, "x")), Reply(replies, "x"))
    assert isinstance(submission.admission, Admission)
    submission.resolve(STORED)
    with pytest.raises(AssertionError):
        submission.resolve(Outcome(True, ""))
