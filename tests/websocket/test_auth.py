"""AUTH, and what each verb hears before, after and in spite of it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import trio

from relay.store import tokens
from tests.support.core import ALICE, BOB, CAROL
from tests.support.provider import running_provider
from tests.support.relay import RelayUnderTest, auth_event, fields, message, serving

CHANNEL = "00000001-0000-4000-8000-00000000abcd"


async def audited(relay: RelayUnderTest, action: str) -> list[dict[str, Any]]:
    """Entries of the action, wherever they are on their way."""
    rows = await relay.core.pool.fetch(
        "SELECT actor, metadata FROM audit_log WHERE action = $1 UNION ALL"
        " SELECT actor, metadata FROM audit_outbox WHERE action = $1",
        action,
    )
    return [{"actor": row["actor"], **orjson.loads(row["metadata"])} for row in rows]


async def test_the_challenge_comes_first_and_is_fresh(relay: RelayUnderTest) -> None:
    first, second = await relay.connect(), await relay.connect()
    assert len(bytes.fromhex(first.challenge)) == 32
    assert first.challenge != second.challenge


@pytest.mark.parametrize("failed", [False, True])
async def test_unauthenticated(relay: RelayUnderTest, failed: bool) -> None:
    client = await relay.connect()
    if failed:
        refused = await client.log_in(ALICE, relay="ws://elsewhere")
        assert refused[2:] == [False, "auth-required: verification failed"]
    event = message(ALICE, CHANNEL, "x")
    assert (await client.publish(event))[2:] == [False, "auth-required: not authenticated"]
    await client.send("REQ", "s", {"kinds": [1]})
    assert await client.receive() == ["NOTICE", "auth-required: authenticate before subscribing"]
    assert await client.receive() == ["CLOSED", "s", "auth-required: not authenticated"]
    await client.send("CLOSE", "s")
    assert await client.receive() == ["CLOSED", "s", ""]
    again = await client.log_in(ALICE)
    if failed:
        assert again[2:] == [False, "auth-required: authentication already failed"]
    else:
        assert again[2:] == [True, ""]


async def test_authenticated(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    assert (await client.log_in(ALICE))[2:] == [False, "auth-required: already authenticated"]
    await client.send("CLOSE", "unknown")
    assert await client.receive() == ["CLOSED", "unknown", ""]
    assert await client.request("s", {"kinds": [1]}) == []


async def test_a_login_is_audited_before_it_is_answered(relay: RelayUnderTest) -> None:
    await relay.connect(ALICE)
    (entry,) = await audited(relay, "auth_success")
    assert entry == {"actor": ALICE.pubkey, "door": "websocket", "method": "pubkey", "peer": "127.0.0.1"}


async def test_every_path_is_audited_with_its_method(migrated_dsn: str, nursery: trio.Nursery) -> None:
    """What opened the door, and never the text that did."""
    provider = await running_provider(nursery)
    async with serving(migrated_dsn, pubkey_allowlist=True, **provider.settings()) as relay:
        pool, text = relay.core.pool, "sprout_" + "ef" * 32
        for person in (ALICE, BOB):
            await pool.execute("INSERT INTO users (pubkey) VALUES ($1)", bytes.fromhex(person.pubkey))
        await pool.execute("INSERT INTO pubkey_allowlist (pubkey) VALUES ($1)", bytes.fromhex(ALICE.pubkey))
        token_id = await pool.fetchval(
            "INSERT INTO api_tokens (token_hash, owner_pubkey, name, scopes) VALUES ($1, $2, 't', '{}')"
            " RETURNING id::text",
            tokens.digest(text),
            bytes.fromhex(BOB.pubkey),
        )
        web_token, stolen = provider.token(CAROL.pubkey), provider.token(ALICE.pubkey)
        await relay.connect(ALICE)
        for person, shown, accepted in [
            (BOB, text, True), (CAROL, web_token, True),
            (CAROL, text, False), (CAROL, stolen, False), (CAROL, None, False), (CAROL, "other", False),
        ]:  # fmt: skip
            tags = [] if shown is None else [["auth_token", shown]]
            answer = await (await relay.connect()).log_in(person, tags=tags)
            assert answer[2:] == [accepted, "" if accepted else "auth-required: verification failed"]
        relay.core.ingest.finish()
        with trio.fail_after(5):
            while len(failures := await audited(relay, "auth_failure")) < 4:
                await trio.sleep(0.01)
        assert {(each["actor"], each["reason"], each["count"]) for each in failures} == {
            (CAROL.pubkey, reason, 1)
            for reason in (
                "token of another key", "jwt: of another key", "not in the allow-list", "unknown kind of auth_token",
            )
        }  # fmt: skip
        successes = await audited(relay, "auth_success")
        assert [(each["actor"], each["method"], each.get("token_id")) for each in successes] == [
            (ALICE.pubkey, "pubkey", None), (BOB.pubkey, "api_token", token_id), (CAROL.pubkey, "oidc", None),
        ]  # fmt: skip
        assert not any(secret in str(failures + successes) for secret in (text, web_token, stolen))
    nursery.cancel_scope.cancel()


async def test_a_login_that_cannot_be_audited_did_not_happen(relay: RelayUnderTest) -> None:
    client = await relay.connect()
    await relay.core.pool.execute("ALTER TABLE audit_outbox RENAME TO away")
    answer = await client.log_in(ALICE)
    assert answer[2:] == [False, "error: internal server error"]
    assert await client.closed() == (1011, "internal error")
    await relay.core.pool.execute("ALTER TABLE away RENAME TO audit_outbox")
    assert relay.core.hub.statistics().connections == 0


async def test_failures_are_counted_for_the_audit(relay: RelayUnderTest) -> None:
    """By address where nothing was proved: anybody can write anybody's key into an event. Else by key."""
    for _ in range(3):
        await (await relay.connect()).log_in(ALICE, relay="ws://elsewhere")
    await (await relay.connect()).log_in(BOB, tags=[["auth_token", "sprout_" + "00" * 32]])
    relay.core.ingest.finish()
    with trio.fail_after(5):
        while len(found := await audited(relay, "auth_failure")) < 2:
            await trio.sleep(0.01)
    by_address, by_key = sorted(found, key=lambda entry: entry["actor"] or "")
    assert (by_address["actor"], by_address["from"], by_address["count"]) == (None, "127.0.0.1", 3)
    assert (by_key["actor"], by_key["reason"]) == (BOB.pubkey, "invalid_token")


async def test_a_token_restricts_what_is_read(relay: RelayUnderTest) -> None:
    inside, outside = await relay.channel(ALICE), await relay.channel(ALICE)
    writer = await relay.connect(ALICE)
    events = {each: message(ALICE, each, "x") for each in (inside, outside)}
    for event in events.values():
        await writer.publish(event)
    text = "sprout_" + "ab" * 32
    await relay.core.pool.execute(
        "INSERT INTO api_tokens (token_hash, owner_pubkey, name, scopes, channel_ids) VALUES ($1, $2, 't', $3, $4)",
        tokens.digest(text),
        bytes.fromhex(ALICE.pubkey),
        ["messages:read"],
        [inside],
    )
    reader = await relay.connect()
    assert (await reader.log_in(ALICE, tags=[["auth_token", text]]))[2:] == [True, ""]
    assert [each["id"] for each in await reader.request("all", {"kinds": [9]})] == [events[inside].id]
    await reader.send("REQ", "s", {"#h": [outside]})
    assert await reader.receive() == ["CLOSED", "s", "restricted: not a channel member"]


async def test_without_the_scope_nothing_is_read(relay: RelayUnderTest) -> None:
    text = "sprout_" + "cd" * 32
    await relay.core.pool.execute("INSERT INTO users (pubkey) VALUES ($1)", bytes.fromhex(BOB.pubkey))
    await relay.core.pool.execute(
        "INSERT INTO api_tokens (token_hash, owner_pubkey, name, scopes) VALUES ($1, $2, 't', '{}')",
        tokens.digest(text),
        bytes.fromhex(BOB.pubkey),
    )
    client = await relay.connect()
    assert (await client.log_in(BOB, tags=[["auth_token", text]]))[2:] == [True, ""]
    await client.send("REQ", "s", {"kinds": [1]})
    assert await client.receive() == ["NOTICE", "restricted: insufficient scope"]
    assert await client.receive() == ["CLOSED", "s", "restricted: insufficient scope"]


@pytest.mark.parametrize("failed", [False, True])
async def test_who_does_not_log_in_is_closed(migrated_dsn: str, failed: bool) -> None:
    async with serving(migrated_dsn, auth_seconds=0.3) as relay:
        client, member = await relay.connect(), await relay.connect(ALICE)
        if failed:
            await client.send("AUTH", fields(auth_event(BOB, "another challenge")))
        assert await client.closed() == (1008, "authentication timeout")
        assert await member.request("s", {"kinds": [1]}) == []
        assert relay.endpoint.connections == 1
