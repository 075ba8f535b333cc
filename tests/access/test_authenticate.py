"""From AUTH events and tokens to callers, on a real database: every path and refusal, what is counted and written."""

from __future__ import annotations

import math
import secrets
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from relay import metrics
from relay.access.authenticate import LAST_USED_SECONDS, Authenticator, AuthRefusal, TokenProblem
from relay.access.identity import KNOWN_SCOPES, PROXY_SUBMIT, AuthMethod, Caller
from relay.asyncpg_trio.errors import PoolClosed
from relay.config import Settings
from relay.errors import ConfigError
from relay.nostr.event import Event, sign_event
from relay.nostr.keys import SecretKey
from relay.store import tokens, users
from tests.support import provider as support
from tests.support.provider import Provider, running_provider

URL = "ws://localhost:3000"
NOW = 1_700_000_000
CHALLENGE = "c" * 64
FAILED = "auth-required: verification failed"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def new_key() -> SecretKey:
    return SecretKey.from_bytes(secrets.token_bytes(32))


def proof(key: SecretKey, *extra: list[str], created_at: int = NOW, challenge: str = CHALLENGE) -> Event:
    tags = [["relay", URL], ["challenge", challenge], *extra]
    return sign_event(key, created_at=created_at, kind=22242, tags=tags, content="")


def new_authenticator(store: Any, clock: Clock | None = None, **changes: Any) -> Authenticator:
    return Authenticator(store.pool, Settings(**changes), URL, clock or Clock())


async def mint(store: Any, owner: SecretKey, **changes: Any) -> str:
    text = tokens.new_text()
    await users.ensure(store.con, [owner.public_hex])
    values = {"scopes": ["messages:read", "x:unknown"], "channel_ids": None, "expires_days": None, "name": "t"}
    await tokens.mint(store.con, text=text, owner=owner.public_hex, **(values | changes))
    return text


def attempts(method: str) -> float:
    return metrics.REGISTRY.get_sample_value("sprout_auth_attempts_total", {"method": method}) or 0


def failures(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("sprout_auth_failures_total", {"reason": reason}) or 0


async def test_a_key_alone(store: Any) -> None:
    key = new_key()
    before = attempts("nip42")
    found = await new_authenticator(store).websocket(proof(key), challenge=CHALLENGE, now=NOW)
    assert found == Caller(key.public_hex, KNOWN_SCOPES, AuthMethod.PUBKEY)
    assert not found.is_proxy
    assert attempts("nip42") == before + 1


async def test_a_key_is_known_from_its_first_login(store: Any) -> None:
    """Which costs one statement now and then, and no login where the store does not take it."""
    authenticator, key = new_authenticator(store), new_key()
    for _ in range(3):
        assert isinstance(await authenticator.websocket(proof(key), challenge=CHALLENGE, now=NOW), Caller)
    assert len(store.statements) == 1
    assert await store.con.fetchval("SELECT encode(pubkey, 'hex') FROM users") == key.public_hex
    refused = await authenticator.websocket(proof(new_key(), challenge="d" * 64), challenge=CHALLENGE, now=NOW)
    assert isinstance(refused, AuthRefusal)
    assert await store.con.fetchval("SELECT count(*) FROM users") == 1
    store.pool.abort()
    assert isinstance(await authenticator.websocket(proof(new_key()), challenge=CHALLENGE, now=NOW), Caller)


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        (sign_event(new_key(), created_at=NOW, kind=1, tags=[], content=""), "invalid signature"),
        (proof(new_key(), challenge="d" * 64), "challenge mismatch"),
        (
            sign_event(new_key(), created_at=NOW, kind=22242, tags=[["challenge", CHALLENGE]], content=""),
            "relay URL mismatch",
        ),
        (proof(new_key(), created_at=NOW - 61), "event expired"),
        (proof(new_key(), ["auth_token", "eyJhbGciOi.e30."]), "unknown kind of auth_token"),
        (proof(new_key(), ["auth_token", ""]), "unknown kind of auth_token"),
    ],
)
async def test_proofs_that_prove_nothing(store: Any, event: Event, cause: str) -> None:
    before = failures("nip42_invalid")
    found = await new_authenticator(store).websocket(event, challenge=CHALLENGE, now=NOW)
    assert found == AuthRefusal(FAILED, cause)
    assert failures("nip42_invalid") == before + 1
    assert store.statements == []


async def test_where_tokens_are_required(store: Any) -> None:
    authenticator = new_authenticator(store, require_auth_token=True)
    key = new_key()
    found = await authenticator.websocket(proof(key), challenge=CHALLENGE, now=NOW)
    assert found == AuthRefusal(FAILED, "token required")
    text = await mint(store, key)
    assert isinstance(
        await authenticator.websocket(proof(key, ["auth_token", text]), challenge=CHALLENGE, now=NOW), Caller
    )


async def test_where_an_allow_list_rules(store: Any) -> None:
    authenticator = new_authenticator(store, pubkey_allowlist=True)
    key = new_key()
    before = failures("allowlist_denied")
    found = await authenticator.websocket(proof(key), challenge=CHALLENGE, now=NOW)
    assert found == AuthRefusal(FAILED, "not in the allow-list")
    assert failures("allowlist_denied") == before + 1
    # A token is its own permission.
    text = await mint(store, key)
    assert isinstance(
        await authenticator.websocket(proof(key, ["auth_token", text]), challenge=CHALLENGE, now=NOW), Caller
    )
    await store.con.execute("INSERT INTO pubkey_allowlist (pubkey) VALUES ($1)", bytes.fromhex(key.public_hex))
    assert isinstance(await authenticator.websocket(proof(key), challenge=CHALLENGE, now=NOW), Caller)
    await store.con.execute("DELETE FROM pubkey_allowlist")
    assert isinstance(await authenticator.websocket(proof(key), challenge=CHALLENGE, now=NOW), AuthRefusal)


async def test_a_list_that_cannot_be_read_admits_nobody(store: Any) -> None:
    authenticator = new_authenticator(store, pubkey_allowlist=True)
    store.pool.abort()
    found = await authenticator.websocket(proof(new_key()), challenge=CHALLENGE, now=NOW)
    assert found == AuthRefusal(FAILED, "not in the allow-list")


async def test_a_token_on_the_socket(store: Any) -> None:
    key = new_key()
    channel = "11111111-2222-3333-4444-555555555555"
    text = await mint(store, key, channel_ids=[channel])
    before = attempts("api_token")
    event = proof(key, ["auth_token", text])
    found = await new_authenticator(store).websocket(event, challenge=CHALLENGE, now=NOW)
    assert isinstance(found, Caller)
    assert (found.pubkey, found.scopes, found.method) == (
        key.public_hex, {"messages:read", "x:unknown"}, AuthMethod.API_TOKEN,
    )  # fmt: skip
    assert found.channel_ids == {channel}
    assert found.may_enter(channel)
    assert not found.may_enter("99999999-2222-3333-4444-555555555555")
    assert found.token_id == await store.con.fetchval("SELECT id::text FROM api_tokens")
    assert attempts("api_token") == before + 1
    assert len(store.statements) == 1
    assert found.expires_at is None
    ends = await mint(store, key, expires_days=1)
    dated = await new_authenticator(store).websocket(proof(key, ["auth_token", ends]), challenge=CHALLENGE, now=NOW)
    assert isinstance(dated, Caller)
    (newest, *_) = await tokens.newest(store.con)
    assert newest.expires_at is not None
    assert dated.expires_at == math.ceil(newest.expires_at.timestamp())
    # A token does not replace the proof of the key.
    late = proof(key, ["auth_token", text], created_at=NOW - 61)
    refused = await new_authenticator(store).websocket(late, challenge=CHALLENGE, now=NOW)
    assert refused == AuthRefusal(FAILED, "event expired")


async def test_tokens_that_open_nothing_on_the_socket(store: Any) -> None:
    key, other = new_key(), new_key()
    authenticator = new_authenticator(store)

    async def ask(text: str) -> object:
        return await authenticator.websocket(proof(key, ["auth_token", text]), challenge=CHALLENGE, now=NOW)

    invalid = "auth-required: invalid token"
    before = failures("api_token_invalid")
    assert await ask(tokens.new_text()) == AuthRefusal(invalid, "invalid_token")
    assert await ask("sprout_short") == AuthRefusal(invalid, "invalid_token")
    assert await ask(await mint(store, other)) == AuthRefusal(FAILED, "token of another key")
    text = await mint(store, key, expires_days=1)
    await store.con.execute("UPDATE api_tokens SET expires_at = now() - interval '1 s'")
    assert await ask(text) == AuthRefusal(FAILED, "token_expired")
    await store.con.execute("UPDATE api_tokens SET revoked_at = now()")
    assert await ask(text) == AuthRefusal(invalid, "token_revoked")
    assert failures("api_token_invalid") == before + 5


async def test_a_store_that_fails_on_the_socket(store: Any) -> None:
    key = new_key()
    text = await mint(store, key)
    store.pool.abort()
    before = failures("nip42_internal")
    found = await new_authenticator(store).websocket(proof(key, ["auth_token", text]), challenge=CHALLENGE, now=NOW)
    assert found == AuthRefusal(FAILED, "store unavailable")
    assert failures("nip42_internal") == before + 1


async def test_bearer(store: Any) -> None:
    key = new_key()
    authenticator = new_authenticator(store)
    text = await mint(store, key, scopes=[PROXY_SUBMIT])
    found = await authenticator.bearer(text)
    assert isinstance(found, Caller)
    assert (found.pubkey, found.channel_ids, found.is_proxy) == (key.public_hex, None, True)
    assert len(store.statements) == 1
    # What cannot be a token costs nothing.
    for wrong in ("", "sprout_", text.upper(), text + "0", text[:-1] + "\n", text[:-1] + "é"):
        assert await authenticator.bearer(wrong) is TokenProblem.INVALID
    assert len(store.statements) == 1
    nothing = await authenticator.bearer(await mint(store, key, channel_ids=[]))
    assert isinstance(nothing, Caller)
    assert not nothing.may_enter("11111111-2222-3333-4444-555555555555")


async def test_bearer_lets_the_stores_errors_through(store: Any) -> None:
    text = await mint(store, new_key())
    store.pool.abort()
    with pytest.raises(PoolClosed):
        await new_authenticator(store).bearer(text)


async def test_last_used_is_written_now_and_then_in_the_same_statement(store: Any) -> None:
    clock = Clock()
    authenticator = new_authenticator(store, clock)
    text = await mint(store, new_key())

    async def last_used() -> Any:
        return await store.con.fetchval("SELECT last_used_at FROM api_tokens")

    assert await last_used() is None
    await authenticator.bearer(text)
    first = await last_used()
    assert first is not None
    clock.now = LAST_USED_SECONDS - 1
    await authenticator.bearer(text)
    assert await last_used() == first
    clock.now = LAST_USED_SECONDS
    await authenticator.bearer(text)
    assert await last_used() > first
    assert len(store.statements) == 3


async def test_a_dead_token_is_not_stamped(store: Any) -> None:
    text = await mint(store, new_key())
    await store.con.execute("UPDATE api_tokens SET revoked_at = now()")
    assert await new_authenticator(store).bearer(text) is TokenProblem.REVOKED
    await store.con.execute("UPDATE api_tokens SET revoked_at = NULL, expires_at = now() - interval '1 s'")
    assert await new_authenticator(store).bearer(text) is TokenProblem.EXPIRED
    assert await store.con.fetchval("SELECT last_used_at FROM api_tokens") is None


async def test_the_trusted_header(store: Any) -> None:
    clock = Clock()
    authenticator = new_authenticator(store, clock)
    key = new_key()
    for _ in range(3):
        found = await authenticator.trusted_header(key.public_hex)
        assert found == Caller(key.public_hex, KNOWN_SCOPES, AuthMethod.X_PUBKEY)
    assert len(store.statements) == 1
    assert await store.con.fetchval("SELECT encode(pubkey, 'hex') FROM users") == key.public_hex
    store.pool.abort()
    assert (await authenticator.trusted_header(new_key().public_hex)).method is AuthMethod.X_PUBKEY


# -- JSON Web Tokens ---------------------------------------------------------------------------------------------------


def times(**changes: Any) -> dict[str, Any]:
    return {"iat": NOW, "exp": NOW + 100, **changes}


async def ask_with(store: Any, provider: Provider, key: SecretKey, text: str, **changes: Any) -> Caller | AuthRefusal:
    authenticator = new_authenticator(store, **provider.settings(**changes))
    return await authenticator.websocket(proof(key, ["auth_token", text]), challenge=CHALLENGE, now=NOW)


async def test_a_json_web_token_on_the_socket(store: Any, nursery: trio.Nursery) -> None:
    """It is a token of its own right: neither the demand for tokens nor the allow-list stands in its way."""
    provider, key = await running_provider(nursery), new_key()
    text = provider.token(key.public_hex, **times(scp=["messages:read", "x:unknown"]))
    before = attempts("nip42")
    for changes in ({}, {"require_auth_token": True}, {"pubkey_allowlist": True}):
        found = await ask_with(store, provider, key, text, **changes)
        scopes = frozenset({"messages:read", "x:unknown"})
        assert found == Caller(key.public_hex, scopes, AuthMethod.OIDC, expires_at=NOW + 100)
    assert attempts("nip42") == before + 3
    assert await store.con.fetchval("SELECT encode(pubkey, 'hex') FROM users") == key.public_hex


async def test_json_web_tokens_that_open_nothing(store: Any, nursery: trio.Nursery) -> None:
    """Whatever is wrong, the client hears the same; the log and the audit know which check it was."""
    provider, key = await running_provider(nursery), new_key()
    stranger = support.new_key("one")
    good = provider.token(key.public_hex, **times())
    for text, cause in [
        (provider.token(new_key().public_hex, **times()), "jwt: of another key"),
        (provider.token(None, **times()), "jwt: names no key"),
        (provider.token(key.public_hex, **times(exp=NOW - 61)), "jwt: expired"),
        (provider.token(key.public_hex, **times(nbf=NOW + 61)), "jwt: not valid yet"),
        (provider.token(key.public_hex, **times(iss="https://other.example")), "jwt: another issuer"),
        (provider.token(key.public_hex, **times(aud="other")), "jwt: another audience"),
        (support.token(stranger, key.public_hex, **times()), "jwt: wrong signature"),
        (support.token(support.new_key("two"), key.public_hex, **times()), "jwt: unknown key"),
        ("eyJhbGciOiJub25lIn0." + good.split(".")[1] + ".", "jwt: algorithm not allowed"),
        ("eyJ", "jwt: malformed"),
    ]:
        before = failures("nip42_invalid")
        with capture_logs() as logs:
            assert await ask_with(store, provider, key, text) == AuthRefusal(FAILED, cause)
        assert failures("nip42_invalid") == before + 1
        assert not any(part and part in repr(logs) for part in text.split("."))
    late = proof(key, ["auth_token", good], created_at=NOW - 61)
    authenticator = new_authenticator(store, **provider.settings())
    asked = provider.requests
    assert await authenticator.websocket(late, challenge=CHALLENGE, now=NOW) == AuthRefusal(FAILED, "event expired")
    assert provider.requests == asked, "who has proved nothing makes us fetch nothing"


async def test_a_provider_that_is_away(store: Any, nursery: trio.Nursery) -> None:
    provider, key = await running_provider(nursery), new_key()
    await provider.stop()
    before = failures("nip42_internal")
    found = await ask_with(store, provider, key, provider.token(key.public_hex, **times()))
    assert found == AuthRefusal(FAILED, "jwt: the issuer's keys are unavailable")
    assert failures("nip42_internal") == before + 1


async def test_keys_over_a_line_that_anybody_can_write_on(store: Any) -> None:
    settings = {"okta_issuer": "i", "okta_audience": "a", "okta_jwks_uri": "http://id.example/keys"}
    with pytest.raises(ConfigError, match="OKTA_JWKS_URI"):
        new_authenticator(store, **settings)


async def test_a_json_web_token_over_http(store: Any, nursery: trio.Nursery) -> None:
    provider, key = await running_provider(nursery), new_key()
    authenticator = new_authenticator(store, **provider.settings())
    text = provider.token(key.public_hex, **times(scp=["users:read"]))
    expected = Caller(key.public_hex, frozenset({"users:read", "channels:read"}), AuthMethod.OIDC, expires_at=NOW + 100)
    for _ in range(2):
        assert await authenticator.json_web_token(text, now=NOW) == expected
    assert len(store.statements) == 1
    assert await store.con.fetchval("SELECT encode(pubkey, 'hex') FROM users") == key.public_hex
    assert await authenticator.json_web_token(text, now=NOW + 161) is None
    assert await authenticator.json_web_token(text[:-8] + "AAAAAAAA", now=NOW) is None
    assert await new_authenticator(store).json_web_token(text, now=NOW) is None
