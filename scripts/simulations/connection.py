"""The relay's own `Connection` and `Pool` on a simulated server: all of theirs is real but the socket.

So BEGIN and COMMIT are shielded as they are in earnest, a COMMIT without an answer is the real `CommitOutcomeUnknown`,
and a cancelled statement first waits for the server, which may not answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import trio

from relay.asyncpg_trio import Connection, ConnectionLost, Pool
from scripts.simulations.server import Server, Session

SETTLE_SECONDS = 2.0


class SimulatedWire:
    """What `Connection` asks its socket."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.settle_seconds = SETTLE_SECONDS
        self.interruptible = True
        self.loss: BaseException | None = None

    @property
    def lost(self) -> bool:
        return self.session.gone.is_set()

    def is_alive(self) -> bool:
        return not self.lost


class SimulatedConnection(Connection):
    def __init__(self, session: Session) -> None:
        # Not super().__init__: what it would take from the socket is here, the rest as there.
        self._wire: Any = SimulatedWire(session)
        self._busy = self._listening = False
        self.answer_seconds = math.inf
        self.depth = self.statements = 0
        self.idle_since = self.opened_at = 0.0
        self.on_statement = None
        self.xid = None

    def is_in_transaction(self) -> bool:
        return self._wire.session.transaction is not None

    async def _ask(self, query: str, args: Sequence[Any], limit: int, want_tag: bool) -> Any:  # noqa: ARG002
        self._count(query)
        found = await self._exclusively(self._wire.session.statement, query, args)
        if want_tag:
            return found, b"INSERT 0 %d" % len(found)
        return found

    async def command(self, text: str) -> str:
        self._check_usable()
        answer: str = await self._exclusively(self._wire.session.command, text)
        return answer

    async def _exclusively(self, verb: Any, *args: Any) -> Any:
        self._busy = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            return await verb(*args)
        except trio.Cancelled:
            await self._settle()
            raise
        finally:
            self._busy = False

    async def _settle(self) -> None:
        """As the pump does: ask the server to cancel, wait for its word, then drop the connection."""
        server = self._wire.session.server
        if not self._wire.interruptible:
            return  # `command_uninterrupted` has waited already
        seconds = server.frozen_until - trio.current_time()
        if seconds > 0 and not self._wire.lost:
            with trio.move_on_after(min(seconds, SETTLE_SECONDS), shield=True):
                await self._wire.session.gone.wait()
            if seconds > SETTLE_SECONDS:
                self.terminate()

    async def command_uninterrupted(self, text: str) -> str:
        wire = self._wire
        wire.interruptible = False
        try:
            with trio.move_on_after(wire.settle_seconds, shield=True):
                return await self.command(text)
        finally:
            wire.interruptible = True
        self.terminate()
        raise ConnectionLost(f"{text.split()[0]} was not answered within {wire.settle_seconds} s")

    def terminate(self) -> None:
        self._wire.session.lose()


class SimulatedPool(Pool):
    def __init__(self, server: Server, owner: str, **options: Any) -> None:
        super().__init__("", clock=trio.current_time, size_min=0, **options)
        self._server = server
        self._owner = owner

    async def _connect(self) -> Connection:
        connection = await connect(self._server, self._owner)
        connection.opened_at = self._clock()
        self._opened_total += 1
        return connection


async def connect(server: Server, owner: str) -> Connection:
    """A new session; takes as long as the server is frozen.

    Raises:
        ConnectFailed: it is down.
    """
    await trio.sleep(max(server.frozen_until - trio.current_time(), server.mood.latency_seconds * server.dice.random()))
    return SimulatedConnection(server.connect(owner))
