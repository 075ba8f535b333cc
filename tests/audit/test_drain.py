"""The end of the audit worker, in the seventeen ways in which it may be tried, and where each of them is tested.

Here the whole relay is taken through those that concern more than the worker, in virtual time (scripts/simulations).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.shutdown import ExitCode
from scripts.simulations.judge import judge
from scripts.simulations.mood import CALM, Mood
from scripts.simulations.scenario import MOODS, Scenario
from scripts.simulations.world import OURS, live

WHERE = """
 1 references and clones that nobody drops   audit/test_worker.py  test_producers_that_nobody_closes_do_not_hold_it_up
 2 too late: refused, counted, never a yes   audit/test_worker.py  test_late_producers_are_refused_and_counted
 3 fifty producers, a stop at any moment     audit/test_simulation.py  test_what_was_promised_is_kept_in_every_life
 4 twenty that wait at a full queue          audit/test_worker.py  test_senders_that_wait_at_the_full_queue_are_answered
 5 a database that is stuck                  audit/test_drain.py  test_a_stuck_database_costs_five_seconds_and_no_entry
 6 stuck, and well again in time             audit/test_drain.py  test_stuck_and_well_again_in_time_is_a_clean_end
 7 cancelled in the middle of a write        audit/test_worker.py  test_cancelled_in_the_middle_of_a_write_is_exactly_one_row
 8 a sibling crashes                         audit/test_drain.py  test_a_sibling_that_crashes_costs_no_entry
 9 the worker itself dies                    audit/test_drain.py  test_a_worker_that_dies_ends_the_relay_loudly
10 fails twice, then works                   audit/test_worker.py  test_two_failures_then_success_is_one_row_each_in_order
11 number 1001 waits                         audit/test_worker.py  test_number_1001_waits_and_all_go_in_order
12 a client that leaves while it waits       audit/test_drain.py  test_clients_that_leave_while_they_wait_lose_no_entry
13 each layer has its own time               test_shutdown.py  test_connections_that_do_not_end_cost_two_seconds_and_the_drain_goes_on_beside_them
14 two signals                               audit/test_drain.py  test_a_second_signal_changes_nothing
14 two signals, in every form                test_launch.py  test_the_whole_matrix_of_signals_on_the_embedded_database
15 one chain, whoever writes                 audit/test_drain.py  test_a_neighbour_on_the_same_database_makes_no_fork
16 whoever tampers is seen                   audit/test_tamper.py  -
17 kill -9 between event and log             test_launch.py  test_a_relay_that_was_killed_starts_again_with_everything_it_acknowledged
"""  # noqa: E501


def a_life(**changes):
    """Eight clients with four requests each, a database without a fault, SIGTERM after half a second."""
    fields = {
        "seed": 1, "mood": CALM, "ending": "SIGTERM", "ends_at": 0.5, "second_signal_after": 0.5, "blows": (),
        "clients": 8, "requests": 4, "pause_seconds": 0.3, "impatient": 0.0, "queue": 1000, "batch": 256,
        "commit_queue": 2000, "effect_workers": 3, "grace_seconds": 0.0, "drain_seconds": 5.0, "neighbour": False,
        "forgetful": False,
    }  # fmt: skip
    life = live(Scenario(**{**fields, **changes}))
    assert judge(life) == []
    return life


def took(life):
    return life.ended - life.began_stopping


def test_the_table_tells_of_tests_that_are_there():
    tests = Path(__file__).parents[1]
    rows = [re.split(r"\s{2,}", line.strip()) for line in WHERE.strip().splitlines()]
    assert {int(row[0].split()[0]) for row in rows} == set(range(1, 18))
    for _, file, name in rows:
        text = (tests / file).read_text()
        assert name == "-" or re.search(rf"def {name}\(", text), name


def test_nothing_is_wrong():
    life = a_life()
    assert life.code is ExitCode.DRAINED
    assert len(life.at_end) >= 8
    assert life.in_outbox_at_end == set()


def test_a_stuck_database_costs_five_seconds_and_no_entry():
    life = a_life(blows=((0.3, "freeze", 60.0),))
    assert life.code is ExitCode.UNFINISHED
    assert 5.0 <= took(life) <= 5.2
    assert life.worker.report.finished is False


def test_stuck_and_well_again_in_time_is_a_clean_end():
    life = a_life(blows=((0.4, "freeze", 3.5),))
    assert life.code is ExitCode.DRAINED
    assert 3 <= took(life) <= 4
    assert life.in_outbox_at_end == set()


@pytest.mark.parametrize("blows", [(), ((0.3, "freeze", 60.0),)])
def test_a_sibling_that_crashes_costs_no_entry(blows):
    life = a_life(ending="sibling", blows=blows)
    assert life.code is ExitCode.CRASHED
    assert life.crashes[0].startswith("sibling: ZeroDivisionError")
    assert life.worker.report.finished is (not blows)


def test_a_worker_that_dies_ends_the_relay_loudly():
    life = a_life(ending="worker", ends_at=0.2)
    assert life.code is ExitCode.CRASHED
    assert life.crashes[0].startswith("audit worker: ZeroDivisionError")
    assert life.in_outbox_at_end  # and not lost: the judge has seen the next start


def test_clients_that_leave_while_they_wait_lose_no_entry():
    life = a_life(impatient=1.0, queue=1, batch=2, mood=Mood("slow", latency_seconds=0.3), requests=8)
    gone = [one for one in life.requests if one.left]
    kept = [uuid for one in gone for uuid in one.uuids if life.server.entered.get(uuid) == OURS]
    assert len(gone) > 5
    assert kept  # what they asked for went its way without them


def test_what_is_committed_after_the_last_batch_is_left_and_the_exit_code_says_so():
    # The worker closes the producers half a second before the deadline and takes its last batch. The database has come
    # back just then, and a commit that was admitted long ago ends after it, in time: in the outbox, not in the log.
    life = a_life(
        seed=775, ends_at=0.01079151735159245, mood=next(mood for mood in MOODS if mood.name == "hanging"),
        blows=((0.0, "crash", 4.9),), clients=3, requests=8, pause_seconds=0.05, queue=4, batch=8,
        neighbour=True,
    )  # fmt: skip
    assert life.worker.report.finished
    assert life.in_outbox_at_end
    assert life.code is ExitCode.UNFINISHED


def test_a_second_signal_changes_nothing():
    life = a_life(ending="two signals", second_signal_after=1.0, blows=((0.4, "freeze", 3.5),))
    assert life.code is ExitCode.DRAINED
    assert life.in_outbox_at_end == set()


def test_a_neighbour_on_the_same_database_makes_no_fork():
    life = a_life(neighbour=True, batch=2, requests=12, ends_at=3.0)
    assert len({*life.server.writers} & {"ours", "neighbour"}) == 2
