"""JSON Web Tokens: what holds, and everything that must not, with real keys and a real server that gives them out."""

from __future__ import annotations

import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from typing import Any

import orjson
import pytest
import trio
from joserfc import jws

from relay.access.oidc import ALGORITHMS, LEEWAY_SECONDS, TEXT_BYTES_MAX, Grant, JwtProblem, TokenVerifier
from relay.config import Settings
from relay.errors import ConfigError
from relay.nostr import nip19
from relay.nostr.keys import SecretKey
from tests.support.provider import AUDIENCE, Provider, key_for, new_key, running_provider, token

PUBKEY = SecretKey.from_bytes(secrets.token_bytes(32)).public_hex


def verifier(provider: Provider, **changes: Any) -> TokenVerifier:
    found = TokenVerifier.from_settings(Settings(**provider.settings(**changes)))
    assert found is not None
    return found


async def verified(provider: Provider, text: str, *, now: float | None = None) -> Grant | JwtProblem:
    return await verifier(provider).verify(text, now=time.time() if now is None else now)


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else orjson.dumps(value)
    return urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
async def test_every_algorithm_of_the_list(nursery: trio.Nursery, algorithm: str) -> None:
    provider = await running_provider(nursery, key_for(algorithm))
    end = int(time.time()) + 100
    text = provider.token(PUBKEY, alg=algorithm, exp=end, scp=["messages:write", "x:unknown"])
    assert await verified(provider, text) == Grant(PUBKEY, frozenset({"messages:write", "x:unknown"}), end)
    assert isinstance(await verified(provider, text[:-8] + "AAAAAAAA"), JwtProblem)


async def test_none_and_shared_secrets(nursery: trio.Nursery) -> None:
    """The two classics: no signature at all, and the public key taken for a secret that both know."""
    key = new_key("one", "RSA", 2048)
    provider = await running_provider(nursery, key)
    good = provider.token(PUBKEY, alg="RS256")
    assert isinstance(await verified(provider, good), Grant)
    for name in ("none", "None", "nOnE", "", None, 5, ["RS256"]):
        header = {"alg": name, "kid": "one", "typ": "JWT"}
        for signature in ("", good.rpartition(".")[2]):
            forged = f"{part(header)}.{good.split('.')[1]}.{signature}"
            found = await verified(provider, forged)
            assert found in (JwtProblem.ALGORITHM, JwtProblem.MALFORMED), name
    for secret in (key.as_pem(private=False), key.as_der(private=False), orjson.dumps(key.as_dict(private=False))):
        # By hand: a library that knows the attack does not sign so.
        for name in ("HS256", "HS384", "HS512"):
            signed = f"{part({'alg': name, 'kid': 'one'})}.{good.split('.')[1]}"
            mac = hmac.digest(secret, signed.encode(), "sha" + name[2:])
            assert await verified(provider, f"{signed}.{part(mac)}") is JwtProblem.ALGORITHM
    # An algorithm of the list with a key of another kind.
    assert await verified(provider, token(new_key("one"), PUBKEY)) is JwtProblem.UNKNOWN_KEY
    assert await verified(provider, token(new_key("one", "RSA", 2048), PUBKEY, alg="PS256")) is JwtProblem.SIGNATURE


async def test_what_a_token_brings_along_is_not_looked_at(nursery: trio.Nursery) -> None:
    provider = await running_provider(nursery)
    mine = new_key("one")
    for header in (
        {"jwk": mine.as_dict(private=False)},
        {"jku": "https://evil.example/"},
        {"x5u": "https://e.example/"},
    ):
        assert await verified(provider, token(mine, PUBKEY, header=header)) is JwtProblem.SIGNATURE
    # A field that nobody knows is ignored, one that must be understood is not.
    assert isinstance(await verified(provider, provider.token(PUBKEY, header={"nonce": "x"})), Grant)
    kid = {"alg": "ES256", "kid": "one"}
    rest = provider.token(PUBKEY).partition(".")[2]
    for extra in ({"crit": ["exp"]}, {"crit": []}, {"b64": False, "crit": ["b64"]}, {"b64": False}, {"kid": 1}):
        assert await verified(provider, f"{part(kid | extra)}.{rest}") is JwtProblem.MALFORMED


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"iss": "https://id.example/oauth2/other"}, JwtProblem.ISSUER),
        ({"iss": "https://id.example/oauth2/default/"}, JwtProblem.ISSUER),
        ({"iss": ["https://id.example/oauth2/default"]}, JwtProblem.ISSUER),
        ({"iss": None}, JwtProblem.ISSUER),
        ({"aud": "api://other"}, JwtProblem.AUDIENCE),
        ({"aud": ["api://other", "api://third"]}, JwtProblem.AUDIENCE),
        ({"aud": []}, JwtProblem.AUDIENCE),
        ({"aud": {"api://relay": 1}}, JwtProblem.AUDIENCE),
        ({"aud": None}, JwtProblem.AUDIENCE),
        ({"exp": None}, JwtProblem.CLAIMS),
        ({"exp": "4102444800"}, JwtProblem.CLAIMS),
        ({"exp": True}, JwtProblem.CLAIMS),
        ({"exp": 0}, JwtProblem.EXPIRED),
        ({"nbf": "now"}, JwtProblem.NOT_YET),
        ({"nostr_pubkey": None}, JwtProblem.PUBKEY),
        ({"nostr_pubkey": ""}, JwtProblem.PUBKEY),
        ({"nostr_pubkey": [PUBKEY]}, JwtProblem.PUBKEY),
        ({"nostr_pubkey": "00" * 32}, JwtProblem.PUBKEY),
        ({"nostr_pubkey": PUBKEY[:-1]}, JwtProblem.PUBKEY),
    ],
)
async def test_claims_that_do_not_hold(nursery: trio.Nursery, changes: dict[str, Any], problem: JwtProblem) -> None:
    provider = await running_provider(nursery)
    assert await verified(provider, provider.token(PUBKEY, **changes)) is problem


async def test_spellings_that_hold(nursery: trio.Nursery) -> None:
    provider = await running_provider(nursery)
    for named in (PUBKEY, PUBKEY.upper(), nip19.encode_npub(PUBKEY)):
        found = await verified(provider, provider.token(named, aud=["api://other", AUDIENCE]))
        assert isinstance(found, Grant)
        assert found.pubkey == PUBKEY
    elsewhere = verifier(provider, okta_pubkey_claim="https://example.com/npub")
    text = provider.token(None, **{"https://example.com/npub": PUBKEY})
    assert isinstance(await elsewhere.verify(text, now=time.time()), Grant)


async def test_times_and_their_leeway(nursery: trio.Nursery) -> None:
    provider = await running_provider(nursery)
    now = 1_700_000_000

    async def ask(**changes: Any) -> Grant | JwtProblem:
        return await verified(provider, provider.token(PUBKEY, **({"iat": now, "exp": now + 100} | changes)), now=now)

    assert await ask(exp=now - LEEWAY_SECONDS) is JwtProblem.EXPIRED
    late = await ask(exp=now - LEEWAY_SECONDS + 1)
    assert isinstance(late, Grant)
    assert late.expires_at == now + 1  # not in the past: the login would be cut off at once, and come back, and so on
    for name in ("nbf", "iat"):
        assert await ask(**{name: now + LEEWAY_SECONDS + 1}) is JwtProblem.NOT_YET
        assert isinstance(await ask(**{name: now + LEEWAY_SECONDS}), Grant)
    assert isinstance(await ask(exp=now + 50.75), Grant)
    forever = await ask(exp=1e300)
    assert isinstance(forever, Grant)
    assert forever.expires_at == 1 << 53


@pytest.mark.parametrize(
    ("said", "scopes"),
    [
        ({"scp": ["messages:read", "files:write"], "scope": "admin:users"}, {"messages:read", "files:write"}),
        ({"scp": []}, set()),
        ({"scp": ["users:read", 1, None, ["x"]]}, {"users:read"}),
        ({"scope": "messages:read  channels:read"}, {"messages:read", "channels:read"}),
        ({"scp": "admin:users", "scope": "users:read"}, {"users:read"}),
        ({"scope": ["admin:users"]}, {"messages:read"}),
        ({}, {"messages:read"}),
    ],
)
async def test_scopes(nursery: trio.Nursery, said: dict[str, Any], scopes: set[str]) -> None:
    provider = await running_provider(nursery)
    found = await verified(provider, provider.token(PUBKEY, **said))
    assert isinstance(found, Grant)
    assert found.scopes == scopes


async def test_what_is_no_token_asks_nobody(nursery: trio.Nursery) -> None:
    provider = await running_provider(nursery)
    good = provider.token(PUBKEY)
    header, payload, signature = good.split(".")
    deep = part(b"[" * 1100)
    for text in (
        "eyJ", "eyJ.", "eyJ..", "..", good + ".x", f"{header}.{payload}", "eyJhbGciOi." + payload + ".x", "é" + good,
        f"{part([1])}.{payload}.{signature}", f"{part(b'{')}.{payload}.{signature}", f"{deep}.{payload}.{signature}",
        f"{part({'alg': 'ES256', 'pad': 'x' * 4096})}.{payload}.{signature}", good + "A" * TEXT_BYTES_MAX,
    ):  # fmt: skip
        assert await verified(provider, text) is JwtProblem.MALFORMED
    assert provider.requests == 0


async def test_hostile_insides(nursery: trio.Nursery) -> None:
    """Behind a header that is in order: signatures and payloads of every shape end in a refusal, never in an error."""
    provider = await running_provider(nursery)
    asked = verifier(provider)
    header, payload, signature = provider.token(PUBKEY).split(".")
    for middle in (payload, "", "!!!!", part(b"[" * 9000), part(b"\xff"), part(b"[]"), part({"exp": 1})):
        for end in ("", "A", "!!!!", signature[:-4], signature + "AAAA", part(b"\0" * 64), part(b"\xff" * 64)):
            assert isinstance(await asked.verify(f"{header}.{middle}.{end}", now=time.time()), JwtProblem)


@pytest.mark.parametrize("payload", [b"[]", b"1", b"", b"{", b'{"exp":NaN}', b"[" * 2000, b"\xff"])
async def test_a_signed_payload_that_is_no_object(nursery: trio.Nursery, payload: bytes) -> None:
    provider = await running_provider(nursery)
    text = jws.serialize_compact({"alg": "ES256", "kid": "one"}, payload, provider.keys[0])
    assert await verified(provider, text) is JwtProblem.CLAIMS


@pytest.mark.parametrize("uri", ["http://id.example/keys", "ftp://127.0.0.1/keys", "file:///keys", "keys", "http:///"])
def test_keys_come_over_a_line_that_can_be_trusted(uri: str) -> None:
    with pytest.raises(ConfigError, match="OKTA_JWKS_URI"):
        TokenVerifier.from_settings(Settings(okta_issuer="i", okta_audience="a", okta_jwks_uri=uri))


def test_without_an_issuer_there_is_nothing_to_verify() -> None:
    assert TokenVerifier.from_settings(Settings()) is None
