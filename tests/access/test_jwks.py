"""The keys of an identity provider: when they are fetched, when not, and what happens when they cannot be.

A real server on loopback; only the clock is ours.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import pytest
import trio
import trio.testing
import trustme
from joserfc.errors import SecurityWarning
from structlog.testing import capture_logs

from relay.access import jwks
from relay.access.jwks import DOCUMENT_BYTES_MAX, KEYS_MAX, KeyCache, KeysUnavailable
from tests.support.provider import PrivateKey, Provider, new_key, public, reply, running_provider

ONE, TWO, THREE = new_key("one"), new_key("two"), new_key("three")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    provider: Provider
    clock: Clock
    cache: KeyCache

    async def find(self, kid: str | None, algorithm: str = "ES256") -> object:
        return await self.cache.find(kid, algorithm)

    async def knows(self, *keys: PrivateKey) -> bool:
        return all([(await self.cache.find(key.kid, "ES256")).thumbprint() == key.thumbprint() for key in keys])  # type: ignore[union-attr]


@pytest.fixture
async def rig(nursery: trio.Nursery) -> Rig:
    provider = await running_provider(nursery, ONE)
    clock = Clock()
    return Rig(provider, clock, KeyCache(provider.uri, seconds=300, clock=clock))


async def test_one_fetch_serves_all(rig: Rig) -> None:
    assert await rig.knows(ONE)
    rig.clock.now += 299
    assert await rig.knows(ONE)
    assert rig.provider.requests == 1
    rig.clock.now += 1
    assert await rig.knows(ONE)
    assert rig.provider.requests == 2
    head = rig.provider.heads[0].lower()
    assert b"accept-encoding: identity" in head
    assert b"authorization" not in head


async def test_many_at_once_wait_for_one_fetch(rig: Rig) -> None:
    gate = trio.Event()
    rig.provider.pause = gate.wait
    found: list[bool] = []

    async def one(expected: bool) -> None:
        found.append((await rig.find("one" if expected else "invented") is not None) is expected)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number % 2 == 0)
        await trio.testing.wait_all_tasks_blocked(0.05)
        gate.set()
    assert found == [True] * 20
    assert rig.provider.requests == 1


async def test_a_fetch_that_is_cancelled_takes_nobody_along(rig: Rig) -> None:
    gate = trio.Event()
    rig.provider.pause = gate.wait
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.find, "one")
            await trio.testing.wait_all_tasks_blocked(0.05)
            scope.cancel()
    gate.set()
    assert await rig.knows(ONE)


async def test_an_unknown_key_is_looked_for_now_and_then(rig: Rig) -> None:
    assert await rig.knows(ONE)
    rig.provider.keys = [ONE, TWO]
    rig.clock.now += 1
    assert await rig.knows(TWO)
    assert rig.provider.requests == 2
    # Anybody can invent ids, in any number.
    for number in range(50):
        assert await rig.find(f"invented {number}") is None
    assert rig.provider.requests == 2
    rig.provider.keys = [THREE]
    rig.clock.now += 28
    assert await rig.find("three") is None
    rig.clock.now += 1
    assert await rig.knows(ONE)  # known, so nobody looks
    assert rig.provider.requests == 2
    rig.clock.now += 1
    assert await rig.knows(THREE)
    assert rig.provider.requests == 3
    assert await rig.find("one") is None  # rotated away
    assert rig.provider.requests == 3


async def test_a_key_that_the_first_fetch_did_not_bring_is_not_fetched_twice(rig: Rig) -> None:
    assert await rig.find("invented") is None
    assert rig.provider.requests == 1


async def test_a_provider_that_is_away_with_keys_in_memory(rig: Rig) -> None:
    assert await rig.knows(ONE)
    await rig.provider.stop()
    rig.clock.now += 300
    with capture_logs() as logs:
        assert await rig.knows(ONE)
        assert await rig.knows(ONE)
        assert await rig.find("two") is None
    assert len(logs) == 1, "one attempt in half a minute"
    assert logs[0]["error"] == "ConnectError"
    rig.provider.keys = [TWO]
    await rig.provider.start()
    rig.clock.now += 29
    assert await rig.knows(ONE)
    rig.clock.now += 1
    assert await rig.knows(TWO)
    assert await rig.find("one") is None


async def test_old_keys_are_not_believed_for_ever(rig: Rig) -> None:
    assert await rig.knows(ONE)
    await rig.provider.stop()
    rig.clock.now += 24 * 3600
    assert await rig.knows(ONE)
    rig.clock.now += 31
    with pytest.raises(KeysUnavailable):
        await rig.find("one")
    await rig.provider.start()
    rig.clock.now += 30
    assert await rig.knows(ONE)


async def test_a_provider_that_is_away_from_the_beginning(rig: Rig) -> None:
    await rig.provider.stop()
    with capture_logs() as logs:
        for _ in range(5):
            with pytest.raises(KeysUnavailable):
                await rig.find("one")
    assert len(logs) == 1
    await rig.provider.start()
    rig.clock.now += 1
    assert await rig.knows(ONE)


GOOD = public(ONE)


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"500 Internal Server Error", GOOD),
        reply(b"404 Not Found", GOOD),
        reply(b"204 No Content", b""),
        reply(b"302 Found", GOOD, b"Location: http://127.0.0.1:1/keys"),
        reply(b"200 OK", GOOD, b"Content-Encoding: gzip"),
        reply(b"200 OK", b""),
        reply(b"200 OK", b"<html>"),
        reply(b"200 OK", b"[" * 5000),
        reply(b"200 OK", b"[]"),
        reply(b"200 OK", b"{}"),
        reply(b"200 OK", b'{"keys":{}}'),
        reply(b"200 OK", b'{"keys":[]}'),
        reply(b"200 OK", b'{"keys":[1,null,{},{"kty":"RSA"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}'),
        reply(b"200 OK", b'{"keys":[{"kty":"oct","kid":"one","k":"c2VjcmV0"}]}'),
        reply(b"200 OK", GOOD[:-1] + b" " * DOCUMENT_BYTES_MAX + b"}"),
        b"HTTP/1.1 200 OK\r\n\r\n" + GOOD[:-1] + b" " * (DOCUMENT_BYTES_MAX * 16) + b"}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + GOOD,
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n",
    ],
    ids=lambda answer: f"{answer[:30]!r} {len(answer)}",
)
async def test_answers_that_are_none(rig: Rig, answer: bytes) -> None:
    """Cold: nobody gets in. Warm: the old keys go on, whatever a broken provider says."""
    rig.provider.answer = answer
    with pytest.raises(KeysUnavailable):
        await rig.find("one")
    rig.provider.answer = None
    rig.clock.now += 1
    assert await rig.knows(ONE)
    rig.provider.answer = answer
    rig.clock.now += 300
    assert await rig.knows(ONE)
    assert rig.provider.requests == 3


async def test_a_provider_that_says_nothing_costs_a_bounded_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.2)
    rig.provider.pause = trio.sleep_forever
    began = trio.current_time()
    with pytest.raises(KeysUnavailable):
        await rig.find("one")
    assert 0.2 <= trio.current_time() - began < 2


async def test_a_provider_that_drips_does_too(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece comes soon after the one before: only a deadline for the whole ends this."""
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.3)

    async def drip(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            try:
                await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    await stream.send_all(b" ")
                    await trio.sleep(0.02)
            except trio.BrokenResourceError:
                pass

    listeners = await nursery.start(partial(trio.serve_tcp, drip, 0, host="127.0.0.1"))
    uri = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
    with trio.fail_after(3), pytest.raises(KeysUnavailable):
        await KeyCache(uri, seconds=300).find("one", "ES256")
    nursery.cancel_scope.cancel()


async def test_which_key(rig: Rig) -> None:
    rsa = new_key("rsa", "RSA", 2048)
    edwards = new_key("ed", "OKP", "Ed25519")
    named = {**new_key("named").as_dict(private=False), "alg": "ES256"}
    encryption = {**new_key("enc").as_dict(private=False), "use": "enc"}
    with pytest.warns(SecurityWarning):
        short = new_key("short", "RSA", 1024).as_dict(private=False)
    exchange = new_key("x", "OKP", "X25519").as_dict(private=False)
    same_id = new_key("rsa").as_dict(private=False)
    listed = [rsa.as_dict(private=False), edwards.as_dict(private=False), named, encryption, short, exchange, same_id]
    rig.provider.answer = reply(b"200 OK", orjson.dumps({"keys": listed}))

    async def kind(kid: str | None, algorithm: str) -> Any:
        found = await rig.cache.find(kid, algorithm)
        return None if found is None else found.key_type

    assert await kind("rsa", "RS256") == await kind("rsa", "PS512") == "RSA"
    assert await kind("rsa", "ES256") == "EC"  # two keys under one id, told apart by the algorithm
    assert await kind("rsa", "ES384") is None
    assert await kind("ed", "EdDSA") == await kind("ed", "Ed25519") == "OKP"
    assert await kind("ed", "ES256") is None
    assert await kind("named", "ES256") == "EC"
    for kid in ("enc", "short", "x"):
        for algorithm in ("RS256", "ES256", "EdDSA"):
            assert await kind(kid, algorithm) is None
    # Without an id, only where there is no choice.
    assert await kind(None, "RS256") is None
    rig.provider.answer = reply(b"200 OK", orjson.dumps({"keys": [listed[0]]}))
    rig.clock.now += 300
    assert await kind(None, "RS256") == "RSA"


async def test_a_key_of_one_algorithm_is_good_for_no_other(rig: Rig) -> None:
    key = {**new_key("one", "RSA", 2048).as_dict(private=False), "alg": "RS256"}
    rig.provider.answer = reply(b"200 OK", orjson.dumps({"keys": [key]}))
    assert await rig.find("one", "RS256") is not None
    assert await rig.find("one", "RS512") is None


async def test_more_keys_than_anybody_has(rig: Rig) -> None:
    rig.provider.keys = [new_key(f"{number}") for number in range(KEYS_MAX + 1)]
    assert await rig.find(f"{KEYS_MAX - 1}") is not None
    assert await rig.find(f"{KEYS_MAX}") is None


async def test_a_password_in_the_address_is_not_logged(nursery: trio.Nursery) -> None:
    provider = await running_provider(nursery)
    await provider.stop()
    cache = KeyCache(provider.uri.replace("127.0.0.1", "user:hunter2@127.0.0.1"), seconds=300)
    with capture_logs() as logs, pytest.raises(KeysUnavailable):
        await cache.find("one", "ES256")
    assert "hunter2" not in repr(logs)


async def test_over_tls_the_provider_must_prove_its_name(nursery: trio.Nursery) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    provider = Provider([ONE], nursery)

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await provider._answer(trio.SSLStream(stream, server, server_side=True, https_compatible=True))  # type: ignore[arg-type]

    listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    uri = f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}/keys"
    stranger = KeyCache(uri, seconds=300)
    with pytest.raises(KeysUnavailable):
        await stranger.find("one", "ES256")
    assert provider.requests == 0
    known = KeyCache(uri, seconds=300)
    known._tls = ssl.create_default_context()
    authority.configure_trust(known._tls)
    assert await known.find("one", "ES256") is not None
    elsewhere = KeyCache(uri.replace("127.0.0.1", "localhost"), seconds=300)
    elsewhere._tls = known._tls
    with pytest.raises(KeysUnavailable):
        await elsewhere.find("one", "ES256")
    assert provider.requests == 1
    nursery.cancel_scope.cancel()
