"""The short form of scripts/torture: a few rounds of its modes, and that it would notice what it looks for.

What the other modes do is done once for every run elsewhere: signals in every launch form, a frozen database, clients
that do not read and a kill of the relay in tests/test_launch.py, the crash of each task in tests/test_crash.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from importlib import import_module
from pathlib import Path
from uuid import uuid4

import pytest

from relay.asyncpg_trio import connect
from relay.audit import checkpoint_file, note, outbox
from relay.audit.entry import Action, Entry, new_entry
from relay.audit.log import chain_outbox
from relay.nostr.event import Event
from relay.store.events import Row
from scripts.tortures.campaign import Plan, run
from scripts.tortures.checks import examine
from scripts.tortures.failpoints import FAILPOINTS
from scripts.tortures.load import Record
from scripts.tortures.main import MODES
from scripts.tortures.process import Relay
from tests.support.core import ALICE
from tests.support.storing import insert_batch

QUICK = {"SPROUT_AUDIT_DRAIN_SECONDS": "1"}
"""For a stop that has to wait for its deadline."""
SHORT = {
    "failpoints": [
        Plan(2, 1, 3, places=["events, after COMMIT", "batch, after the take"]),
        Plan(2, 1, 3, places=["effect, before COMMIT", "checkpoint, before the file"]),
        Plan(1, 1, 3, places=["spool, after the replay"], settings=QUICK),
    ],
    "postgres": [Plan(1, 1, 3)],
    "latency": [Plan(1, 1, 4)],
    "two": [Plan(1, 1, 3)],
}


SAID, UNSAID, LOST = (ALICE.sign(1, text) for text in ("said", "not said", "lost"))


@pytest.mark.torture
def test_a_short_campaign_finds_nothing():
    def one(case: tuple[str, Plan]) -> tuple[list[str], list[str]]:
        said: list[str] = []
        return run(case[0], MODES[case[0]], case[1], said.append), said

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(one, [(name, plan) for name, plans in SHORT.items() for plan in plans]))
    for breaches, said in results:
        assert breaches == [], "\n".join(said)
        assert ", 0 lost, 0 doubled, " in said[-1]


def test_every_place_is_in_the_relay():
    for name, failpoint in FAILPOINTS.items():
        for target in (*failpoint.targets, failpoint.inside):
            if target:
                module, path = target.split(":")
                assert callable(reduce(getattr, path.split("."), import_module(module))), name


# -- what the questions find -------------------------------------------------------------------------------------------


@pytest.fixture
def relay(migrated_dsn: str, tmp_path: Path) -> Relay:
    """Its data alone: nothing runs."""
    return Relay(tmp_path, own_dsn=migrated_dsn)


async def _store(relay: Relay, said: list[Event], entries: list[Entry]) -> None:
    con = await connect(relay.dsn)
    if said:
        await insert_batch(con, [Row(event, None, None) for event in said])
    await outbox.insert(con, entries)
    await chain_outbox(con)
    con.terminate()


def _created(event_id: str) -> Entry:
    return new_entry(Action.EVENT_CREATED, time_us=1, uuid=str(uuid4()), event_id=event_id, kind=1)


def _record(*accepted: Event) -> Record:
    return Record({event.id: event.kind for event in accepted}, {event.id for event in accepted})


async def test_nothing_is_found_where_nothing_is_wrong(relay):
    await _store(relay, [SAID], [_created(SAID.id)])
    found = await examine(relay, _record(SAID))
    assert (found.breaches, found.lost, found.doubled, found.stored, found.entries) == ([], 0, 0, 1, 1)


async def test_what_is_lost_or_doubled_is_found(relay):
    await _store(relay, [SAID, UNSAID], [_created(SAID.id), _created(SAID.id)])
    record = _record(SAID, LOST)
    record.logins = 1
    record.refused[UNSAID.id] = "no"
    found = await examine(relay, record)
    # Each of the two pairs is asked for in outbox and log, and in the log alone.
    assert found.doubled == 2
    assert found.lost == 2 + 1 + 1
    text = "\n".join(found.breaches)
    assert f"in the log: kind 1 {SAID.id} has 2 entries" in text
    assert f"in the log: kind 1 {UNSAID.id} has 0 entries" in text
    assert f"1 accepted events are not stored (kinds [1]), such as ['{LOST.id}']" in text
    assert "1 refused events are stored" in text
    assert "1 logins were accepted, 0 have an entry" in text


async def test_an_entry_without_its_event_is_found(relay):
    await _store(relay, [], [_created(LOST.id)])
    found = await examine(relay, Record())
    assert f"in the log: 1 entries for {LOST.id}, which is not stored" in found.breaches


async def test_a_checkpoint_that_the_log_does_not_reach_is_found(relay):
    path = relay.data_dir / checkpoint_file.FILE_NAME
    path.parent.mkdir()
    checkpoint_file.append(path, note.sign(note.origin_of(ALICE.key.public_hex), 7, bytes(32), ALICE.key))
    found = await examine(relay, Record())
    assert found.breaches == ["checkpoints of [7] entries, and the log has 0"]


async def test_two_roots_of_one_size_are_found(relay):
    path = relay.data_dir / checkpoint_file.FILE_NAME
    path.parent.mkdir()
    for root in (bytes(32), bytes([1]) * 32):
        checkpoint_file.append(path, note.sign(note.origin_of(ALICE.key.public_hex), 0, root, ALICE.key))
    found = await examine(relay, Record())
    assert found.breaches == [f"two roots of size 0: the second one is in {path}"]
