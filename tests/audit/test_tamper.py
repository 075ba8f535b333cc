"""The tamper campaign: whatever an intruder does to log, checkpoints and tree is noticed, classed and located.

In memory by the hundred, through PostgreSQL a few of each; `RELAY_TAMPERINGS=5000` makes it 5 000 in memory. At the end
stands what cannot be noticed, so that nobody believes it could.
"""

from __future__ import annotations

import os
from functools import cache
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.audit import checkpoints, log, note, tree_store
from relay.audit.anchors import Anchors
from relay.audit.chain import GENESIS, link
from relay.audit.verify import add_database, verify
from relay.audit.walk import FaultKind
from tests.audit import tampering
from tests.audit.memory import entry
from tests.audit.tampering import ALL, KEPT, KEY, ORIGIN, Log, checkpoint, log_of, verified

EXAMPLES = int(os.environ.get("RELAY_TAMPERINGS", "400"))
# The first without stored nodes, and quick; the others with them, with checkpoints in the midst and behind their ends.
SHAPES = (
    (12, (3, 5, 12), (5, 9)),
    (40, (7, 30), (11, 40)),
    (40, (7, 30), (35,)),
    (600, (100, 256, 599), (300, 600)),
)


@cache
def prepared(shape: int) -> Log:
    count, sizes, kept = SHAPES[shape]
    return log_of(count, list(sizes), list(kept))


def fresh(shape: int) -> Log:
    one = prepared(shape)
    return Log(list(one.rows), list(one.stored), list(one.kept), dict(one.nodes))


def found(report):
    return {(fault.kind, fault.seq) for fault in report.faults}


def judge(expected, report):
    """Everything that was expected, and nothing else but stored nodes over entries that are others now."""
    assert expected <= found(report), report.summary()
    more = found(report) - expected
    rewritten = any(
        kind in (FaultKind.REWRITTEN, FaultKind.HASH_MISMATCH, FaultKind.BROKEN_LINK) for kind, _ in expected
    )
    assert {kind for kind, _ in more} <= ({FaultKind.TREE_NODE} if rewritten else set()), report.summary()
    assert report.ok == (not expected)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_an_untouched_log_is_intact(shape):
    report = verified(fresh(shape))
    assert report.ok, report.summary()
    assert report.checkpoints.agreed == len(set(SHAPES[shape][1]) | set(SHAPES[shape][2]))
    assert report.checkpoints.uncovered == SHAPES[shape][0] - max(*SHAPES[shape][1], *SHAPES[shape][2])
    assert report.warnings == () or KEPT in report.warnings[0]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    tamper=st.sampled_from([each for each in ALL if each is not tampering.edit_node]),
    shape=st.sampled_from([0, 0, 0, 1, 1, 2, 3]),
    seed=st.integers(0, 2**32),
)
def test_every_tampering_is_noticed_classed_and_located(tamper, shape, seed):
    changed = fresh(shape)
    expected = tamper(changed, Random(seed))
    judge(expected, verified(changed))


@pytest.mark.parametrize("seed", range(2))
def test_an_edited_node_of_the_tree(seed):
    changed = fresh(3)
    judge(tampering.edit_node(changed, Random(seed)), verified(changed))


def test_nodes_that_differ_together_are_one_fault_and_those_above_them_none():
    changed = log_of(66_000, [66_000], [])
    for index in (3, 4):
        changed.nodes[8, index] = bytes(32)
    changed.nodes[16, 0] = bytes(32)  # of these two, as far as one can tell
    report = verified(changed, window=10_000)
    assert found(report) == {(FaultKind.TREE_NODE, 3 * 256 + 1)}
    assert "seq 769 to 1280" in report.faults[0].detail
    del changed.nodes[8, 3], changed.nodes[8, 4]
    report = verified(changed, window=10_000)
    assert found(report) == {(FaultKind.TREE_NODE, 1)}
    assert any("2 inner nodes of the tree are not stored" in warning for warning in report.warnings)


def test_two_checkpoints_of_one_size_are_evidence_whatever_the_entries_are():
    changed = fresh(0)
    others = link(GENESIS, [entry(10**6 + number) for number in range(1, 13)])
    changed.kept.append(checkpoint(others, 5))
    report = verified(changed)
    assert found(report) == {(FaultKind.CONTRADICTION, 5)}
    assert set(report.evidence[0]) == {checkpoint(others, 5).note, checkpoint(prepared(0).rows, 5).note}
    assert all(text in report.summary() for text in report.evidence[0])


def test_the_range_between_two_checkpoints_is_named():
    changed = fresh(1)
    expected = tampering.remove_tail_and_go_on(changed, Random(3))
    report = verified(changed)
    ((kind, seq),) = expected
    assert kind is FaultKind.REWRITTEN
    assert f"the entries {seq} to {min(each for each in changed.sizes if each >= seq)}" in report.fault.detail


# -- what an operator has accepted -----------------------------------------------------------------------------------


def second(rows, size, key=KEY):
    covered = checkpoint(rows, size)
    return note.sign(f"{ORIGIN}/2", size, covered.root, key)


def with_generation(changed, generation):
    with Anchors(KEY.public_hex, generation=generation) as anchors:
        for each in (*changed.stored, *changed.kept):
            anchors.add(KEPT, each)
        anchors.compare_with_each_other()
        return {fault.kind for fault in anchors.faults.kept}, anchors.marks(0, 100)


def test_checkpoints_from_before_an_accepted_loss_may_disagree():
    changed = fresh(0)
    rows = link(changed.rows[5].head, [entry(10**6 + number) for number in range(1, 4)])
    changed.rows[6:] = rows
    assert (FaultKind.REWRITTEN, 6) in found(verified(changed))
    changed.stored.append(second(changed.rows, 9))
    report = verified(changed)
    assert report.ok, report.summary()
    assert report.checkpoints.given_up == 1
    assert report.checkpoints.newest[0].checkpoint.origin == f"{ORIGIN}/2"


def test_a_loss_that_only_the_table_tells_of_was_not_accepted_by_the_relay():
    changed = fresh(0)
    kinds, marks = with_generation(changed, 2)
    assert kinds == {FaultKind.LOSS_NOT_RECORDED}
    assert not any(mark.excused for mark in marks)


def test_a_loss_that_the_table_has_forgotten():
    changed = fresh(0)
    changed.kept.append(second(changed.rows, 12))
    assert with_generation(changed, 2)[0] == set()
    assert with_generation(changed, 1)[0] == {FaultKind.LOSS_NOT_RECORDED}


# -- through PostgreSQL ----------------------------------------------------------------------------------------------

_WRITE = """
INSERT INTO audit_log
    (seq, uuid, time_us, action, actor, event_id, kind, channel_id, metadata, version, prev_hash, hash)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
"""


async def write(con, changed):
    """The changed log over whatever is stored: an intruder with the owner's rights."""
    await con.execute("TRUNCATE audit_cosignatures, audit_checkpoints, audit_tree")
    await con.execute("DELETE FROM audit_log")
    for row in changed.rows:
        one = row.entry
        await con.execute(_WRITE, row.seq, one.uuid, one.time_us, one.action, one.actor, one.event_id, one.kind,
                          one.channel_id, one.metadata, row.version, row.prev_hash, row.hash)  # fmt: skip
    for each in changed.stored:
        await con.execute(
            "INSERT INTO audit_checkpoints (origin, size, root, time_us, note) VALUES ($1, $2, $3, 1, $4)",
            each.origin, each.size, each.root, each.note,
        )  # fmt: skip
    for (level, index), node in changed.nodes.items():
        await con.execute("INSERT INTO audit_tree VALUES ($1, $2, $3)", level, index, node)


async def look(con, changed, **bounds):
    with Anchors(KEY.public_hex) as anchors:
        await add_database(con, anchors)
        for each in changed.kept:
            anchors.add(KEPT, each)
        return await verify(con, anchors=anchors, window_rows=7, **bounds)


async def defenceless(con):
    await con.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
    for constraint in ("pkey", "uuid_key", "prev_hash_key"):
        await con.execute(f"ALTER TABLE audit_log DROP CONSTRAINT audit_log_{constraint}")


async def test_every_tampering_through_the_database(con):
    await defenceless(con)
    for number, tamper in enumerate(each for each in ALL if each is not tampering.edit_node):
        changed = fresh(0)
        expected = tamper(changed, Random(number))
        await write(con, changed)
        judge(expected, await look(con, changed))


async def kept_log(con, count=600, sizes=(100, 300, 600)):
    """A log as the relay itself writes it."""
    rows = link(GENESIS, [entry(number) for number in range(1, count + 1)])
    await log.insert_rows(con, rows)
    await tree_store.fill(con, count)
    for size in sizes:
        await checkpoints.insert(con, checkpoint(rows, size), 1)
    return Log(rows, [], [], {})


async def test_tree_checkpoints_and_ranges_as_the_relay_writes_them(con):
    kept = await kept_log(con)
    report = await look(con, kept)
    assert report.ok, report.summary()
    assert (report.checkpoints.agreed, report.checkpoints.nodes, report.checkpoints.uncovered) == (3, 2, 0)
    # A range is bound by the first checkpoint in it, or, where none is in it, by the next one behind it.
    for bounds, bound in [((301, 600), 300), ((290, 350), 300), ((120, 130), 300), ((301, 400), 300), ((5, 6), 100)]:
        report = await look(con, kept, from_seq=bounds[0], to_seq=bounds[1])
        assert report.ok, report.summary()
        assert report.checkpoints.bound_by.checkpoint.size == bound
        assert report.rows == bounds[1] - bounds[0] + 1


async def test_a_partial_range_over_tampered_nodes_or_rows_before_it(con):
    kept = await kept_log(con)
    await con.execute("UPDATE audit_tree SET hash = sha256('x') WHERE index = 0")
    assert found(await look(con, kept, from_seq=400)) == {(FaultKind.REWRITTEN, 400)}
    assert found(await look(con, kept)) == {(FaultKind.TREE_NODE, 1)}
    await con.execute("DELETE FROM audit_tree")
    await con.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
    await con.execute("DELETE FROM audit_log WHERE seq = 5")
    report = await look(con, kept, from_seq=400)
    assert report.ok
    assert (report.checkpoints.unreached, report.checkpoints.newest) == (1, ())
    assert "NO CHECKPOINT" in report.summary()


async def test_checkpoint_rows_that_say_something_else_than_their_notes(con):
    kept = await kept_log(con)
    await con.execute("UPDATE audit_checkpoints SET size = 99 WHERE size = 100")
    await con.execute("UPDATE audit_checkpoints SET note = 'x' WHERE size = 300")
    assert found(await look(con, kept)) == {(FaultKind.BAD_CHECKPOINT, 99), (FaultKind.BAD_CHECKPOINT, 300)}


async def test_checkpoints_removed_from_the_database_are_missed_where_somebody_has_them(con):
    kept = await kept_log(con)
    kept.kept.append(checkpoint(kept.rows, 600))
    await con.execute("DELETE FROM audit_checkpoints WHERE size = 600")
    report = await look(con, kept)
    assert report.ok
    assert any("1 checkpoints of kept elsewhere are not in the database" in warning for warning in report.warnings)
    assert report.checkpoints.newest[0].sources == (KEPT,)


async def test_nodes_of_entries_that_are_not_there(con):
    kept = await kept_log(con)
    await con.execute(
        "INSERT INTO audit_tree VALUES (8, 5, sha256('x')), (9, 0, sha256('x')), (56, 9223372036854775807, sha256('x'))"
    )
    report = await look(con, kept)
    assert found(report) == {(FaultKind.TREE_NODE, 601)}
    assert "3 stored nodes" in report.fault.detail


# -- what cannot be noticed ------------------------------------------------------------------------------------------


def test_a_tail_that_nobody_has_signed_for_can_be_cut():
    changed = fresh(2)
    del changed.rows[35:]  # 40 entries, the newest checkpoint anywhere covers 35
    report = verified(changed)
    assert report.ok
    assert report.checkpoints.uncovered == 0


def test_without_any_checkpoint_a_log_made_anew_is_as_good_as_the_old_one_and_the_report_says_so():
    changed = log_of(12, [], [])
    tampering.replace_all(changed, Random(0))
    report = verified(changed)
    assert report.ok
    assert "NO CHECKPOINT" in report.summary()
    assert report.checkpoints.uncovered == 12
