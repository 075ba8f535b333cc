"""Tokens that end while they are used to make another: whoever ends them must not leave the new one behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from relay.store import tokens
from tests.support.http import Answer, Rig, new_key
from tests.support.minting import ask, ask_signed

_WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"""
_ACTIVE = "SELECT count(*) FROM api_tokens WHERE revoked_at IS NULL"
_ENTRIES = """
SELECT action FROM (SELECT action, metadata FROM audit_outbox UNION ALL SELECT action, metadata FROM audit_log) e"""


class Asked:
    """A request on its way."""

    def __init__(self, nursery: trio.Nursery, ask: Callable[[], Awaitable[Answer]]) -> None:
        self.answer: Answer | None = None
        nursery.start_soon(self._run, ask)

    async def _run(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        self.answer = await ask()


async def waiting(rig: Rig, count: int, unless: Callable[[], bool] = lambda: False) -> None:
    with trio.fail_after(10):
        while not unless() and await rig.services.pool.fetchval(_WAITING) < count:
            await trio.sleep(0.005)


async def test_a_token_that_ends_meanwhile_makes_none(rig: Rig) -> None:
    key = new_key()
    first, second = [(await ask_signed(rig, key)).json for _ in range(2)]
    async with trio.open_nursery() as nursery, rig.con.transaction():
        await tokens.take_turn(rig.con, key.public_hex)
        minting = Asked(nursery, lambda: ask(rig, token=first["token"]))
        await waiting(rig, 1)
        answer = await rig.request("DELETE", f"/api/tokens/{first['id']}", token=second["token"])
        assert answer.status == 204
    assert minting.answer is not None
    assert (minting.answer.status, minting.answer.json) == (401, {"error": "token_revoked"})
    assert await rig.con.fetchval(_ACTIVE) == 1
    made = [row["action"] for row in await rig.con.fetch(_ENTRIES)].count("token_created")
    assert made == 2


async def test_a_token_that_is_made_while_all_end_ends_too(rig: Rig) -> None:
    key = new_key()
    first = (await ask_signed(rig, key)).json
    async with trio.open_nursery() as nursery, rig.con.transaction():
        await tokens.take_turn(rig.con, key.public_hex)
        minting = Asked(nursery, lambda: ask(rig, token=first["token"]))
        await waiting(rig, 1)
        ending = Asked(nursery, lambda: rig.request("DELETE", "/api/tokens", token=first["token"]))
        await waiting(rig, 2, unless=lambda: ending.answer is not None)
    assert minting.answer is not None
    assert ending.answer is not None
    assert (minting.answer.status, ending.answer.status) == (201, 200)
    assert ending.answer.json == {"revoked_count": 2}
    assert await rig.con.fetchval(_ACTIVE) == 0
