"""What a call to the store can raise that is the store's fault and not a bug of the caller.

For the few places that go on without the store's answer (a readiness probe, a login that is refused, a log line), and
for the two where an answer to a client is made of it: ingest and the HTTP door. Everybody else lets these pass.
"""

from __future__ import annotations

from typing import Final

from relay.asyncpg_trio.errors import (
    CommitOutcomeUnknown,
    ConnectionLost,
    PoolClosed,
    PoolTimeout,
    PostgresError,
    StatementTimeout,
    sqlstate,
)
from relay.errors import INTERNAL_ERROR, STORE_UNAVAILABLE, Refusal, StoreBusy, StoreError, StoreGone

STORE_FAILURES: Final = (PostgresError, ConnectionLost, PoolTimeout, StatementTimeout, PoolClosed, StoreError)

# A lock that did not come, a statement that took too long, no more connections: the server's words for "not now".
_NOT_NOW: Final = frozenset({"55P03", "57014", "53300"})
# Connection, login, database gone, rollback for another's sake, resources, operator, the system beneath: the server's
# trouble. The rest is about the statement: sent again, it would fail again.
_TROUBLE: Final = frozenset({"08", "28", "3D", "40", "53", "57", "58"})
# Read-only: a standby that was not promoted yet.
_TROUBLE_CODES: Final = _NOT_NOW | {"25006"}
_UNAVAILABLE: Final = (
    ConnectionLost, CommitOutcomeUnknown, PoolTimeout, StatementTimeout, PoolClosed, StoreBusy, StoreGone,
)  # fmt: skip


def is_busy(error: BaseException) -> bool:
    """Whether the store has too much to do, and the same may well succeed in a moment."""
    return isinstance(error, PoolTimeout | StatementTimeout | StoreBusy) or sqlstate(error) in _NOT_NOW


def is_unavailable(error: BaseException) -> bool:
    """Whether the store could not be asked, or had to give up for reasons of its own: not the fault of what was asked.

    Of a group, whether that holds for every error in it.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_unavailable(each) for each in error.exceptions)
    if isinstance(error, _UNAVAILABLE):
        return True
    code = sqlstate(error)
    return code[:2] in _TROUBLE or code in _TROUBLE_CODES


def refusal(error: BaseException) -> Refusal:
    """What the client of a write is told: the same words either way, but another HTTP status."""
    return STORE_UNAVAILABLE if is_unavailable(error) else INTERNAL_ERROR
