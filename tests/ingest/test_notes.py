"""Counted refusals: which of them become entries, and when."""

from __future__ import annotations

from relay.audit.entry import Action
from relay.ingest.notes import Notes

MINUTE_US = 60_000_000
NOON_US = 1_700_000_040_000_000


def test_a_clock_that_is_set_back_keeps_no_count_waiting():
    notes = Notes()
    notes.add(Action.AUTH_FAILURE, "192.0.2.1", "bad", NOON_US)
    assert notes.take(NOON_US + 1) == []  # its minute is not over
    (entry,) = notes.take(NOON_US - 60 * MINUTE_US)
    assert f'"minute":{NOON_US // 1_000_000}' in entry.metadata
    assert notes.take(NOON_US, everything=True) == []
