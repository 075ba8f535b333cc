"""What a call to the store can raise that is the store's fault and not a bug of the caller.

For the few places that go on without the store's answer: a readiness probe, a login that is refused, a log line.
Everybody else lets these pass.
"""

from __future__ import annotations

from typing import Final

from relay.asyncpg_trio.errors import ConnectionLost, PoolClosed, PoolTimeout, PostgresError
from relay.errors import StoreError

STORE_FAILURES: Final = (PostgresError, ConnectionLost, PoolTimeout, PoolClosed, StoreError)
