"""Kinds: the ranges at both of their ends, the names, and that the metric labels stay few."""

from __future__ import annotations

import pytest

from relay.nostr import kinds


@pytest.mark.parametrize(
    ("kind", "ephemeral", "replaceable", "addressable"),
    [
        (0, False, True, False),
        (1, False, False, False),
        (3, False, True, False),
        (41, False, True, False),
        (9999, False, False, False),
        (10000, False, True, False),
        (19999, False, True, False),
        (20000, True, False, False),
        (29999, True, False, False),
        (30000, False, False, True),
        (39999, False, False, True),
        (40000, False, False, False),
    ],
)
def test_ranges(kind, ephemeral, replaceable, addressable):
    assert kinds.is_ephemeral(kind) is ephemeral
    assert kinds.is_replaceable(kind) is replaceable
    assert kinds.is_addressable(kind) is addressable


@pytest.mark.parametrize(("kind", "expected"), [(46000, False), (46001, True), (46012, True), (46013, False)])
def test_workflow_execution(kind, expected):
    assert kinds.is_workflow_execution(kind) is expected


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        (0, "0"),
        (9, "9"),
        (10, "other"),
        (41, "other"),
        (1059, "1059"),
        (9000, "9000"),
        (9022, "9022"),
        (9023, "other"),
        (20001, "20001"),
        (20002, "20002"),
        (24134, "24134"),
        (20000, "ephemeral"),
        (22242, "ephemeral"),
        (29999, "ephemeral"),
        (30023, "30023"),
        (39003, "39003"),
        (40001, "other"),
        (40002, "40002"),
        (40099, "40099"),
        (40100, "40100"),
        (40101, "other"),
        (44101, "44101"),
        (48105, "48105"),
        (48106, "other"),
        (49001, "49001"),
        (65535, "other"),
    ],
)
def test_label(kind, label):
    assert kinds.kind_label(kind) == label


def test_labels_are_bounded_over_all_kinds():
    assert len({kinds.kind_label(kind) for kind in range(kinds.KIND_MAX + 1)}) < 220


def test_no_two_names_for_one_kind():
    named = [value for name, value in vars(kinds).items() if name.isupper() and isinstance(value, int)]
    assert len(named) == len(set(named))


def test_p_gated():
    assert {1059, 44100, 44101} == kinds.P_GATED
