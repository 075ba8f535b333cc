"""COPY in, paced by the socket.

asyncpg builds the binary rows; its flow control is an `asyncio.Event` and its way of giving up is asyncio's
cancellation. So the rows reach it through `PacedRows`, which waits for the socket between two rows and carries errors
past it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Self

import trio

from .wire import Wire

Row = Sequence[Any]
Rows = Iterable[Row] | AsyncIterable[Row]

# Rows between two checkpoints of a COPY that never blocks.
_ROWS_PER_CHECKPOINT = 256


class Abandoned(BaseException):
    """Carries an error of the caller's rows past asyncpg, which would meet an `Exception` with asyncio's means."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class PacedRows:
    """An async iterator over any kind of rows that hands them on no faster than the socket takes them."""

    def __init__(self, records: Rows, wire: Wire) -> None:
        self._wire = wire
        self._count = 0
        self._later: AsyncIterator[Row] | None = None
        self._now: Iterator[Row] | None = None
        if isinstance(records, AsyncIterable):
            self._later = aiter(records)
        else:
            self._now = iter(records)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Row:
        if self._wire.blocked:
            await self._wire.drain_output()
        elif self._count % _ROWS_PER_CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()
        self._count += 1
        try:
            if self._later is not None:
                return await anext(self._later)
            assert self._now is not None
            for row in self._now:
                return row
        except StopAsyncIteration:
            raise
        except Exception as error:
            raise Abandoned(error) from error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the caller's generator, which may have been left in the middle."""
        close = getattr(self._later, "aclose", None)
        if close is not None:
            await close()
