"""One exchange with a witness over HTTP, and how witnesses are configured.

In: the setting, and the bytes of a request (relay/audit/witness.py). Out: the parts of the answer, bounded in size and
not yet believed. Deadlines are the caller's; when to ask, and what follows, is relay/audit/witnesses.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import httpx2
import trio

from relay.audit.witness import name_of
from relay.errors import ConfigError, RelayError
from relay.nostr.ids import parse_pubkey
from relay.outbound_http import bounded_body, is_loopback

PATH: Final = "/audit/witness/add-checkpoint"
ANSWER_BYTES_MAX: Final = 64 << 10

_SCHEMES: Final = {"https": "https", "http": "http", "wss": "https", "ws": "http"}


class WitnessFailed(RelayError):
    """A witness could not be asked, or its answer is none."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A witness as configured: where it is asked, and whose signature counts."""

    url: str
    pubkey: str

    @property
    def name(self) -> str:
        return name_of(self.pubkey)


@dataclass(frozen=True, slots=True)
class Answer:
    """`media_type` is in lower case, without parameters."""

    status: int
    media_type: str
    body: bytes


def peers(text: str) -> tuple[Peer, ...]:
    """The witnesses in SPROUT_AUDIT_WITNESSES: `https://relay.example#<public key>`, separated by commas.

    The address is that of the witness relay, as its users know it (ws and wss are taken for http and https).

    Raises:
        ConfigError: Names the first that makes no sense.
    """
    found: dict[str, Peer] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        peer = _peer(part)
        if peer.pubkey in found:
            raise ConfigError("SPROUT_AUDIT_WITNESSES: the same key twice")
        found[peer.pubkey] = peer
    return tuple(found.values())


def _peer(text: str) -> Peer:
    address, _, key = text.partition("#")
    pubkey = parse_pubkey(key)
    try:
        parts = urlsplit(address)
        usable = parts.scheme in _SCHEMES and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    # Not the text itself: an address may carry a password, which is one more reason not to take it.
    if not usable or parts.query or parts.username is not None or parts.password is not None:
        raise ConfigError("SPROUT_AUDIT_WITNESSES: an address is like https://relay.example#<public key>")
    if pubkey is None:
        raise ConfigError(f"SPROUT_AUDIT_WITNESSES: no public key behind the # of {parts.hostname}")
    path = parts.path.rstrip("/") + PATH
    return Peer(urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path, "", "")), pubkey)


@asynccontextmanager
async def opened(peer: Peer) -> AsyncIterator[httpx2.AsyncClient]:
    """A client for the exchanges of one attempt. It follows no redirects."""
    secure = peer.url.startswith("https:")
    # Reading the certificates takes 30 ms: not on the loop.
    tls = await trio.to_thread.run_sync(httpx2.create_ssl_context) if secure else False
    # The proxy of the environment is for what leaves this machine.
    async with httpx2.AsyncClient(
        verify=tls, trust_env=not is_loopback(urlsplit(peer.url).hostname), timeout=None
    ) as client:
        yield client


async def post(client: httpx2.AsyncClient, peer: Peer, body: bytes) -> Answer:
    """Sends a request and reads the answer to it.

    Raises:
        WitnessFailed: There is none, or it is too large.
    """
    headers = {"Content-Type": "text/plain; charset=utf-8", "Accept-Encoding": "identity"}
    try:
        async with client.stream("POST", peer.url, content=body, headers=headers) as response:
            answer = await bounded_body(response, ANSWER_BYTES_MAX)
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError) as error:
        # Not its text: that may repeat the address.
        raise WitnessFailed(f"it cannot be asked: {type(error).__name__}") from error
    if answer is None:
        raise WitnessFailed("its answer is too large")
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return Answer(response.status_code, media_type, answer)
