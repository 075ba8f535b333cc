"""Requests that are signed themselves (NIP-98), on a real database: for tokens, and for the routes that take nothing
else. What an event has to be is the parser's test."""

from __future__ import annotations

import time
from base64 import b64encode
from hashlib import sha256
from itertools import count
from typing import Any

import pytest
import trio

from relay.access.authenticate import (
    NEEDS_TOKEN,
    NIP98_FAILED,
    NOT_LISTED,
    PAYLOAD_REQUIRED,
    USED_BEFORE,
    Authenticator,
    AuthRefusal,
)
from relay.access.identity import KNOWN_SCOPES, AuthMethod, Caller
from relay.asyncpg_trio.errors import PoolClosed
from relay.config import Settings
from relay.nostr.event import sign_event
from relay.nostr.keys import SecretKey

NOW = 1_700_000_000.0
BODY = b'{"name":"n"}'
KEY = SecretKey.from_hex("11" * 32)
_numbers = count()


def header(path: str = "/api/tokens", body: bytes | None = BODY, *, at: float = NOW, method: str = "POST") -> str:
    tags = [["u", f"https://team.example{path}"], ["method", method], ["nonce", str(next(_numbers))]]
    if body is not None:
        tags.append(["payload", sha256(body).hexdigest()])
    return "Nostr " + b64encode(sign_event(KEY, created_at=int(at), kind=27235, tags=tags, content="").json).decode()


def authenticator(store: Any, **changes: Any) -> Authenticator:
    return Authenticator(store.pool, Settings(**changes), "wss://team.example")


async def signed(found: Authenticator, value: str, now: float = NOW) -> Caller | AuthRefusal:
    return await found.signed_request(value, path="/query", method="POST", body=BODY, now=now)


async def test_a_request_for_a_token_brings_no_scopes(store: Any) -> None:
    subject = authenticator(store)
    for _ in range(2):
        found = await subject.mint_request(header(), BODY, now=NOW)
        assert found == Caller(KEY.public_hex, frozenset(), AuthMethod.NIP98)
    # The row of the user, once.
    assert len(store.statements) == 1
    assert await store.con.fetchval("SELECT encode(pubkey, 'hex') FROM users") == KEY.public_hex


async def test_any_other_request_brings_all(store: Any) -> None:
    found = await signed(authenticator(store), header("/query", None))
    assert found == Caller(KEY.public_hex, KNOWN_SCOPES, AuthMethod.NIP98)
    assert not found.is_proxy


async def test_a_signature_is_for_one_route(store: Any) -> None:
    subject = authenticator(store)
    assert await signed(subject, header()) == AuthRefusal(NIP98_FAILED, "URL mismatch")
    found = await subject.mint_request(header("/query"), BODY, now=NOW)
    assert found == AuthRefusal(NIP98_FAILED, "URL mismatch")
    assert store.statements == []


async def test_only_a_token_needs_the_hash_of_the_body(store: Any) -> None:
    found = await authenticator(store).mint_request(header(body=None), BODY, now=NOW)
    assert found == AuthRefusal(PAYLOAD_REQUIRED, "payload tag required")


async def test_where_tokens_are_demanded_a_signature_only_makes_one(store: Any) -> None:
    subject = authenticator(store, require_auth_token=True)
    assert await signed(subject, header("/query")) == AuthRefusal(NIP98_FAILED, NEEDS_TOKEN)
    assert isinstance(await subject.mint_request(header(), BODY, now=NOW), Caller)


async def test_the_allow_list_is_asked_every_time(store: Any) -> None:
    subject = authenticator(store, pubkey_allowlist=True)
    refused = AuthRefusal(NIP98_FAILED, NOT_LISTED)
    value = header("/query")
    assert await signed(subject, value) == refused
    assert await subject.mint_request(header(), BODY, now=NOW) == refused
    assert await store.con.fetchval("SELECT count(*) FROM users") == 0
    await store.con.execute("INSERT INTO pubkey_allowlist (pubkey) VALUES ($1)", bytes.fromhex(KEY.public_hex))
    # What was refused was not used up.
    assert isinstance(await signed(subject, value), Caller)
    await store.con.execute("DELETE FROM pubkey_allowlist")
    assert await signed(subject, header("/query")) == refused


async def test_a_signature_is_good_once_for_as_long_as_it_is_good(store: Any) -> None:
    subject = authenticator(store)
    value = header("/query", at=NOW + 60)
    assert isinstance(await signed(subject, value, NOW), Caller)
    for later in (0, 1, 119, 120):
        assert await signed(subject, value, NOW + later) == AuthRefusal(NIP98_FAILED, USED_BEFORE)
    assert await signed(subject, value, NOW + 121) == AuthRefusal(
        NIP98_FAILED, "timestamp outside of the allowed window"
    )


async def test_of_two_at_once_one_is_the_first(store: Any) -> None:
    subject = authenticator(store, pubkey_allowlist=True)
    await store.con.execute("INSERT INTO pubkey_allowlist (pubkey) VALUES ($1)", bytes.fromhex(KEY.public_hex))
    value, found = header("/query"), []

    async def use() -> None:
        found.append(await signed(subject, value))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(use)
    assert [type(each) for each in found].count(Caller) == 1


async def test_a_store_that_fails_is_nobodys_fault(store: Any) -> None:
    subject = authenticator(store, pubkey_allowlist=True)
    store.pool.abort()
    with pytest.raises(PoolClosed):
        await subject.mint_request(header(), BODY, now=NOW)


async def test_turns_to_mint_are_counted_by_the_setting(store: Any) -> None:
    subject = Authenticator(store.pool, Settings(mint_rate_limit=2), "wss://team.example", clock=time.monotonic)
    assert [subject.mints.take("a") for _ in range(3)] == [True, True, False]
    assert 3590 < subject.mints.seconds_left("a") <= 3600
