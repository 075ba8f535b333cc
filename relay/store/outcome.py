"""What became of a transaction whose COMMIT was not answered: asked, never guessed."""

from __future__ import annotations

import structlog
import trio

from relay.asyncpg_trio.errors import ConnectionLost, PostgresError
from relay.errors import StoreError
from relay.store.own_connection import OwnConnection

log = structlog.get_logger()

POLL_SECONDS = 0.05


async def committed(own: OwnConnection, xid: int) -> bool:
    """Whether transaction `xid` was committed; waits for the server and for the transaction to end.

    Cancellation: leaves the question open; whatever was committed stays.
    """
    while True:
        try:
            con = await own.get()
            status = await con.fetchval("SELECT pg_xact_status($1::text::xid8)", str(xid))
        except (ConnectionLost, StoreError, PostgresError) as error:
            log.warning("the outcome of a commit is not known yet", xid=xid, error=str(error))
            await trio.sleep(POLL_SECONDS)
            continue
        if status == "in progress":
            await trio.sleep(POLL_SECONDS)
            continue
        log.info("the outcome of a commit is known", xid=xid, status=status)
        return bool(status == "committed")
