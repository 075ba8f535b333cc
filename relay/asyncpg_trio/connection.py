"""One session with the server, driven by whichever task uses it.

In: queries with `$1` parameters. Out: asyncpg's records. The verbs (`fetch fetchrow fetchval execute`, `transaction`)
have asyncpg's signatures without its timeouts: deadlines belong to the caller (`trio.fail_after`). No task of its
own.

Types: asyncpg's codecs. uuid parameters may be `str`, results are `uuid.UUID`; jsonb is `str` both ways, or bytes
with `jsonb_bytes`; timestamptz is an aware `datetime`; `= ANY($1)` takes a list. `executemany`, cursors and per-call
timeouts do not exist, because asyncpg builds them on asyncio: write many rows with `unnest($1::type[], …)` or
`copy_records_to_table`.

Cancellation of a verb: the server is asked to stop, its answer is read, and only then does `Cancelled` go on (≤ 2 s,
else the connection is closed). The connection is usable afterwards. Outside a transaction the statement may still
have happened. Errors: an answer of the server is a `PostgresError`; every death of the connection is a
`ConnectionLost`.
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import trio

from . import driver
from .copy import Abandoned, PacedRows, Rows
from .driver import NO_TIMEOUT, Record
from .errors import ConnectionLost, PostgresError, sqlstate_class
from .listen import Notifications
from .transaction import Transaction
from .wire import Wire

CLOSE_SECONDS = 2.0

Isolation = Literal["read_committed", "repeatable_read", "serializable"]


class Connection:
    """One session. Made by `connect()` or lent by a `Pool`.

    One task at a time: a second one gets `trio.BusyResourceError`, and the first is not disturbed.
    """

    __slots__ = (
        "_busy", "_listening", "_protocol", "_session", "_statement_cache", "_wire",
        "answer_seconds", "depth", "idle_since", "on_statement", "opened_at", "statements", "xid",
    )  # fmt: skip

    def __init__(self, session: driver.Session, wire: Wire) -> None:
        self._session = session
        self._wire = wire
        self._protocol = session._protocol
        self._statement_cache = session._stmt_cache
        self._busy = False
        self._listening = False
        # A verb that is not answered for so long ends the session: the server, or the way to it, has stopped.
        self.answer_seconds = math.inf
        # How many `transaction()` blocks are open; kept by Transaction.
        self.depth = 0
        # What the caller read with `current_xid()` in the open transaction; handed on by CommitOutcomeUnknown.
        self.xid: str | None = None
        # Execute messages sent for callers: one a verb or COPY, none for BEGIN, COMMIT, ROLLBACK, savepoints or LISTEN.
        self.statements = 0
        # Called with the text of each of them, in the caller's task.
        self.on_statement: Callable[[str], None] | None = None
        # The pool's clock readings.
        self.opened_at = 0.0
        self.idle_since = 0.0

    # ---- state

    @property
    def backend_pid(self) -> int:
        """The server process of this session, as in `pg_stat_activity`."""
        pid: int = self._protocol.backend_pid
        return pid

    @property
    def server_version(self) -> tuple[int, int]:
        """Major and minor version, such as (18, 1)."""
        version = self._session.get_server_version()
        return int(version.major), int(version.micro)  # since PostgreSQL 10 asyncpg calls the minor version "micro"

    @property
    def is_busy(self) -> bool:
        """Whether a task is inside a verb."""
        return self._busy

    def is_closed(self) -> bool:
        """Whether the session is known to be over."""
        return self._wire.lost

    def is_in_transaction(self) -> bool:
        """Whether the server has a transaction open here, usable or failed."""
        return bool(self._protocol.is_in_transaction())

    def is_at_rest(self) -> bool:
        """Whether the next user would find nothing of the last one's: open, no command, transaction or LISTEN."""
        return not (self._wire.lost or self._busy or self._listening or self.depth) and not self.is_in_transaction()

    def is_alive(self) -> bool:
        """Whether the kernel still knows the other end; one system call. Only between commands."""
        assert not self._busy
        return self._wire.is_alive()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed() else "busy" if self._busy else "idle"
        return f"<asyncpg_trio.Connection backend_pid={self.backend_pid} {state}>"

    def use_jsonb_bytes(self) -> None:
        """Let jsonb come out as bytes; `str` and `bytes` go in."""
        self._session.use_jsonb_bytes()

    async def has_role(self, wanted: Any) -> bool:
        """For `connect`: whether the server is what `target_session_attrs` asks for."""
        return bool(await driver.can_use_connection(self._session, wanted))

    # ---- the verbs

    async def fetch(self, query: str, *args: Any) -> list[Record]:
        """Run `query` and return all its rows."""
        rows: list[Record] = await self._run(query, args, 0, False)
        return rows

    async def fetchrow(self, query: str, *args: Any) -> Record | None:
        """Run `query` and return its first row, or None."""
        rows = await self._run(query, args, 1, False)
        return rows[0] if rows else None

    async def fetchval(self, query: str, *args: Any, column: int = 0) -> Any:
        """Run `query` and return one column of its first row, or None."""
        rows = await self._run(query, args, 1, False)
        return rows[0][column] if rows else None

    async def execute(self, query: str, *args: Any) -> str:
        """Run `query` and return its command tag, such as "INSERT 0 1". Without arguments: several statements too."""
        if args:
            tag: bytes = (await self._run(query, args, 0, True))[1]
            return tag.decode()
        self._count(query)
        return await self.command(query)

    def transaction(self, *, isolation: Isolation | None = None, readonly: bool = False) -> Transaction:
        """Return an async context manager: BEGIN and COMMIT, or a savepoint inside another such block.

        See `Transaction` for what cancellation and a lost connection mean here.
        """
        return Transaction(self, isolation, readonly)

    async def current_xid(self) -> str:
        """Return the open transaction's id (one is assigned if need be) and keep it for `CommitOutcomeUnknown.xid`."""
        self.xid = await self.fetchval("SELECT pg_current_xact_id()::text")
        assert self.xid is not None
        return self.xid

    async def transaction_status(self, xid: str) -> str | None:
        """Return "committed", "aborted" or "in progress" for a transaction's id; None if it is too old to tell."""
        status: str | None = await self.fetchval("SELECT pg_xact_status($1::text::xid8)", xid)
        return status

    def _check_usable(self) -> None:
        if self._busy:
            raise trio.BusyResourceError("another task is using this connection")
        if self._wire.lost:
            raise ConnectionLost("the connection is closed") from self._wire.loss

    def _count(self, query: str) -> None:
        self._check_usable()
        self.statements += 1
        if self.on_statement is not None:
            self.on_statement(query)

    async def _run(self, query: str, args: Sequence[Any], limit: int, want_tag: bool) -> Any:
        with trio.move_on_after(self.answer_seconds):
            return await self._ask(query, args, limit, want_tag)
        self.terminate()
        raise ConnectionLost(f"no answer within {self.answer_seconds} s")

    async def _ask(self, query: str, args: Sequence[Any], limit: int, want_tag: bool) -> Any:
        self._count(query)
        self._busy = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            statement = self._statement_cache.get((query, Record, False))
            if statement is not None:
                try:
                    return await self._protocol.bind_execute(statement, args, "", limit, want_tag, NO_TIMEOUT)
                except driver.InvalidCachedStatementError:
                    # The result's shape has changed since it was prepared (ALTER TABLE, search_path).
                    self._session._drop_local_statement_cache()
                    if self.is_in_transaction():
                        raise  # the server has failed the transaction already
                except driver.OutdatedSchemaCacheError:
                    await self._session.reload_schema_state()
                    raise
            return await self._session._execute(query, args, limit, None, return_status=want_tag)
        except BaseException as error:
            if self._protocol.unsynced:
                await self._sync()
            self._raise_if_lost(error)
            raise
        finally:
            self._protocol.unsynced = ""
            self._busy = False

    async def command(self, text: str) -> str:
        """Send `text` by the simple protocol, uncounted, and return the last command tag (BEGIN, LISTEN …)."""
        self._check_usable()
        self._busy = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            tag: str = await self._protocol.query(text, None)
        except Exception as error:
            self._raise_if_lost(error)
            raise
        finally:
            self._busy = False
        return tag

    async def command_uninterrupted(self, text: str) -> str:
        """Like `command`, shielded for at most `settle_seconds`: then the session is over and ConnectionLost raised."""
        wire = self._wire
        wire.interruptible = False
        try:
            with trio.move_on_after(wire.settle_seconds, shield=True):
                return await self.command(text)
        finally:
            wire.interruptible = True
        raise ConnectionLost(f"{text.split()[0]} was not answered within {wire.settle_seconds} s")

    def _raise_if_lost(self, error: BaseException) -> None:
        """Turn whatever asyncpg says about a dead connection into the one thing that callers know."""
        if not isinstance(error, Exception) or isinstance(error, ConnectionLost):
            return
        if isinstance(error, (driver.ConnectionDoesNotExistError, OSError)):
            # What the server said before it closed (57P01, say) tells more than asyncpg's own words.
            cause = error.__cause__ if isinstance(error.__cause__, PostgresError) else error
            raise ConnectionLost(f"the connection was lost: {cause}") from cause
        if self._wire.lost and (not isinstance(error, PostgresError) or sqlstate_class(error) == "08"):
            raise ConnectionLost("the connection was lost") from error

    async def _sync(self) -> None:
        """End the implicit transaction that a Parse without its Execute left open, locks included."""
        with trio.move_on_after(self._wire.settle_seconds, shield=True), contextlib.suppress(PostgresError):
            if not self._wire.lost:
                await self._protocol.query(self._protocol.unsynced, None)

    # ---- COPY

    async def copy_records_to_table(
        self,
        table: str,
        *,
        records: Rows,
        columns: Sequence[str] | None = None,
        schema: str | None = None,
    ) -> str:
        """Copy rows into `table` in binary form and return the command tag ("COPY 500").

        `records` may be any iterable or async iterable, of any length: rows are taken as the socket takes them.

        Raises whatever `records` raises, after the COPY was given up; nothing is stored then. A row that cannot be
        encoded costs the connection.
        """
        self._count(f"COPY {table}")
        self._busy = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            async with contextlib.aclosing(PacedRows(records, self._wire)) as rows:
                tag: str = await self._session.copy_records_to_table(
                    table, records=rows, columns=columns, schema_name=schema
                )
            return tag
        except BaseException as error:
            if self._session.spoilt:
                self.terminate()
                raise
            await self._wire.finish_copy(b"the rows ended early")
            if self._protocol.unsynced:
                await self._sync()
            if isinstance(error, Abandoned):
                raise error.error from None
            self._raise_if_lost(error)
            raise
        finally:
            self._protocol.unsynced = ""
            self._busy = False

    # ---- LISTEN

    def listen(self, *channels: str) -> Notifications:
        """Return an async context manager over LISTEN: `async with con.listen("a", "b") as notifications`."""
        return Notifications(self, channels)

    def start_hearing(self, queue: collections.deque[tuple[str, str, int]]) -> None:
        """For `Notifications`: from now on notifications go to `queue`."""
        if self._listening:
            raise trio.BusyResourceError("this connection is listening already")
        self._listening = True
        self._session.notified = queue

    def stop_hearing(self) -> None:
        """For `Notifications`: the opposite."""
        self._listening = False
        self._session.notified = None

    async def wait_message(self) -> None:
        """For `Notifications`: read once, whatever comes. Raises ConnectionLost; cancellation is harmless."""
        self._check_usable()
        self._busy = True
        try:
            await self._wire.wait_message()
        finally:
            self._busy = False
        if self._wire.lost:
            raise ConnectionLost("the connection was lost while listening") from self._wire.loss

    # ---- the end

    def terminate(self) -> None:
        """End the session at once, from any task, without waiting and without a CancelRequest.

        A task inside a verb gets `ConnectionLost`. The server notices when it next reads or writes.
        """
        if not self._wire.lost:
            self._session.terminate()
        assert self._wire.lost

    async def close(self) -> None:
        """Say goodbye and wait for the server to end the session, at most 2 s; then, or if cancelled, terminate."""
        try:
            if not self._busy and not self._wire.lost:
                with trio.move_on_after(CLOSE_SECONDS):
                    await self._wire.say_goodbye()
            else:
                await trio.lowlevel.checkpoint()
        finally:
            self.terminate()

    aclose = close
