"""The benchmark of searching in small: every question is answered, within the statements that are promised."""

from __future__ import annotations

from scripts.benchmarks import search


async def test_it_runs(empty_dsn: str) -> None:
    [found] = await search.run(empty_dsn, channels=3, messages=200, requests=2)
    assert set(found) == {*(f"{name}_p50_ms" for name in search.QUERIES), "newest_p50_ms", "feed_p50_ms", "statements"}
    assert found["statements"] == 3
    assert min(found.values()) > 0
