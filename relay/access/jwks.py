"""The public keys of an identity provider (RFC 7517): fetched, kept for a while, looked up by their id.

In: the address of a JWKS document. Out: keys that a signature may be checked with. The task that needs a key fetches it
when none is in memory; there is no task of its own.

Rules:
1. One fetch at a time; who comes meanwhile and needs it waits for it. Known keys that are fresh wait for nobody.
2. Keys are fresh for `seconds`. When they cannot be fetched again they are used on, for a day at most: a provider that
   is away for an hour must not end every login. (A key that was withdrawn meanwhile is believed that much longer.)
3. A key id that is not there makes one fetch, because keys are rotated before their first use is announced; but anybody
   can invent key ids, so there is one such fetch in 30 s for all of them.
4. What comes from the network is bounded: 5 s, 256 KiB, 100 keys, no redirects. Keys that nobody should sign with (RSA
   below 2048 bits, symmetric ones) are as good as not there.
"""

from __future__ import annotations

import ssl
import time
import warnings
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import orjson
import structlog
import trio
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from relay.errors import ConfigError, RelayError
from relay.outbound_http import bounded_body, is_loopback

log = structlog.get_logger(__name__)

FETCH_SECONDS: Final = 5.0
DOCUMENT_BYTES_MAX: Final = 256 << 10
KEYS_MAX: Final = 100
# The bits of RSA keys: fewer can be factored, more only cost time (RFC 7518 §3.3 has the lower bound).
RSA_BITS: Final = range(2048, 8192 + 1)

STALE_SECONDS_MAX: Final = 24 * 3600
UNKNOWN_KEY_SECONDS: Final = 30
# After a failed fetch: with old keys there is no hurry, without any nobody can log in.
RETRY_SECONDS: Final = 30
RETRY_COLD_SECONDS: Final = 1

SigningKey = RSAKey | ECKey | OKPKey

# The key type, and for elliptic curves the curve, that an algorithm works with.
_EC_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_FAILURES: Final = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError, ValueError, trio.TooSlowError)


class KeysUnavailable(RelayError):
    """There are no keys in memory that may still be used, and the provider does not give any."""


class KeyCache:
    """See the rules above. `clock` gives seconds and is only compared with itself."""

    def __init__(self, uri: str, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError for an address whose answer anybody on the way could have written."""
        parts = urlsplit(uri)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
            raise ConfigError("OKTA_JWKS_URI: must be an https:// address (http:// only on this machine)")
        self._uri = uri
        self._seconds = max(seconds, RETRY_COLD_SECONDS)
        self._clock = clock
        self._turn = trio.Lock()
        self._tls: ssl.SSLContext | None = None
        self._keys: list[SigningKey] = []
        # When the keys were fetched, when a fetch last failed, and when one was last made for an unknown id.
        self._fetched = self._failed = self._sought = float("-inf")

    async def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """The key with this id that the algorithm works with, or None. An absent id names the only key of a set of one.

        Raises: KeysUnavailable.

        Cancellation: a fetch under way is given up; the next one that needs it begins anew.
        """
        began = self._clock()
        if self._is_fresh() and (key := self._select(kid, algorithm)) is not None:
            await trio.lowlevel.checkpoint()
            return key
        async with self._turn:
            if self._is_due(kid, began):
                await self._fetch()
        if not self._keys or self._clock() - self._fetched > STALE_SECONDS_MAX:
            raise KeysUnavailable("the keys of the identity provider cannot be fetched")
        return self._select(kid, algorithm)

    def _is_fresh(self) -> bool:
        return bool(self._keys) and self._clock() - self._fetched < self._seconds

    def _is_due(self, kid: str | None, began: float) -> bool:
        """Whether to fetch now, for somebody who came at `began` and may have waited for another one's fetch."""
        now = self._clock()
        if not self._is_fresh():
            return now - self._failed >= (RETRY_SECONDS if self._keys else RETRY_COLD_SECONDS)
        known = kid is None or any(key.kid == kid for key in self._keys)
        if known or self._fetched >= began or now - self._sought < UNKNOWN_KEY_SECONDS:
            return False
        self._sought = now
        return True

    def _select(self, kid: str | None, algorithm: str) -> SigningKey | None:
        if kid is None and len(self._keys) != 1:
            return None
        for key in self._keys:
            if (kid is None or key.kid == kid) and key.alg in (None, algorithm) and _fits(key, algorithm):
                return key
        return None

    async def _fetch(self) -> None:
        try:
            with trio.fail_after(FETCH_SECONDS):
                document = await self._download()
            keys = _read(document)
            if not keys:
                raise ValueError("no key to check signatures with")
        except _FAILURES as error:
            self._failed = self._clock()
            # Not its text: that may repeat the address, and addresses may carry passwords.
            log.error("the keys of the identity provider could not be fetched", error=type(error).__name__)
        else:
            self._fetched = self._clock()
            self._keys = keys

    async def _download(self) -> bytes:
        secure = self._uri.startswith("https:")
        if secure and self._tls is None:
            self._tls = httpx2.create_ssl_context()  # 30 ms of work, so once
        # The proxy of the environment is for what leaves this machine.
        client = httpx2.AsyncClient(verify=self._tls or False, trust_env=secure, timeout=FETCH_SECONDS)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with client, client.stream("GET", self._uri, headers=headers) as response:
            if response.status_code != 200 or response.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError(f"status {response.status_code}, or an encoding that was not asked for")
            document = await bounded_body(response, DOCUMENT_BYTES_MAX)
        if document is None:
            raise ValueError("too large")
        return document


def _read(document: bytes) -> list[SigningKey]:
    """The usable keys of a JWKS document. Raises ValueError where it is none."""
    parsed = orjson.loads(document)
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no list of keys")
    return [key for entry in listed[:KEYS_MAX] if (key := _import(entry)) is not None]


def _import(entry: Any) -> SigningKey | None:
    """One key, or None for what signatures cannot be checked with. RFC 7517 §5: others' kinds of key are skipped."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or not isinstance(entry.get("kid", ""), str):
        return None
    if entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # about short keys, which are refused below
            key = JWKRegistry.import_key(entry)
    except Exception as error:  # the libraries' ways to say that this is no key are many
        log.warning("skipped a key of the identity provider", error=type(error).__name__)
        return None
    if isinstance(key, RSAKey):
        return key if key.raw_value.key_size in RSA_BITS else None
    return key if isinstance(key, ECKey | OKPKey) else None


def _fits(key: SigningKey, algorithm: str) -> bool:
    if isinstance(key, RSAKey):
        return algorithm.startswith(("RS", "PS"))
    if isinstance(key, ECKey):
        return key.curve_name == _EC_CURVES.get(algorithm)
    return algorithm in ("EdDSA", "Ed25519") and key.curve_name == "Ed25519"
