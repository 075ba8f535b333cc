"""What asyncpg's protocol gets for an asyncio.Future: awaiting it reads the socket until the answer is complete.

In: `set_result` or `set_exception`, called by the protocol while the pump feeds it. Out: the result, to the one task
that awaits. It cannot be cancelled: whoever is cancelled while waiting brings the session to rest first
(`Wire.pump`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .wire import Wire


class Waiter:
    """The future of one protocol operation. Awaiting it reads the socket until the answer is complete."""

    __slots__ = ("_error", "_value", "_wire", "finished")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._value: Any = None
        self._error: BaseException | None = None
        self.finished = False

    def done(self) -> bool:
        return self.finished

    def cancelled(self) -> bool:
        return False

    def set_result(self, value: Any) -> None:
        self._value = value
        self.finished = True

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self.finished = True

    def exception(self) -> BaseException | None:
        return self._error

    def add_done_callback(self, callback: Callable[..., object], context: Any = None) -> None:
        # asyncpg's callback only serves its timers and asyncio's cancellation; neither exists here.
        pass

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self.finished:
            yield from self._wire.pump(self).__await__()
        error = self._error
        if error is not None:
            self._error = None
            try:
                raise error
            finally:
                del error  # else error → traceback → this frame → error would wait for the cycle collector
        return self._value
