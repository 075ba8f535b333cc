"""Tampering, found and located: whatever hypothesis does to a chain."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.audit.chain import GENESIS, Head, link, recompute
from relay.audit.entry import Entry
from relay.audit.walk import FAULTS_KEPT_MAX, FaultKind, Walk
from tests.audit.memory import entries as numbered
from tests.audit.strategies import entries, hashes
from tests.audit.test_chain import VECTORS


def walk(rows, anchor=GENESIS):
    walk = Walk(anchor)
    walk.feed(rows)
    return walk


def found(rows):
    return [(fault.kind, fault.seq) for fault in walk(rows).faults]


def chains(least=1):
    return st.lists(entries(), min_size=least, max_size=8).map(lambda some: link(GENESIS, some))


def rechained(rows, start):
    """What a forger with write access does: hash again from `start` on."""
    head = rows[start - 1].head if start else GENESIS
    return rows[:start] + link(head, [row.entry for row in rows[start:]])


@given(chains(0))
def test_an_intact_chain_has_no_fault(rows):
    done = walk(rows)
    assert (done.faults, done.rows, done.head) == ([], len(rows), rows[-1].head if rows else GENESIS)


def test_imported_rows_may_stand_before_ours_and_not_behind():
    ours = link(VECTORS[-1].head, numbered(1, 2))
    assert found(VECTORS + ours) == []
    behind = replace(VECTORS[2], seq=6)
    assert (FaultKind.MALFORMED, 6) in found([*VECTORS, *ours, behind])


@given(chains(), st.data())
def test_a_change_of_any_field_is_one_fault_in_its_place(rows, data):
    place = data.draw(st.integers(0, len(rows) - 1))
    field = data.draw(st.sampled_from(fields(Entry))).name
    row = rows[place]
    value = getattr(data.draw(entries().filter(lambda one: getattr(one, field) != getattr(row.entry, field))), field)
    rows[place] = replace(row, entry=replace(row.entry, **{field: value}))
    assert found(rows) == [(FaultKind.HASH_MISMATCH, row.seq)]


@given(chains(), st.data())
def test_a_change_with_a_fresh_hash_breaks_the_link_behind_it(rows, data):
    place = data.draw(st.integers(0, len(rows) - 1))
    row = rows[place]
    other = data.draw(entries().filter(lambda one: one != row.entry))
    forged = replace(row, entry=other)
    rows[place] = replace(forged, hash=recompute(forged))
    expected = [] if place == len(rows) - 1 else [(FaultKind.BROKEN_LINK, row.seq + 1)]
    assert found(rows) == expected  # of the last row only whoever knows the old head can tell


@given(chains(), st.data(), hashes())
def test_a_changed_hash_is_found_where_it_is_and_behind_it(rows, data, digest):
    place = data.draw(st.integers(0, len(rows) - 1))
    seq = rows[place].seq
    rows[place] = replace(rows[place], hash=digest)
    assert found(rows) == [(FaultKind.HASH_MISMATCH, seq), (FaultKind.BROKEN_LINK, seq + 1)][: len(rows) - place]


@given(chains(2), st.data())
def test_deleted_rows_are_a_gap_of_their_size(rows, data):
    first = data.draw(st.integers(0, len(rows) - 2))
    last = data.draw(st.integers(first, len(rows) - 2))
    done = walk(rows[:first] + rows[last + 1 :])
    assert [(fault.kind, fault.seq) for fault in done.faults] == [(FaultKind.GAP, first + 1)]
    assert f"{last - first + 1} missing" in done.faults[0].detail


@given(chains(2), st.data())
def test_a_deletion_with_the_numbers_closed_up_is_found_too(rows, data):
    place = data.draw(st.integers(0, len(rows) - 2))
    closed = rows[:place] + [replace(row, seq=row.seq - 1) for row in rows[place + 1 :]]
    kinds = found(closed)
    assert kinds[0] == (FaultKind.BROKEN_LINK if place else FaultKind.BAD_GENESIS, place + 1)
    assert (FaultKind.HASH_MISMATCH, place + 1) in kinds


@given(chains(2), st.data())
def test_two_rows_swapped(rows, data):
    one = data.draw(st.integers(0, len(rows) - 2))
    two = data.draw(st.integers(one + 1, len(rows) - 1))
    swapped = list(rows)
    swapped[one], swapped[two] = replace(rows[two], seq=one + 1), replace(rows[one], seq=two + 1)
    assert {seq for _, seq in found(swapped)} >= {one + 1, two + 1}


@given(chains(2), st.data())
def test_contents_swapped_under_the_old_hashes(rows, data):
    one = data.draw(st.integers(0, len(rows) - 2))
    two = data.draw(st.integers(one + 1, len(rows) - 1))
    if rows[one].entry == rows[two].entry:
        return
    a, b = rows[one], rows[two]
    rows[one], rows[two] = replace(a, entry=b.entry), replace(b, entry=a.entry)
    assert found(rows) == [(FaultKind.HASH_MISMATCH, one + 1), (FaultKind.HASH_MISMATCH, two + 1)]


@given(chains(), st.data())
def test_a_row_put_in_again_is_a_duplicate(rows, data):
    place = data.draw(st.integers(0, len(rows) - 1))
    assert found([*rows[: place + 1], rows[place], *rows[place + 1 :]]) == [(FaultKind.DUPLICATE, place + 1)]


@given(chains(2), st.data())
def test_a_row_put_in_again_elsewhere(rows, data):
    place = data.draw(st.integers(0, len(rows) - 2))
    again = replace(rows[place], seq=len(rows) + 1)
    assert (FaultKind.HASH_MISMATCH, len(rows) + 1) in found([*rows, again])


@given(chains(), hashes().filter(any))
def test_another_genesis(rows, digest):
    forged = link(Head(0, digest), [row.entry for row in rows])
    assert found(forged) == [(FaultKind.BAD_GENESIS, 1)]


@given(chains(2), st.data())
def test_hashed_again_from_the_middle_is_intact_but_ends_elsewhere(rows, data):
    place = data.draw(st.integers(0, len(rows) - 1))
    other = data.draw(entries().filter(lambda one: one != rows[place].entry))
    changed = [*rows[:place], replace(rows[place], entry=other), *rows[place + 1 :]]
    forged = rechained(changed, place)
    # No chain can see this from inside: hence "compare the head with one written down elsewhere".
    assert found(forged) == []
    assert walk(forged).head.hash != rows[-1].hash


@pytest.mark.parametrize("version", [0, 3, -1])
def test_an_unknown_version(version):
    rows = link(GENESIS, numbered(1, 3))
    rows[1] = replace(rows[1], version=version)
    assert found(rows) == [(FaultKind.UNKNOWN_VERSION, 2)]


def test_one_version_passed_off_as_the_other():
    rows = link(GENESIS, numbered(1, 3))
    assert found([replace(rows[0], version=1), *rows[1:]]) == [(FaultKind.MALFORMED, 1)]
    assert found([replace(rows[0], v1_time="2026-01-01T00:00:00+00:00"), *rows[1:]]) == [(FaultKind.MALFORMED, 1)]
    assert found([replace(VECTORS[0], version=2)])[0][0] is FaultKind.MALFORMED
    assert found([replace(VECTORS[0], version=2, v1_time=None)]) == [(FaultKind.HASH_MISMATCH, 1)]


@pytest.mark.parametrize("field", ["hash", "prev_hash"])
@pytest.mark.parametrize("value", [b"", bytes(31), bytes(33)])
def test_a_hash_of_another_length(field, value):
    rows = link(GENESIS, numbered(1, 3))
    rows[1] = replace(rows[1], **{field: value})
    assert found(rows)[0] == (FaultKind.MALFORMED, 2)


def test_where_the_row_before_is_not_known_only_the_first_link_is_unchecked():
    rows = link(GENESIS, numbered(1, 4))
    unanchored = Walk(Head(1, bytes(32)), linked=False)
    unanchored.feed([rows[1], replace(rows[2], prev_hash=bytes(32))])
    assert [(fault.kind, fault.seq) for fault in unanchored.faults] == [
        (FaultKind.BROKEN_LINK, 3), (FaultKind.HASH_MISMATCH, 3),
    ]  # fmt: skip


def test_the_faults_of_a_log_replaced_as_a_whole_are_counted_and_not_kept():
    rows = [replace(row, hash=bytes(32)) for row in link(GENESIS, numbered(1, 300))]
    done = walk(rows)
    assert len(done.faults) == FAULTS_KEPT_MAX
    assert done.faults_total >= 300


def test_a_fault_reads_like_a_sentence():
    rows = link(GENESIS, numbered(1, 3))
    assert str(walk([rows[0], rows[2]]).faults[0]) == "gap at seq 2: 1 missing, seq 2 to 2"
