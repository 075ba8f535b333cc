"""Group commit: twins, poison rows, conflicts, a lost connection and a COMMIT without an answer."""

from __future__ import annotations

import time

import pytest
import trio

from relay.asyncpg_trio import Connection, connect
from relay.ingest.types import Admission, Outcome, Route
from tests.support.core import ALICE, BOB, CHANNEL, Core, running_core


class Replies:
    """What a connection is to the commit task: it gets outcomes and is told once to write them."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, Outcome]] = []
        self.flushes = 0

    def flush_replies(self) -> None:
        self.flushes += 1


class Reply:
    def __init__(self, owner: Replies, name: str) -> None:
        self.owner = owner
        self.name = name

    def resolve(self, outcome: Outcome) -> None:
        self.owner.outcomes.append((self.name, outcome))


def admitted(event, channel: str | None = None) -> Admission:
    return Admission(event, ALICE.caller, channel, Route.PLAIN, None, False, time.time_ns() // 1000)


async def wait_for(replies: Replies, count: int) -> list[str]:
    with trio.fail_after(10):
        while len(replies.outcomes) < count:
            await trio.sleep(0.005)
    return [outcome.message for _, outcome in replies.outcomes]


async def stored_and_audited(core: Core) -> tuple[int, int]:
    with trio.fail_after(10):
        while await core.pool.fetchval("SELECT count(*) FROM audit_outbox"):
            await trio.sleep(0.01)
    return (
        await core.pool.fetchval("SELECT count(*) FROM events WHERE kind = 1"),
        await core.pool.fetchval("SELECT count(*) FROM audit_log WHERE kind = 1"),
    )


async def test_twins_in_one_batch_are_stored_once(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        replies = Replies()
        event = ALICE.sign(1, "x")
        for name in "abc":
            await core.ingest.enqueue(admitted(event), Reply(replies, name))
        assert sorted(await wait_for(replies, 3)) == ["", "duplicate:", "duplicate:"]
        assert replies.outcomes[0][0] == "a"
        assert await stored_and_audited(core) == (1, 1)


async def test_outcomes_come_in_order_and_one_flush_serves_a_batch(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        replies = Replies()
        names = [str(number) for number in range(300)]
        for name in names:
            await core.ingest.enqueue(admitted(ALICE.sign(1, name)), Reply(replies, name))
        assert set(await wait_for(replies, 300)) == {""}
        assert [name for name, _ in replies.outcomes] == names
        assert replies.flushes < 20


async def test_a_poison_row_does_not_take_its_batch_along(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.pool.execute("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (content <> 'poison')")
        replies = Replies()
        for number in range(40):
            text = "poison" if number in (7, 23) else f"good {number}"
            await core.ingest.enqueue(admitted(ALICE.sign(1, text)), Reply(replies, text))
        messages = await wait_for(replies, 40)
        assert messages.count("") == 38
        assert {name for name, outcome in replies.outcomes if not outcome.accepted} == {"poison"}
        assert await stored_and_audited(core) == (38, 38)


async def test_duplicates_of_stored_events_are_told_from_lost_access(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        event = BOB.sign(9, "x", [["h", CHANNEL]])
        replies = Replies()
        lost = Admission(event, BOB.caller, CHANNEL, Route.PLAIN, BOB.pubkey, False, 1)
        await core.ingest.enqueue(lost, Reply(replies, "lost"))
        assert await wait_for(replies, 1) == ["restricted: not a channel member"]
        await core.add(ALICE, BOB)
        await core.ingest.enqueue(lost, Reply(replies, "stored"))
        await core.ingest.enqueue(lost, Reply(replies, "again"))
        assert (await wait_for(replies, 3))[1:] == ["", "duplicate:"]


async def test_a_terminated_backend_costs_nothing(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_core(migrated_dsn) as core:
        kill = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        replies = Replies()
        for round_number in range(5):
            for number in range(30):
                name = f"{round_number}/{number}"
                await core.ingest.enqueue(admitted(ALICE.sign(1, name)), Reply(replies, name))
            killer = await connect(migrated_dsn)
            await killer.execute(kill)
            killer.terminate()
        assert set(await wait_for(replies, 150)) <= {"", "duplicate:"}
        assert await stored_and_audited(core) == (150, 150)


@pytest.mark.parametrize("really", [True, False], ids=["committed", "not committed"])
async def test_a_commit_without_an_answer_is_resolved(
    migrated_dsn: str, monkeypatch: pytest.MonkeyPatch, really: bool
) -> None:
    """The connection dies at COMMIT, once after and once before the server did it: each event is stored once, and
    its answer says so."""
    from relay.asyncpg_trio.transaction import Transaction

    original = Transaction._commit
    broken: list[bool] = []

    async def commit(self: Transaction) -> None:
        con: Connection = self._connection
        if not broken and await con.fetchval("SELECT count(*) FROM events WHERE kind = 1"):
            broken.append(True)
            if really:
                await con.execute("COMMIT")
            con.terminate()
        await original(self)

    async with running_core(migrated_dsn) as core:
        monkeypatch.setattr(Transaction, "_commit", commit)
        replies = Replies()
        for number in range(20):
            await core.ingest.enqueue(admitted(ALICE.sign(1, str(number))), Reply(replies, str(number)))
        assert set(await wait_for(replies, 20)) <= {"", "duplicate:"}
        assert broken
        assert await stored_and_audited(core) == (20, 20)


async def test_records_are_durable_when_record_returns(migrated_dsn: str) -> None:
    from relay.audit.entry import Action, new_entry

    async with running_core(migrated_dsn) as core:
        entry = new_entry(Action.AUTH_SUCCESS, time_us=1, uuid=CHANNEL, actor=ALICE.pubkey)
        await core.ingest.record([entry])
        assert (
            await core.pool.fetchval("SELECT (SELECT count(*) FROM audit_outbox) + (SELECT count(*) FROM audit_log)")
            == 1
        )


async def test_refusals_are_counted_and_written_at_the_end(migrated_dsn: str) -> None:
    from relay.audit.entry import Action

    async with running_core(migrated_dsn) as core:
        for _ in range(3):
            core.ingest.note(Action.AUTH_FAILURE, ALICE.pubkey, "challenge mismatch")
        core.ingest.note(Action.RATE_LIMIT_EXCEEDED, "192.0.2.1", "connections")
    con = await connect(migrated_dsn)
    rows = await con.fetch("SELECT action, actor, metadata FROM audit_log ORDER BY action")
    assert [(row["action"], row["actor"]) for row in rows] == [
        ("auth_failure", ALICE.pubkey),
        ("rate_limit_exceeded", None),
    ]
    assert '"count":3' in rows[0]["metadata"]
    assert '"from":"192.0.2.1"' in rows[1]["metadata"]
    con.terminate()


async def test_after_close_nothing_is_admitted(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        core.ingest.close()
        assert (await core.submit(ALICE, ALICE.sign(1))).message == "error: shutting down"
