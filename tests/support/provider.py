"""An identity provider: real keys, real tokens, and a real HTTP server on loopback for its JWKS document.

`running_provider(nursery)` serves until the nursery ends. What the server answers is `document`, or whatever `answer`
is set to; `requests` counts. `stop()` closes the port: the next connection is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
import trio
import trio.testing
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from relay.access.oidc import ALGORITHMS

ISSUER = "https://id.example/oauth2/default"
AUDIENCE = "api://relay"

PrivateKey = RSAKey | ECKey | OKPKey


class _Any(JWSRegistry):
    """Signs with every algorithm: what the relay refuses must exist first."""

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


_SIGNER = _Any(strict_check_header=False)


def new_key(kid: str | None, kind: str = "EC", size: str | int = "P-256") -> PrivateKey:
    maker: Any = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}[kind]
    key: PrivateKey = maker.generate_key(size, {"kid": kid, "use": "sig"} if kid is not None else {"use": "sig"})
    return key


def key_for(algorithm: str, kid: str = "one") -> PrivateKey:
    """A new key that the algorithm works with."""
    assert algorithm in ALGORITHMS
    if algorithm.startswith("ES"):
        return new_key(kid, "EC", {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[algorithm])
    return new_key(kid, "OKP", "Ed25519") if algorithm.startswith("Ed") else new_key(kid, "RSA", 2048)


def public(*keys: PrivateKey) -> bytes:
    return orjson.dumps({"keys": [key.as_dict(private=False) for key in keys]})


def claims(pubkey: str | None, **changes: Any) -> dict[str, Any]:
    """Those of a token that holds now; a change to None leaves the claim out."""
    now = int(time.time())
    found = {"iss": ISSUER, "aud": AUDIENCE, "sub": "someone", "iat": now, "exp": now + 3600, "nostr_pubkey": pubkey}
    return {name: value for name, value in (found | changes).items() if value is not None}


def token(
    key: Any, pubkey: str | None, *, alg: str = "ES256", header: dict[str, Any] | None = None, **changes: Any
) -> str:
    """A signed token. `header` adds to, and with None takes from, what stands in it."""
    fields = {"alg": alg, "kid": getattr(key, "kid", None)} | (header or {})
    fields = {name: value for name, value in fields.items() if value is not None}
    return jwt.encode(fields, claims(pubkey, **changes), key, registry=_SIGNER)


@dataclass
class Provider:
    keys: list[PrivateKey]
    nursery: trio.Nursery
    port: int = 0
    requests: int = 0
    # The whole answer, in place of the document; and what happens before it.
    answer: bytes | None = None
    pause: Callable[[], Any] | None = None
    heads: list[bytes] = field(default_factory=list)
    _serving: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}/keys"

    def settings(self, **changes: Any) -> dict[str, Any]:
        return {"okta_issuer": ISSUER, "okta_audience": AUDIENCE, "okta_jwks_uri": self.uri, **changes}

    def token(self, pubkey: str | None, **changes: Any) -> str:
        return token(self.keys[0], pubkey, **changes)

    async def start(self) -> None:
        self._serving = trio.CancelScope()
        await self.nursery.start(self._serve)

    async def stop(self) -> None:
        self._serving.cancel()
        await trio.testing.wait_all_tasks_blocked()

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        with self._serving:
            listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            task_status.started()
            await trio.serve_listeners(self._answer, listeners)

    async def _answer(self, stream: trio.SocketStream) -> None:
        head = b""
        async with stream:
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            self.requests += 1
            self.heads.append(head)
            if self.pause is not None:
                await self.pause()
            document = public(*self.keys)
            answer = self.answer or b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(document), document)
            with suppress(trio.BrokenResourceError):  # the client had enough
                await stream.send_all(answer)


async def running_provider(nursery: trio.Nursery, *keys: PrivateKey) -> Provider:
    provider = Provider(list(keys) or [new_key("one")], nursery)
    await provider.start()
    return provider


answered = partial(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b".__mod__)


def reply(status: bytes, body: bytes, *headers: bytes) -> bytes:
    return answered((status, len(body), b"".join(each + b"\r\n" for each in headers), body))
