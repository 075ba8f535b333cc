"""The benchmark of `GET /api/channels` in small: both plans answer alike, and cost the statements that are said."""

from __future__ import annotations

import pytest

from scripts.benchmarks import channels


@pytest.mark.parametrize("dms", [1, 6])
async def test_both_plans_answer_the_same_and_only_one_grows(empty_dsn: str, dms: int) -> None:
    [found] = await channels.run(empty_dsn, rooms=4, dms=dms, messages=3, requests=2)
    assert found["list_statements"] == 3
    assert found["original_statements"] == 4 + 2 * dms
    assert found["list_p50_ms"] > 0
    assert found["times_faster_than_original"] == found["original_p50_ms"] / found["list_p50_ms"]
