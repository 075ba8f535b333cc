"""The bridge where something comes between: rights that end in mid-request, bounds, a store that does not answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio

from relay.errors import StoreBusy
from relay.http.app import create_app
from relay.query.gather import Answers
from relay.store import members
from tests.http import raw
from tests.support.bridge import NOW, bounded, is_problem, query, say, store
from tests.support.http import Rig, new_key, signed

# -- rights that end meanwhile -----------------------------------------------------------------------------------------


class Interrupted:
    """A pool behind which something happens between a statement on events and its answer."""

    def __init__(self, rig: Rig, happen: Callable[[], Awaitable[None]]) -> None:
        self._pool = rig.services.pool
        self._happen = happen
        self.times = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    async def fetch(self, statement: str, *arguments: Any) -> Any:
        found = await self._pool.fetch(statement, *arguments)
        if "FROM events" in statement:
            await self._happen()
        return found

    def transaction(self, **options: Any) -> Any:
        return _InterruptedTransaction(self._pool.transaction(**options), self)

    async def happen(self) -> None:
        self.times += 1
        await self._happen()


class _InterruptedTransaction:
    def __init__(self, transaction: Any, pool: Interrupted) -> None:
        self._transaction = transaction
        self._pool = pool

    async def __aenter__(self) -> Any:
        return await self._transaction.__aenter__()

    async def __aexit__(self, *error: object) -> Any:
        ended = await self._transaction.__aexit__(*error)
        await self._pool.happen()
        return ended


async def test_who_is_removed_meanwhile_sees_nothing_of_the_channel(rig: Rig) -> None:
    key, owner = new_key(), new_key()
    channel = await rig.channel(owner, visibility="private", others=(key.public_hex,))
    await say(rig, owner, channel, NOW, "word")
    note = await store(rig, signed(owner, 1, [], "word", NOW - 1))

    async def remove() -> None:
        await members.remove(rig.con, channel, key.public_hex, owner.public_hex)
        rig.services.directory.invalidate_membership(channel, key.public_hex)

    async def put_back() -> None:
        await members.put(rig.con, channel, key.public_hex, "member", None)
        rig.services.directory.invalidate_membership(channel, key.public_hex)

    pool = Interrupted(rig, remove)
    app = create_app(replace(rig.services, pool=pool))  # type: ignore[arg-type]
    for wanted in ({"kinds": [1, 9]}, {"kinds": [1, 9], "search": "word"}):
        await put_back()
        assert await query(rig, key, wanted, app=app) == [note.id]
    await put_back()
    found = await rig.post("/count", key=key, json=[{"kinds": [1, 9]}], app=app)
    assert found.json == {"count": 1}
    assert pool.times == 3, "one search, and the count again"


async def test_who_is_added_meanwhile_sees_the_channel_the_next_time(rig: Rig) -> None:
    """What was found was found for the channels of the beginning: no part of another one is shown."""
    key, owner = new_key(), new_key()
    channel = await rig.channel(owner, visibility="private")
    await say(rig, owner, channel, NOW)
    note = await store(rig, signed(owner, 1, [], "", NOW - 1))

    async def add() -> None:
        await members.put(rig.con, channel, key.public_hex, "member", None)
        rig.services.directory.invalidate_membership(channel, key.public_hex)

    app = create_app(replace(rig.services, pool=Interrupted(rig, add)))  # type: ignore[arg-type]
    assert await query(rig, key, {"kinds": [1, 9]}, app=app) == [note.id]
    assert len(await query(rig, key, {"kinds": [1, 9]}, app=app)) == 2


# -- bounds ------------------------------------------------------------------------------------------------------------


async def test_requests_of_a_key_are_counted_over_both_routes(rig: Rig) -> None:
    key, app = new_key(), bounded(rig, rate_requests=2)
    for path in ("/query", "/count"):
        assert (await rig.post(path, key=key, json=[{"kinds": [9]}], app=app)).status == 200
    for path in ("/query", "/count"):
        found = await rig.post(path, key=key, json=[{"kinds": [9]}], app=app)
        is_problem(found, 429, "rate-limited: too many requests, slow down")
    assert (await rig.post("/query", key=new_key(), json=[], app=app)).status == 200


async def test_events_of_a_key_are_counted(rig: Rig) -> None:
    key, app = new_key(), bounded(rig, rate_events=1)
    assert (await rig.post("/events", key=key, data=signed(key, 1, []).json, app=app)).status == 200
    found = await rig.post("/events", key=key, data=signed(key, 1, []).json, app=app)
    is_problem(found, 429, "rate-limited: too many events, slow down")


@pytest.mark.parametrize("path", ["/query", "/count", "/events", "/api/events"])
async def test_where_too_much_is_being_handled(rig: Rig, path: str) -> None:
    key = new_key()
    app = bounded(rig, max_concurrent_handlers=1, handler_wait_seconds=0.05)
    body = signed(key, 1, []).json if path.endswith("events") else b"[]"
    async with app.extensions["relay"].handling(None):
        found = await rig.post(path, key=key, data=body, app=app)
        assert (found.status, found.json["error"]) == (503, "rate-limited: too many concurrent requests")
        assert found.headers["retry-after"]
    assert (await rig.post(path, key=key, data=body, app=app)).status == 200


async def test_what_slow_readers_hold_is_bounded(rig: Rig) -> None:
    key, read, answers = new_key(), trio.Event(), Answers(all_max=250_000)
    app = create_app(replace(rig.services, answers=answers))
    channel = await rig.channel(key)
    for _ in range(5):
        await say(rig, key, channel, NOW, "x" * 50_000)
    headers = {"X-Pubkey": key.public_hex}
    async with trio.open_nursery() as nursery:
        slow = partial(raw.ask, app, "POST", "/query", headers, b'[{"kinds":[9]}]', reading=read.wait)
        nursery.start_soon(slow)
        with trio.fail_after(10):
            while not answers.held:
                await trio.sleep(0.005)
        found = await rig.post("/query", key=key, json=[{"kinds": [9]}], app=app)
        is_problem(found, 503, "temporarily unavailable")
        assert found.headers["retry-after"]
        assert len(await query(rig, key, {"kinds": [9], "limit": 1}, app=app)) == 1
        read.set()
    assert answers.held == 0
    assert len(await query(rig, key, {"kinds": [9]}, app=app)) == 5


async def test_a_place_is_left_after_every_end(rig: Rig) -> None:
    key = new_key()
    app = bounded(rig, max_concurrent_handlers=1, handler_wait_seconds=0.05, rate_requests=0)
    for body, status in ((b"[]", 200), (b"{", 400), (b"[{}]", 403), (b'[{"kinds":[9]}]', 200)) * 3:
        for path in ("/query", "/count"):
            assert (await rig.post(path, key=key, data=body, app=app)).status == status


# -- refusals that are not made here -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/query", "/count", "/events"])
async def test_every_refusal_is_a_problem(rig: Rig, path: str) -> None:
    key = new_key()
    found = await rig.post(path, key=key, data=b"x", headers={"Content-Length": str(1 << 21)})
    is_problem(found, 413, "length limit exceeded")
    found = await rig.post(path, key=key, data=b"[" + b" " * 5000, app=rig.with_settings(max_body_bytes=5000))
    assert found.status == 413
    assert found.headers["content-type"] == "application/problem+json"
    rig.refusing = True
    is_problem(await rig.post(path, key=key, data=b"[]"), 503, "shutting down")
    rig.refusing = False
    found = await rig.get(path, key=key)
    assert (found.status, found.headers["allow"], found.body) == (405, "POST", b"")


class Broken:
    """A pool whose every question about events fails."""

    def __init__(self, rig: Rig, error: Exception) -> None:
        self._pool = rig.services.pool
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    async def fetch(self, *_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise self._error

    def transaction(self, **_: Any) -> Any:
        raise self._error


@pytest.mark.parametrize("path", ["/query", "/count"])
async def test_where_the_store_does_not_answer(rig: Rig, path: str) -> None:
    key = new_key()
    for error, status in ((StoreBusy("x"), 503), (trio.TooSlowError(), 503), (ZeroDivisionError(), 500)):
        app = create_app(replace(rig.services, pool=Broken(rig, error)))  # type: ignore[arg-type]
        found = await rig.post(path, key=key, json=[{"kinds": [9]}], app=app)
        is_problem(found, status, "temporarily unavailable" if status == 503 else "internal server error")
        assert ("retry-after" in found.headers) is (status == 503)
