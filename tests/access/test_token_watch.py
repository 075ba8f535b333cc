"""Tokens that end under open connections: what the watch hears, asks and does, on a real database."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from relay.access.identity import AuthMethod, Caller
from relay.access.token_watch import TokenWatch, Why
from relay.asyncpg_trio import Connection, connect
from relay.errors import StoreGone
from relay.store import tokens, users

PUBKEY = secrets.token_hex(32)
SECONDS = 10
FAR = 3600.0
"""A period that no test lives to see: what happens, happens for another reason."""


@dataclass(eq=False)
class Holder:
    caller: Caller | None


@dataclass
class Watched:
    """A watch, what it ended, and whom it looks after."""

    dsn: str
    con: Connection
    holders: list[Holder] = field(default_factory=list)
    ended: list[tuple[Holder, Why, float]] = field(default_factory=list)
    watch: TokenWatch[Holder] = field(init=False)
    own: list[Connection] = field(default_factory=list)
    refuse: bool = False

    async def connect(self) -> Connection:
        if self.refuse:
            raise StoreGone("away")
        self.own.append(await connect(self.dsn))
        return self.own[-1]

    def start_watch(self, **options: Any) -> None:
        self.watch = TokenWatch(
            self.connect, token_ids=self.token_ids, holders=lambda: self.holders, end=self.end, **options
        )

    def token_ids(self) -> set[str]:
        return {each.caller.token_id for each in self.holders if each.caller and each.caller.token_id}

    def end(self, identity: str | Holder, why: Why) -> None:
        for holder in list(self.holders):
            if holder is identity or (holder.caller is not None and holder.caller.token_id == identity):
                self.ended.append((holder, why, time.time()))
                self.holders.remove(holder)

    def log_in(self, token_id: str | None = None, expires_at: int | None = None) -> Holder:
        method = AuthMethod.OIDC if token_id is None else AuthMethod.API_TOKEN
        holder = Holder(Caller(PUBKEY, frozenset(), method, token_id=token_id, expires_at=expires_at))
        self.holders.append(holder)
        assert holder.caller is not None
        self.watch.logged_in(holder.caller)
        return holder

    async def mint(self, **changes: Any) -> str:
        values = {"scopes": ["messages:read"], "channel_ids": None, "expires_days": None, "name": "t"} | changes
        return (await tokens.mint(self.con, text=tokens.new_text(), owner=PUBKEY, **values)).id

    async def listening(self) -> None:
        """Until the watch waits for what comes."""
        await self.until(lambda: bool(self.own) and self.own[-1].is_busy and self.own[-1]._listening)
        await trio.testing.wait_all_tasks_blocked(0.02)

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(SECONDS):
            while not condition():
                await trio.sleep(0.01)

    def whys(self) -> list[tuple[Holder, Why]]:
        return [(holder, why) for holder, why, _ in self.ended]


@asynccontextmanager
async def watching(dsn: str, *, check_seconds: float = FAR) -> AsyncIterator[Watched]:
    con = await connect(dsn)
    await users.ensure(con, [PUBKEY])
    watched = Watched(dsn, con)
    watched.start_watch(check_seconds=check_seconds)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.watch.run)
            nursery.start_soon(watched.watch.run_expiries)
            await watched.listening()
            yield watched
            nursery.cancel_scope.cancel()
    finally:
        con.terminate()
    assert all(each.is_closed() for each in watched.own)


@pytest.fixture
async def watched(migrated_dsn: str) -> AsyncIterator[Watched]:
    async with watching(migrated_dsn) as found:
        yield found


async def test_a_revocation_elsewhere_is_noticed_at_once(watched: Watched) -> None:
    token, other = await watched.mint(), await watched.mint()
    first, second, bystander = watched.log_in(token), watched.log_in(token), watched.log_in(other)
    watched.log_in()
    await watched.listening()
    began = time.time()
    await tokens.revoke(watched.con, token)
    await watched.until(lambda: len(watched.ended) == 2)
    assert {holder for holder, _ in watched.whys()} == {first, second}
    assert {why for _, why in watched.whys()} == {Why.REVOKED}
    assert watched.ended[-1][2] - began < 1
    assert bystander in watched.holders


async def test_many_revocations_of_one_transaction(watched: Watched) -> None:
    held = [watched.log_in(await watched.mint()) for _ in range(50)]
    await watched.listening()
    await watched.con.execute("UPDATE api_tokens SET revoked_at = now()")
    await watched.until(lambda: len(watched.ended) == 50)
    assert {holder for holder, _ in watched.whys()} == set(held)


async def test_a_revocation_that_is_rolled_back_ends_nobody(watched: Watched) -> None:
    holder = watched.log_in(await watched.mint())
    await watched.listening()
    transaction = watched.con.transaction()
    await transaction.__aenter__()
    await watched.con.execute("UPDATE api_tokens SET revoked_at = now()")
    await transaction.__aexit__(ValueError, ValueError(), None)
    # A notice that is nobody's, so that the watch has gone past whatever the rollback could have sent.
    await watched.con.execute("NOTIFY relay_token_ended, 'no uuid at all'")
    await watched.con.execute("UPDATE api_tokens SET last_used_at = now()")
    await watched.listening()
    assert watched.holders == [holder]


async def test_a_token_that_was_revoked_during_its_login(watched: Watched) -> None:
    """Looked up, then revoked, and only then among the live ones: its notice found nobody."""
    token = await watched.mint()
    await tokens.revoke(watched.con, token)
    await watched.listening()
    holder = watched.log_in(token)
    await watched.until(lambda: bool(watched.ended))
    assert watched.whys() == [(holder, Why.REVOKED)]


async def test_a_token_that_is_not_there_any_more(watched: Watched) -> None:
    holder = watched.log_in("00000000-0000-4000-8000-000000000000")
    await watched.until(lambda: bool(watched.ended))
    assert watched.whys() == [(holder, Why.REVOKED)]


async def test_without_notices_the_period_finds_it(migrated_dsn: str) -> None:
    async with watching(migrated_dsn, check_seconds=0.3) as watched:
        token = await watched.mint()
        holder = watched.log_in(token)
        await watched.listening()
        await watched.con.execute("ALTER TABLE api_tokens DISABLE TRIGGER token_ended")
        await tokens.revoke(watched.con, token)
        await watched.until(lambda: bool(watched.ended))
        assert watched.whys() == [(holder, Why.REVOKED)]


async def test_what_happened_while_the_connection_was_away(watched: Watched) -> None:
    token, other = await watched.mint(), await watched.mint()
    holder, bystander = watched.log_in(token), watched.log_in(other)
    await watched.listening()
    watched.refuse = True
    pid = watched.own[-1].backend_pid
    await watched.con.execute("SELECT pg_terminate_backend($1)", pid)
    await watched.until(lambda: watched.own[-1].is_closed())
    await tokens.revoke(watched.con, token)
    assert not watched.ended
    watched.refuse = False
    await watched.until(lambda: bool(watched.ended))
    assert watched.whys() == [(holder, Why.REVOKED)]
    assert watched.holders == [bystander]
    # And it listens again.
    await watched.listening()
    await tokens.revoke(watched.con, other)
    await watched.until(lambda: len(watched.ended) == 2)


async def test_a_table_that_is_away_is_asked_again(watched: Watched) -> None:
    holder = watched.log_in(await watched.mint())
    await watched.listening()
    await watched.con.execute("ALTER TABLE api_tokens RENAME TO away")
    await watched.con.execute("UPDATE away SET revoked_at = now()")
    await watched.until(lambda: len(watched.own) > 1)
    assert not watched.ended
    await watched.con.execute("ALTER TABLE away RENAME TO api_tokens")
    await watched.until(lambda: bool(watched.ended))
    assert watched.whys() == [(holder, Why.REVOKED)]


async def test_an_expiry_without_any_token(watched: Watched) -> None:
    """What a JSON Web Token says: nobody but the clock knows."""
    end = int(time.time()) + 2
    late, holder = watched.log_in(expires_at=end + 600), watched.log_in(expires_at=end)
    await watched.until(lambda: bool(watched.ended))
    assert watched.whys() == [(holder, Why.EXPIRED)]
    assert 0 <= watched.ended[0][2] - end < 1
    assert watched.holders == [late]


async def test_a_token_expires(watched: Watched) -> None:
    token = await watched.mint(expires_days=1)
    await watched.con.execute("UPDATE api_tokens SET expires_at = now() + interval '1.5 s'")
    end = await watched.con.fetchval("SELECT extract(epoch FROM expires_at)::float8 FROM api_tokens")
    holder = watched.log_in(token, int(end) + 1)
    await watched.until(lambda: bool(watched.ended))
    assert watched.whys() == [(holder, Why.EXPIRED)]
    assert 0 <= watched.ended[0][2] - end < 1


async def test_an_end_that_is_moved(watched: Watched) -> None:
    token = await watched.mint(expires_days=1)
    holder = watched.log_in(token, int(time.time()) + 86_400)
    await watched.listening()
    await watched.con.execute("UPDATE api_tokens SET expires_at = now() + interval '1 s'")
    await watched.until(lambda: watched.watch._ends[token] < time.time() + 2)
    # And away again before it has come.
    await watched.con.execute("UPDATE api_tokens SET expires_at = NULL")
    await watched.until(lambda: watched.watch._ends[token] == float("inf"))
    await trio.sleep(1.3)
    assert watched.holders == [holder]
    await watched.con.execute("UPDATE api_tokens SET expires_at = now() - interval '1 s'")
    await watched.until(lambda: bool(watched.ended))
    assert watched.whys() == [(holder, Why.EXPIRED)]


async def test_the_clock_goes_on_while_the_database_is_away(watched: Watched) -> None:
    token = await watched.mint(expires_days=1)
    await watched.con.execute("UPDATE api_tokens SET expires_at = now() + interval '1 s'")
    holder = watched.log_in(token, int(time.time()) + 600)
    await watched.until(lambda: watched.watch._ends[token] < time.time() + 2)
    watched.refuse = True
    await watched.con.execute("SELECT pg_terminate_backend($1)", watched.own[-1].backend_pid)
    await watched.until(lambda: bool(watched.ended))
    assert watched.whys() == [(holder, Why.EXPIRED)]


async def test_a_clock_that_is_set(migrated_dsn: str) -> None:
    """It slept for a time that is not what it was; it looks again after the period at the latest."""
    shift = 0.0
    con = await connect(migrated_dsn)
    watched = Watched(migrated_dsn, con)
    watched.start_watch(check_seconds=0.3, now=lambda: time.time() + shift)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.watch.run_expiries)
        holder = watched.log_in(expires_at=int(time.time()) + 1000)
        await trio.testing.wait_all_tasks_blocked()
        shift = 1001
        await watched.until(lambda: bool(watched.ended))
        nursery.cancel_scope.cancel()
    assert watched.whys() == [(holder, Why.EXPIRED)]
    con.terminate()


async def test_a_thousand_that_end_together(watched: Watched) -> None:
    end = int(time.time()) + 1
    for _ in range(1000):
        watched.log_in(expires_at=end)
    await watched.until(lambda: len(watched.ended) == 1000)
    assert max(when for _, _, when in watched.ended) - end < 1


async def test_what_is_remembered_of_tokens_is_forgotten(migrated_dsn: str) -> None:
    async with watching(migrated_dsn, check_seconds=0.2) as watched:
        token = await watched.mint()
        holder = watched.log_in(token)
        await watched.until(lambda: token in watched.watch._ends)
        watched.holders.remove(holder)
        await watched.until(lambda: not watched.watch._ends)
