"""Times as they are printed, and how a value of the wrong shape is called."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.http.refusals import NotWellFormed
from relay.http.values import rfc3339, rfc3339_seconds, strings

NOON = datetime(2024, 5, 6, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (None, None),
        (NOON, "2024-05-06T12:00:00+00:00"),
        (NOON.replace(microsecond=500_000), "2024-05-06T12:00:00.500+00:00"),
        (NOON.replace(microsecond=500_001), "2024-05-06T12:00:00.500001+00:00"),
        (NOON.astimezone(timezone(timedelta(hours=2))), "2024-05-06T12:00:00+00:00"),
    ],
)
def test_rfc3339(moment: datetime | None, text: str | None) -> None:
    assert rfc3339(moment) == text


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)))  # noqa: DTZ001
def test_rfc3339_is_exact(moment: datetime) -> None:
    assert datetime.fromisoformat(str(rfc3339(moment))) == moment


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00+00:00"),
        (-1, "1969-12-31T23:59:59+00:00"),
        (-(2**63), "0001-01-01T00:00:00+00:00"),
        (2**63 - 1, "9999-12-31T23:59:59+00:00"),
    ],
)
def test_seconds_of_any_size(seconds: int | None, text: str | None) -> None:
    assert rfc3339_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "boolean `true`"),
        (7, "integer `7`"),
        (1.5, "floating point `1.5`"),
        ('"', 'string "\\""'),
        ({}, "map"),
    ],
)
def test_wrong_shapes_are_named(value: object, name: str) -> None:
    with pytest.raises(NotWellFormed) as refused:
        strings({"keys": value}, "keys")
    assert refused.value.status == 422
    assert refused.value.error == (
        f"Failed to deserialize the JSON body into the target type: keys: invalid type: {name}, expected a sequence"
    )
    with pytest.raises(NotWellFormed, match=r"keys\[1\]: invalid type: sequence, expected a string"):
        strings({"keys": ["a", []]}, "keys")
