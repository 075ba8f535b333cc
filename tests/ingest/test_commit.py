"""Group commit: twins, poison rows, conflicts, a lost connection and a COMMIT without an answer."""

from __future__ import annotations

import dataclasses
import secrets
import time

import pytest
import trio

from relay import metrics
from relay.asyncpg_trio import connect
from relay.audit.entry import Action, new_entry
from relay.errors import SHUTTING_DOWN, StoreGone
from relay.ingest.batch import Submission
from relay.ingest.commit import BATCH_BYTES_MAX
from relay.ingest.dms import OpenDm
from relay.ingest.types import Admission, Door, Outcome, Route
from relay.nostr.filter import parse_filter
from relay.query.replay import Limits, pages
from relay.query.sql import Reach
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
        batches = metrics.REGISTRY.get_sample_value("sprout_commit_batch_events_count")
        names = [str(number) for number in range(300)]
        for name in names:
            await core.ingest.enqueue(admitted(ALICE.sign(1, name)), Reply(replies, name))
        assert set(await wait_for(replies, 300)) == {""}
        assert [name for name, _ in replies.outcomes] == names
        await core.ingest.record([])  # a batch is counted after its answers
        batches = metrics.REGISTRY.get_sample_value("sprout_commit_batch_events_count") - batches
        assert replies.flushes <= batches + 1 < 300


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


async def test_records_are_durable_when_record_returns(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        entry = new_entry(Action.AUTH_SUCCESS, time_us=1, uuid=CHANNEL, actor=ALICE.pubkey)
        await core.ingest.record([entry])
        assert (
            await core.pool.fetchval("SELECT (SELECT count(*) FROM audit_outbox) + (SELECT count(*) FROM audit_log)")
            == 1
        )


async def test_refusals_are_counted_and_written_at_the_end(migrated_dsn: str) -> None:
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


def together(core: Core, *submissions: Submission) -> None:
    """One batch: nothing of it is taken before all of it is queued."""
    for submission in submissions:
        core.ingest._plain_in.send_nowait(submission)


async def test_twins_of_a_refused_event_are_refused_with_it(migrated_dsn: str) -> None:
    """`duplicate:` means stored: a copy of an event that was not must never hear it."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        replies = Replies()
        lost = Admission(BOB.sign(9, "x", [["h", CHANNEL]]), BOB.caller, CHANNEL, Route.PLAIN, BOB.pubkey, False, 1)
        together(core, *(Submission(lost, Reply(replies, name)) for name in "ab"))
        assert await wait_for(replies, 2) == ["restricted: not a channel member"] * 2
        # A bridge may bring the same event in the same moment, and with its own right.
        proxied = dataclasses.replace(lost, member=None)
        together(core, *(Submission(each, Reply(replies, "c")) for each in (lost, proxied, lost, proxied)))
        messages = (await wait_for(replies, 6))[2:]
        assert sorted(messages) == ["", "duplicate:", *["restricted: not a channel member"] * 2]


async def test_twins_of_a_poison_row_are_refused_with_it(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.pool.execute("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (content <> 'poison')")
        replies = Replies()
        poison = admitted(ALICE.sign(1, "poison"))
        together(core, *(Submission(poison, Reply(replies, name)) for name in "abc"))
        assert await wait_for(replies, 3) == ["error: internal server error"] * 3


async def test_a_poison_row_does_not_take_audit_entries_along(migrated_dsn: str) -> None:
    """Somebody's login must not fail because of somebody else's event."""
    async with running_core(migrated_dsn) as core:
        await core.pool.execute("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (content <> 'poison')")
        replies = Replies()
        entry = new_entry(Action.AUTH_SUCCESS, time_us=1, uuid=CHANNEL, actor=ALICE.pubkey)
        record = Submission(None, None, [entry], trio.Event())
        together(core, Submission(admitted(ALICE.sign(1, "poison")), Reply(replies, "x")), record)
        assert await wait_for(replies, 1) == ["error: internal server error"]
        assert record.done is not None
        with trio.fail_after(5):
            await record.done.wait()
        assert not record.failed


async def test_values_too_long_for_an_index_are_stored_and_found(migrated_dsn: str) -> None:
    """A GIN entry ends at 2.7 KB after compression: what does not compress must not cost the batch."""
    noise = secrets.token_hex(50_000)
    async with running_core(migrated_dsn) as core:
        replies = Replies()
        big = ALICE.sign(1, "big", [["t", noise], ["t", "short"]])
        together(
            core,
            Submission(admitted(big), Reply(replies, "big")),
            Submission(admitted(ALICE.sign(1, "other")), Reply(replies, "other")),
        )
        assert await wait_for(replies, 2) == ["", ""]
        reach = Reach(frozenset())
        for value, count in ((noise, 1), ("short", 1), (noise[:-1], 0)):
            found = pages(core.pool, [parse_filter({"#t": [value]})], reach, Limits(), now=int(time.time()))
            assert sum([len(rows) async for rows in found]) == count


async def test_what_the_server_cannot_hold_costs_its_own_event_only(migrated_dsn: str) -> None:
    """SQLSTATE 54000, as an index entry that is too long, is one row's fault."""
    async with running_core(migrated_dsn) as core:
        await core.pool.execute("CREATE INDEX too_narrow ON events (content)")
        replies = Replies()
        for content in (secrets.token_hex(50_000), "good"):
            together(core, Submission(admitted(ALICE.sign(1, content)), Reply(replies, content)))
        assert sorted(await wait_for(replies, 2)) == ["", "error: internal server error"]


async def test_a_batch_is_bounded_by_its_bytes(migrated_dsn: str) -> None:
    """500 events of the largest size would be one statement of 128 MiB."""
    async with running_core(migrated_dsn) as core:
        replies = Replies()
        events = [ALICE.sign(1, f"{number}" + "x" * 200_000) for number in range(60)]
        together(core, *(Submission(admitted(event), Reply(replies, "x")) for event in events))
        assert set(await wait_for(replies, 60)) == {""}
        assert 60 * 200_000 // BATCH_BYTES_MAX <= replies.flushes <= 60 * 200_000 // BATCH_BYTES_MAX + 2


async def test_metrics_count_every_outcome_once(migrated_dsn: str) -> None:
    def read() -> list[float]:
        value = metrics.REGISTRY.get_sample_value
        return [
            value("sprout_events_stored_total", {"kind": "9"}) or 0,
            value("sprout_events_stored_total", {"kind": "9007"}) or 0,
            value("sprout_event_processing_seconds_count") or 0,
            value("sprout_events_rejected_total", {"reason": "invalid"}) or 0,
            value("sprout_events_rejected_total", {"reason": "error"}) or 0,
        ]

    async with running_core(migrated_dsn) as core:
        before = read()
        await core.create(ALICE, visibility="private")
        event = ALICE.sign(9, "hello", [["h", CHANNEL]])
        for _ in range(2):
            await core.submit(ALICE, event)
        await core.create(BOB)  # refused in the transaction: the channel exists; not an error
        await core.say(BOB, "x")  # refused at admission
        replies = Replies()
        lost = Admission(BOB.sign(9, "x", [["h", CHANNEL]]), BOB.caller, CHANNEL, Route.PLAIN, BOB.pubkey, False, 1)
        await core.ingest.enqueue(lost, Reply(replies, "lost"))
        await wait_for(replies, 1)
        after = read()
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 1, 4, 2, 0]


async def test_whoever_waits_when_the_queues_close_is_answered(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn, commit_queue=1) as core:
        admissions = [await core.ingest.admit(ALICE.sign(kind, "{}"), ALICE.caller, Door.HTTP) for kind in (1, 0)]
        core.ingest.close()
        core.ingest.finish()
        for admission in admissions:
            assert isinstance(admission, Admission)
            assert (await core.ingest.perform(admission)).message == "error: shutting down"
        assert await core.ingest._run(OpenDm(ALICE.pubkey, [BOB.pubkey], announce=True), ALICE.pubkey, 1) == (
            Outcome.refused(SHUTTING_DOWN)
        )
        with pytest.raises(StoreGone):
            await core.ingest.record([new_entry(Action.AUTH_SUCCESS, time_us=1, uuid=CHANNEL)])
