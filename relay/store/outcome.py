"""When a transaction is tried again, and what became of one whose COMMIT was not answered: asked, never guessed."""

from __future__ import annotations

import structlog
import trio

from relay import metrics
from relay.asyncpg_trio import Connection
from relay.asyncpg_trio.errors import ConnectionLost, PostgresError, sqlstate_class
from relay.errors import StoreError
from relay.store.own_connection import OwnConnection

log = structlog.get_logger()

POLL_SECONDS = 0.05

PATIENCE_SECONDS = 10.0
"""How long a transaction is tried again while the server is in trouble, before its events are refused."""
RETRY_SECONDS = 0.05
# Conflicts, resources, the operator's doing, lost connections: the same transaction may well succeed.
TRY_AGAIN = ("40", "53", "55", "57", "08")


class Patience:
    """For one transaction: whether it is worth another try."""

    def __init__(self) -> None:
        self._deadline = trio.current_time() + PATIENCE_SECONDS

    async def try_again(self, error: ConnectionLost | PostgresError) -> None:
        """Returns after a pause when the transaction may be run again; nothing of it was committed.

        Raises:
            The error: it would happen again, or has been happening for too long.
        """
        lost = isinstance(error, ConnectionLost)
        state = "08" if lost else sqlstate_class(error)
        if trio.current_time() > self._deadline or state not in TRY_AGAIN:
            raise error
        metrics.COMMIT_RETRIES.labels("connection_lost" if lost else "server").inc()
        await trio.sleep(RETRY_SECONDS)


# What pg_xact_status answers for an id that has not been given out.
_IN_THE_FUTURE = "22023"

# One statement, one snapshot: an entry that is being moved is in exactly one of the two.
_TRACE = """
SELECT EXISTS (SELECT FROM audit_outbox WHERE uuid = $1) OR EXISTS (SELECT FROM audit_log WHERE uuid = $1)
"""


async def committed(own: OwnConnection, xid: int, trace: str | None) -> bool:
    """Whether transaction `xid` was committed; waits for the server and for the transaction to end.

    `trace` is the uuid of an audit entry that the transaction has written. The id alone proves nothing: a server that
    is killed forgets the ids whose work it had not yet written to disk and gives them out again, and then "committed"
    is said of somebody else's transaction. One without a trace counts as not committed: it may be done again.

    Cancellation: leaves the question open; whatever was committed stays.
    """
    while True:
        try:
            con = await own.get()
            status = await _status(con, xid)
            if status != "in progress":
                kept = status != "aborted" and trace is not None and bool(await con.fetchval(_TRACE, trace))
                log.info("the outcome of a commit is known", xid=xid, status=status, kept=kept)
                return kept
        except (ConnectionLost, StoreError, PostgresError) as error:
            log.warning("the outcome of a commit is not known yet", xid=xid, error=str(error))
        await trio.sleep(POLL_SECONDS)


async def _status(con: Connection, xid: int) -> str | None:
    """As pg_xact_status (None: too old to tell); an id of the future was forgotten, so nothing of it was kept."""
    try:
        return await con.transaction_status(str(xid))
    except PostgresError as error:
        if error.sqlstate != _IN_THE_FUTURE:
            raise
        return "aborted"
