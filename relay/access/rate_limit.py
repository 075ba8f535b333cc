"""Token buckets: how often something may happen, for one connection, one key, one address.

In: "once more, please". Out: yes or no, at once. A bucket holds one minute's worth and refills without steps, so that
a short burst passes and a steady stream is held at its rate. Pure: the clock is an argument, nothing waits here and
nobody is told; what follows from a no is the caller's business.

A rate of 0 is no limit. Memory is bounded: a bucket that is full again says nothing more than one that is not there,
and where there are too many keys the one that was asked for longest ago is forgotten.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

__all__ = ["KEYS_MAX", "KeyedBuckets", "TokenBucket", "address_key"]

MINUTE_SECONDS: Final = 60.0
# Some 15 MB of keys that all came within one minute. Who has more addresses than that is not stopped by counting them.
KEYS_MAX: Final = 1 << 16
# What one customer of an IPv6 provider is given at least (RFC 6177): a limit for each address of it would be none.
IPV6_PREFIX: Final = 64

Clock = Callable[[], float]
"""Seconds, compared only with each other."""


class TokenBucket:
    """Holds at most `per_minute` tokens, is full at first, and refills at that rate."""

    __slots__ = ("_clock", "_filled_at", "_tokens", "per_minute")

    def __init__(self, per_minute: int, clock: Clock) -> None:
        assert per_minute >= 0
        self.per_minute = per_minute
        self._clock = clock
        self._tokens = float(per_minute)
        self._filled_at = clock()

    def take(self) -> bool:
        """Takes one token, if there is one."""
        if not self.per_minute:
            return True
        tokens = self._fill()
        if tokens < 1.0:
            return False
        self._tokens = tokens - 1.0
        return True

    def seconds_left(self) -> float:
        """How long until there is a token; 0 if there is one."""
        if not self.per_minute:
            return 0.0
        return max(0.0, (1.0 - self._fill()) * MINUTE_SECONDS / self.per_minute)

    @property
    def last_asked(self) -> float:
        """When it was asked last. A minute later it is full."""
        return self._filled_at

    def _fill(self) -> float:
        now = self._clock()
        tokens = self._tokens + (now - self._filled_at) * self.per_minute / MINUTE_SECONDS
        if tokens > self.per_minute:
            tokens = float(self.per_minute)
        self._filled_at = now
        self._tokens = tokens
        return tokens


class KeyedBuckets:
    """A bucket for each key that was asked for in the last minute, `keys_max` at most."""

    __slots__ = ("_buckets", "_clock", "keys_max", "per_minute")

    def __init__(self, per_minute: int, clock: Clock, *, keys_max: int = KEYS_MAX) -> None:
        assert per_minute >= 0
        assert keys_max > 0
        self.per_minute = per_minute
        self.keys_max = keys_max
        self._clock = clock
        # The one that was asked for longest ago stands first.
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str) -> bool:
        """Takes one of the key's tokens, if there is one."""
        if not self.per_minute:
            return True
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._add(key)
        else:
            self._buckets.move_to_end(key)
        return bucket.take()

    def seconds_left(self, key: str) -> float:
        """How long until the key has a token; 0 if it has one."""
        bucket = self._buckets.get(key)
        return 0.0 if bucket is None else bucket.seconds_left()

    def _add(self, key: str) -> TokenBucket:
        self._forget_full()
        if len(self._buckets) >= self.keys_max:
            self._buckets.popitem(last=False)
        bucket = self._buckets[key] = TokenBucket(self.per_minute, self._clock)
        return bucket

    def _forget_full(self) -> None:
        """Two at most for each one that comes, so that nobody pays for a crowd and a crowd is gone all the same."""
        full = self._clock() - MINUTE_SECONDS
        for _ in range(min(2, len(self._buckets))):
            key = next(iter(self._buckets))
            if self._buckets[key].last_asked > full:
                return
            del self._buckets[key]


def address_key(peer: str) -> str | None:
    """Under which key the connections of an address are counted; None for this machine's own (loopback, Unix socket),
    where a proxy stands for everybody. `peer` is an address without port, or any other text for a Unix socket."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return None
    if address.is_loopback:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return str(address)
