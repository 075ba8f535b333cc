"""What REQ, search and COUNT have in common: who may read at all, which channels, and in which words it is refused.

In: an authenticated session. Out: a caller with the right to read and the channels that it may read, or `Refused`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import structlog
import trio

from relay.access.identity import Caller
from relay.access.scopes import MESSAGES_READ
from relay.asyncpg_trio.errors import PoolTimeout
from relay.errors import SHUTTING_DOWN, TOO_BUSY, StoreBusy
from relay.query.replay import Row
from relay.store.failures import STORE_FAILURES

if TYPE_CHECKING:
    from relay.websocket.session import Session

log = structlog.get_logger(__name__)

NO_SCOPE: Final = "restricted: insufficient scope"
DATABASE: Final = "error: database error"

FAILURES: Final = (*STORE_FAILURES, trio.TooSlowError)

# Stored events leave in writes of about this size: one system call for a hundred events, and small enough that what
# waits for room is soon reached by a removal.
WRITE_BYTES: Final = 64 << 10


class Refused(Exception):
    """The message ends with CLOSED and this text, after a NOTICE where one is due."""

    def __init__(self, text: str, *, notice: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.notice = notice


def reader(session: Session) -> Caller:
    """The caller, if it may read at all. Raises `Refused`."""
    assert session.caller is not None
    if session.services.draining():
        raise Refused(SHUTTING_DOWN.text)
    if not session.caller.has(MESSAGES_READ):
        raise Refused(NO_SCOPE, notice=True)
    return session.caller


async def readable(session: Session, caller: Caller) -> frozenset[str]:
    """The channels that the caller may read, as its token lets it. Raises what the store raises."""
    accessible = await session.services.directory.accessible(caller.pubkey)
    return accessible if caller.channel_ids is None else accessible & caller.channel_ids


async def still_readable(session: Session, caller: Caller) -> frozenset[str]:
    """The same as of the moment of the return: see `Directory.readable_now`. Raises as `readable`."""
    return await session.services.directory.readable_now(caller)


def failure_text(error: Exception, what: str) -> str:
    """What the client is told of one of `FAILURES`; the log is told the rest."""
    # Who waits for the members of a channel gets the error of the task that asked for them as its cause.
    if any(isinstance(each, StoreBusy | PoolTimeout) for each in (error, error.__cause__)):
        log.warning(f"{what} could not be answered: the store is busy", error=repr(error))
        return TOO_BUSY.text
    log.error(f"{what} could not be answered", error=repr(error))
    return DATABASE


def batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """The rows in their order, in pieces of about `WRITE_BYTES`."""
    start = size = 0
    for end, row in enumerate(rows, 1):
        size += len(row.json)
        if size >= WRITE_BYTES:
            yield rows[start:end]
            start, size = end, 0
    if start < len(rows):
        yield rows[start:]
