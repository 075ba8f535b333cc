"""What a call to the store can raise that is the store's fault and not a bug of the caller.

For the few places that go on without the store's answer: a readiness probe, a login that is refused, a log line.
Everybody else lets these pass.
"""

from __future__ import annotations

from typing import Final

from relay.asyncpg_trio.errors import ConnectionLost, PoolClosed, PoolTimeout, PostgresError, sqlstate
from relay.errors import StoreBusy, StoreError

STORE_FAILURES: Final = (PostgresError, ConnectionLost, PoolTimeout, PoolClosed, StoreError)

# A lock that did not come, a statement that took too long, no more connections: the server's words for "not now".
_NOT_NOW: Final = frozenset({"55P03", "57014", "53300"})


def is_busy(error: BaseException) -> bool:
    """Whether the store has too much to do, and the same may well succeed in a moment."""
    return isinstance(error, PoolTimeout | StoreBusy) or sqlstate(error) in _NOT_NOW
