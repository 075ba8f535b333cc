# ruff: noqa: ARG001, ARG005  # a bug has the signature of what it replaces
"""Bugs to be found: each a context manager that puts one into the relay's real code for as long as it is open.

A simulation that finds nothing proves nothing. Each of these is a mistake that somebody could make in one line, and
each must show within two thousand seeds (tests/audit/test_simulation.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import trio

from relay.asyncpg_trio.errors import CommitOutcomeUnknown
from relay.audit import log
from relay.audit.queue import EntryQueue, Producer
from relay.audit.sink import PoolSink
from relay.audit.spool import Spool
from relay.audit.worker import AuditWorker
from relay.errors import StoreGone
from relay.ingest import batch
from relay.ingest.pipeline import Ingest

Plant = Callable[[], AbstractContextManager[Any]]


def head_remembered() -> AbstractContextManager[Any]:
    """The head is read once, and then known: another node's rows are not."""
    heads: dict[Any, Any] = {}
    read = log.read_head

    async def read_head(con: Any) -> Any:
        owner = con._wire.session.server
        if owner not in heads:
            heads[owner] = await read(con)
        return heads[owner]

    return patch.object(log, "read_head", read_head)


def doubt_is_failure() -> AbstractContextManager[Any]:
    """A batch whose COMMIT was not answered is taken for undone."""

    async def recovered(self: Any, con: Any) -> int:
        return 0

    return patch.object(PoolSink, "_recovered", recovered)


def doubt_is_success() -> AbstractContextManager[Any]:
    """A batch whose COMMIT was not answered is taken for done."""

    async def chain_batch(self: Any) -> Any:
        batch = None
        try:
            async with self._acquire() as con, con.transaction(isolation="read_committed"):
                batch = await log.chain_batch(con, entries_max=self._entries_max)
        except CommitOutcomeUnknown:
            pass
        return batch

    return patch.object(PoolSink, "chain_batch", chain_batch)


def empty_means_done() -> AbstractContextManager[Any]:
    """The drain ends when the queue is empty, and not when its producers have ended."""

    async def serve(self: Any) -> None:
        ended = False
        while not ended:
            ended = await self._collect() or self._draining.is_set()
            if ended or self._queue.pending or await self._sweep():
                await self._chain_all()

    return patch.object(AuditWorker, "_serve", serve)


def pressure_ends_at_the_worker() -> AbstractContextManager[Any]:
    """The worker takes what is queued however much it has already: the queue's bound bounds nothing."""

    def take_queued(self: Any) -> None:
        while True:
            try:
                self.expect([self._entries_out.receive_nowait()])
            except (trio.WouldBlock, trio.EndOfChannel):
                return

    return patch.object(EntryQueue, "take_queued", take_queued)


def no_shield() -> AbstractContextManager[Any]:
    """The worker's scope is a plain one: cancelled with its nursery."""
    init = AuditWorker.__init__

    def unshielded(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self._scope = trio.CancelScope()

    return patch.object(AuditWorker, "__init__", unshielded)


def no_deadline() -> AbstractContextManager[Any]:
    """The drain begins, and nobody says when it has to end."""
    begin = AuditWorker.begin_drain
    return patch.object(AuditWorker, "begin_drain", lambda self, deadline: begin(self, math.inf))


def clones_left_open() -> AbstractContextManager[Any]:
    """A task that ends forgets to close its end of the queue."""
    return patch.object(Producer, "close", lambda self: None)


def last_row_forgotten() -> AbstractContextManager[Any]:
    """Off by one: a batch takes all its entries from the outbox and writes all but the last."""
    insert = log.insert_rows

    async def insert_rows(con: Any, rows: Sequence[Any]) -> None:
        await insert(con, rows[:-1] if len(rows) > 1 else rows)

    return patch.object(log, "insert_rows", insert_rows)


def spool_forgets() -> AbstractContextManager[Any]:
    """The spool says yes, and writes nothing."""

    async def append(self: Any, entries: Any) -> None:
        await trio.lowlevel.checkpoint()

    return patch.object(Spool, "append", append)


def answered_before_it_is_known() -> AbstractContextManager[Any]:
    """A batch that was not answered is taken for done."""
    store = batch.store

    async def believed(own: Any, part: Sequence[Any], records: Sequence[Any]) -> Any:
        sent = False

        async def get() -> Any:
            nonlocal sent
            if sent:
                raise _Believed
            con = await own.get()
            sent = True
            return con

        try:
            return await store(SimpleNamespace(get=get), part, records)
        except _Believed:
            return batch.Stored(dict.fromkeys((submission.event.id for submission in part), 1))

    return patch.multiple("relay.ingest.commit", store=believed)


class _Believed(Exception):
    """There was a first try."""


def done_twice() -> AbstractContextManager[Any]:
    """A commit that was not answered is taken for undone: the client is told no, or it is done again."""

    async def committed(*_: Any) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    return patch.multiple("relay.ingest.effects", committed=committed)


def polite_at_the_deadline() -> AbstractContextManager[Any]:
    """At the deadline the statement is cancelled, as the server would like it, and the connection is not cut."""
    return patch.object(PoolSink, "abort", lambda self: None)


def record_does_not_wait() -> AbstractContextManager[Any]:
    """Whoever records an entry is told yes as soon as it stands in the queue."""

    async def record(self: Any, entries: Sequence[Any]) -> None:
        try:
            await self._plain_in.send(batch.Submission(None, None, list(entries), trio.Event()))
        except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
            raise StoreGone("nothing is stored any more") from error

    return patch.object(Ingest, "record", record)


PLANTS: dict[str, Plant] = {
    "head remembered": head_remembered,
    "doubt is failure": doubt_is_failure,
    "doubt is success": doubt_is_success,
    "empty means done": empty_means_done,
    "pressure ends at the worker": pressure_ends_at_the_worker,
    "no shield": no_shield,
    "no deadline": no_deadline,
    "clones left open": clones_left_open,
    "last row forgotten": last_row_forgotten,
    "spool forgets": spool_forgets,
    "answered before it is known": answered_before_it_is_known,
    "done twice": done_twice,
    "polite at the deadline": polite_at_the_deadline,
    "record does not wait": record_does_not_wait,
}
