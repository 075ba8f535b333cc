"""The socket of one connection, in the two roles that asyncpg's compiled protocol knows: its loop and its transport.

In: bytes from the server, fed to `protocol.data_received()`. Out: what the protocol hands to `write()`. The protocol
awaits nothing but the future that `create_future()` made; awaiting it runs `pump()`, so the task that asked the
question reads its own answer ("pull"): there is no reader task, and a query costs no task switch beyond the wait for
the socket.

Rules
- One task at a time. `Connection` guards that; the wire relies on it.
- A command in flight is never left behind: whoever is cancelled in `pump()` first brings the session back to rest, or
  drops the connection after `settle_seconds`.
- The protocol is never called from inside one of its own calls: a failed `write()` is left for the pump to report.
- A closed socket's number may belong to another one a moment later: nothing is awaited on it once `lost` is set.

Not done here: connecting (connect.py), turning errors into `ConnectionLost` (connection.py).
"""

from __future__ import annotations

import collections
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from .tls import TLS
from .waiter import Waiter

_log = logging.getLogger(__name__)

SETTLE_SECONDS = 2.0
# asyncio's own read size. glibc keeps a freed block of this size, so it costs no system call per read.
_RECEIVE_BYTES = 262_144
# A CancelRequest that overtakes its query is ignored by the server, so it is repeated until the answer is there.
_CANCEL_AGAIN_SECONDS = 0.05
_TERMINATE = b"X\x00\x00\x00\x04"

Bytes = bytes | bytearray | memoryview
CancelRequest = Callable[[int, int], Awaitable[None]]


class Wire:
    """Socket, outgoing queue and pump. `protocol` and `on_stuck` are set by the connector before the first byte."""

    def __init__(
        self,
        sock: socket.socket,
        tls: TLS | None,
        send_cancel_request: CancelRequest,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self.sock = sock
        self.tls = tls
        self.protocol: Any = None
        # Ends the session at once. None while the session is being set up: then there is nothing worth saving.
        self.on_stuck: Callable[[], None] | None = None
        self.settle_seconds = settle_seconds
        # False while a command runs that must not be cancelled halfway: being cancelled then ends the session.
        self.interruptible = True
        # The future of the operation in flight, or of the last one.
        self.waiter = Waiter(self)
        self.lost = False
        # What ended the session, if it was an error of the network or of the peer.
        self.loss: BaseException | None = None
        self._send_cancel_request = send_cancel_request
        self._fd = sock.fileno()
        self._out: collections.deque[Bytes] = collections.deque()
        self._write_error: Exception | None = None

    # ---- the loop's face

    def create_future(self) -> Waiter:
        self.waiter = waiter = Waiter(self)
        return waiter

    def time(self) -> float:
        return trio.current_time()

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return True  # asked by asyncpg's finaliser only: it must not touch the socket from the garbage collector

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        callback(*args)

    def call_later(self, *_: Any) -> None:
        raise RuntimeError("asyncpg's timers need asyncio: wrap the call in trio.fail_after()")

    def create_task(self, coroutine: Any) -> None:
        coroutine.close()
        raise RuntimeError("asyncpg's background tasks need asyncio")

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        _log.warning("asyncpg: %s", context.get("message"))

    # ---- the transport's face

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self.sock
        if name == "ssl_object":
            return self.tls.object if self.tls else None
        return default

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.lost

    def write(self, data: Bytes) -> None:
        """Send what the kernel takes now and queue the rest; the pump sends that while it waits for the answer."""
        if self.lost or self._write_error is not None:
            return
        if self.tls is not None:
            try:
                data = self.tls.encrypt(data)
            except ssl.SSLError as error:
                self._write_error = error
                return
        if not self._out:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._write_error = error
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._out.append(data)

    def writelines(self, buffers: list[Bytes]) -> None:
        self.write(b"".join(buffers))

    def abort(self) -> None:
        """Close the socket at once. Synchronous, callable from any task; a task that waits on the socket is woken."""
        self._lose(None)

    close = abort

    def _lose(self, error: BaseException | None) -> None:
        if self.lost:
            return
        self.lost = True
        self.loss = error
        self._out.clear()
        with contextlib.suppress(RuntimeError):  # after trio.run() has ended there is nobody to notify
            trio.lowlevel.notify_closing(self._fd)
        self.sock.close()
        if self.protocol is not None:
            self.protocol.connection_lost(error)

    # ---- the pump

    async def pump(self, waiter: Waiter) -> None:
        """Send and receive until `waiter` has its answer.

        Cancellation: the server is told, its answer awaited for at most `settle_seconds` (shielded), and only then does
        Cancelled go on: the connection is usable again, or closed.
        """
        try:
            await self._run_until(waiter)
        except BaseException:
            await self._settle(waiter)
            raise

    async def _run_until(self, waiter: Waiter) -> None:
        while not waiter.finished:
            if self.lost:
                waiter.set_exception(ConnectionResetError("the connection is closed"))
            else:
                await self._turn()

    async def _turn(self) -> None:
        """Send what is queued, wait once, read once. Raises nothing but Cancelled: see `lost`."""
        try:
            if self._out and not self._flush():
                await self._wait_either()
            elif self._write_error is not None:
                self._hear_last_words()
            else:
                await trio.lowlevel.wait_readable(self._fd)
        except (trio.ClosedResourceError, OSError) as error:
            self._lose(error)
        if not self.lost:
            self._receive()

    def _receive(self) -> None:
        """One read. A dead or lying peer ends the connection, which finishes the waiter with an error."""
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
            if not data:
                self._lose(None)
            elif self.tls is None:
                self.protocol.data_received(data)
            else:
                self._receive_tls(self.tls, data)
        except BlockingIOError:
            pass
        except Exception as error:
            self._lose(error)

    def _receive_tls(self, tls: TLS, data: bytes) -> None:
        plain = tls.decrypt(data)
        if answer := tls.take_output():
            self._out.append(answer)
        if plain:
            self.protocol.data_received(plain)

    def _hear_last_words(self) -> None:
        """After a failed write: a server that ends a session says why before it closes. Read that first."""
        error = self._write_error
        try:
            while data := self.sock.recv(_RECEIVE_BYTES):
                self.protocol.data_received(data if self.tls is None else self.tls.decrypt(data))
        except Exception as reason:
            _log.debug("reading what a closing server still said: %r", reason)
        self._lose(error)

    def _flush(self) -> bool:
        """Send queued bytes; true if none are left."""
        while self._out:
            data = self._out[0]
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                return False
            except OSError as error:
                self._out.clear()
                self._write_error = error
                return True
            if sent < len(data):
                self._out[0] = memoryview(data)[sent:]
                return False
            self._out.popleft()
        return True

    async def _wait_either(self) -> None:
        """Wait for readable or writable: a server that is itself stuck in a write would never read on."""

        async def wait(condition: Callable[[socket.socket], Awaitable[None]]) -> None:
            # The send or receive that follows reports what is wrong. A closed socket has no number: ValueError.
            with contextlib.suppress(trio.ClosedResourceError, OSError, ValueError):
                await condition(self.sock)
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, trio.lowlevel.wait_readable)
                nursery.start_soon(wait, trio.lowlevel.wait_writable)
        except BaseExceptionGroup:
            # Being cancelled from outside makes the nursery raise a *group* of Cancelled; callers expect a plain one.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise

    # ---- bringing a session to rest

    async def _settle(self, waiter: Waiter) -> None:
        if self.on_stuck is None:
            self.abort()
            return
        if not self.interruptible:
            self.on_stuck()
            return
        with trio.move_on_after(self.settle_seconds, shield=True):
            await self._interrupt(waiter)
        if not waiter.finished:
            self.on_stuck()

    async def _interrupt(self, waiter: Waiter) -> None:
        """Ask the server to stop the command in flight, and read on until its answer is complete.

        The rest of a half-sent message goes out first: until then the server runs nothing that could be cancelled.
        Each request is finished (the server closes its socket once the signal is sent) before we read on, so none can
        hit the next command.
        """
        await self.drain_output()
        again_seconds = _CANCEL_AGAIN_SECONDS
        while not waiter.finished:
            try:
                await self._send_cancel_request(self.protocol.backend_pid, self.protocol.backend_secret)
            except (OSError, EOFError):
                # The server may be restarting, or out of descriptors; the answer may still come by itself.
                await trio.lowlevel.checkpoint()
            with trio.move_on_after(again_seconds):
                await self._run_until(waiter)
            again_seconds *= 2

    async def drain_output(self) -> None:
        """Wait until everything queued has been sent, reading meanwhile. Raises nothing but Cancelled: see `lost`."""
        while self._out and not self.lost and not self._flush():
            await self._wait_either()
            if not self.lost:
                self._receive()

    @property
    def blocked(self) -> bool:
        """Whether bytes are waiting for the kernel to take them."""
        return bool(self._out)

    async def finish_copy(self, reason: bytes) -> None:
        """Give up a COPY whose rows ended early: say CopyFail and read the answer, or drop the connection."""
        waiter = self.waiter
        if waiter.finished:
            return
        with trio.move_on_after(self.settle_seconds, shield=True):
            self.write(b"f" + (len(reason) + 5).to_bytes(4, "big") + reason + b"\x00")
            await self._run_until(waiter)
        if not waiter.finished and self.on_stuck is not None:
            self.on_stuck()

    async def wait_message(self) -> None:
        """Wait for, and feed, whatever the server sends unasked (notifications). Cancellation is harmless here."""
        assert not self.lost
        await self._turn()

    async def say_goodbye(self) -> None:
        """Send Terminate and wait until the server has closed its end. The caller sets the deadline."""
        self.write(_TERMINATE)
        while not self.lost:
            await self._turn()

    def is_alive(self) -> bool:
        """Whether an idle session is still there, as far as the kernel knows; one system call, no waiting.

        Raises nothing. A server that ends a session leaves an ErrorResponse and the end of the stream; notices, changed
        parameters and notifications are harmless and stay for the next command.
        """
        if self.lost or self._write_error is not None:
            return False
        try:
            if self.tls is None:
                return self.sock.recv(1, socket.MSG_PEEK) in (b"N", b"S", b"A")
            data = self.sock.recv(_RECEIVE_BYTES)
            if not data:
                return False
            plain = self.tls.decrypt(data)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if plain[:1] not in (b"", b"N", b"S", b"A"):
            self._write_error = ConnectionResetError("the server has ended the session")  # read now, so remembered
            return False
        if plain:
            self.protocol.data_received(plain)
        return not self.lost
