"""Names of audit entries are UUIDs of version 4, and no two are the same."""

from __future__ import annotations

from uuid import RFC_4122, UUID

from relay.audit.uuids import new_uuids


def test_they_are_random_uuids_in_canonical_form() -> None:
    found = new_uuids(2000)
    assert len(set(found)) == 2000
    for text in found:
        parsed = UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, RFC_4122)
    # Every digit that is not fixed varies.
    assert [len({text[place] for text in found}) for place in range(36) if place not in (8, 13, 14, 18, 19, 23)] == (
        [16] * 30
    )
    assert {text[19] for text in found} == set("89ab")


def test_none_are_none() -> None:
    assert new_uuids(0) == []
