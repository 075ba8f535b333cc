"""From a DSN to a `Connection`: addresses, TLS, start-up message, deadlines.

In: a DSN (`postgresql://user@host/db?sslmode=…`, several hosts, Unix sockets as `?host=/directory`) read by asyncpg's
own parser, PG* environment included. Out: a session in its first ReadyForQuery. The order of attempts is libpq's:
hosts in turn; `sslmode=prefer` tries TLS first, `allow` plain first. Not done here: keeping connections (pool.py).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import socket
import struct
from collections.abc import Callable
from typing import Any

import trio

from . import driver
from .connection import Connection
from .errors import CannotConnectNowError, ConnectFailed, InterfaceError, PostgresError
from .tls import TLS
from .wire import SETTLE_SECONDS, Wire

_SSL_REQUEST = struct.pack("!ll", 8, 80877103)
_CANCEL_REQUEST_CODE = 80877102
_RETRY_FIRST_SECONDS = 0.02
_RETRY_MAX_SECONDS = 0.5

Address = str | tuple[str, int]


async def connect(
    dsn: str,
    *,
    server_settings: dict[str, str] | None = None,
    statement_cache_size: int = 256,
    connect_seconds: float = 10.0,
    settle_seconds: float = SETTLE_SECONDS,
    answer_seconds: float = math.inf,
    jsonb_bytes: bool = False,
) -> Connection:
    """Open one session.

    `server_settings` are run-time parameters of the session (`{"lock_timeout": "2s"}`); `settle_seconds` bounds every
    wait that cancellation cannot shorten (BEGIN, COMMIT, ROLLBACK, the answer to a cancelled command). A verb without
    an answer for `answer_seconds` means that the connection is lost: more than any `statement_timeout` that is set.

    Raises: `ConnectFailed` where no server answered within `connect_seconds` or none is reachable; other
    `PostgresError`s where one answered with a refusal (password, unknown database, too many connections); ValueError
    or InterfaceError for a DSN without sense. Cancellation: at any point; nothing stays behind.
    """
    addresses, parameters, configuration = driver.parse_dsn(dsn, server_settings, statement_cache_size)
    failure: Exception = ConnectFailed("the DSN names no address")
    with trio.move_on_after(connect_seconds):
        for address, attempt in _attempts(addresses, parameters):
            try:
                connection = await _open_session(address, attempt, parameters, configuration, settle_seconds)
            except (OSError, EOFError, PostgresError, InterfaceError) as error:
                failure = _better(failure, error)
                if not _may_try_next(error):
                    break
                continue
            if await _has_wanted_role(connection, parameters.target_session_attrs):
                if jsonb_bytes:
                    connection.use_jsonb_bytes()
                connection.answer_seconds = answer_seconds
                return connection
            connection.terminate()
            failure = ConnectFailed(f"{address} is not {parameters.target_session_attrs.value}", transient=True)
        raise _as_connect_failed(failure)
    raise ConnectFailed(f"no answer from the server within {connect_seconds} s", transient=True)


async def connect_retrying(dsn: str, *, within_seconds: float, **options: Any) -> Connection:
    """Like `connect`, but wait for a server that is starting: refused, no socket yet, 57P03.

    Raises the last `ConnectFailed` after `within_seconds`, any other error at once.
    """
    deadline = trio.current_time() + within_seconds
    pause_seconds = _RETRY_FIRST_SECONDS
    options.setdefault("connect_seconds", within_seconds)
    while True:
        options["connect_seconds"] = max(0.0, min(options["connect_seconds"], deadline - trio.current_time()))
        try:
            return await connect(dsn, **options)
        except ConnectFailed as error:
            if not error.transient or trio.current_time() + pause_seconds >= deadline:
                raise
        await trio.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 2, _RETRY_MAX_SECONDS)


def _attempts(addresses: list[Address], parameters: Any) -> list[tuple[Address, Any]]:
    """Return every (address, parameters) to try in turn; the parameters differ in whether they carry a TLS context."""
    plain = parameters._replace(ssl=None)
    attempts: list[tuple[Address, Any]] = []
    for address in addresses:
        if isinstance(address, str) or not parameters.ssl:
            attempts.append((address, plain))
        elif parameters.sslmode == driver.SSLMode.allow:
            attempts += [(address, plain), (address, parameters)]
        elif parameters.sslmode == driver.SSLMode.prefer:
            attempts += [(address, parameters), (address, plain)]
        else:
            attempts.append((address, parameters))
    return attempts


def _may_try_next(error: Exception) -> bool:
    """A server that answered is taken at its word, unless it refuses the kind of transport, or everybody just now."""
    if not isinstance(error, PostgresError):
        return not isinstance(error, InterfaceError)
    # 28000: no pg_hba.conf entry for this user, database and encryption.
    return isinstance(error, (CannotConnectNowError, driver.ConnectionDoesNotExistError)) or error.sqlstate == "28000"


def _better(first: Exception, second: Exception) -> Exception:
    """Of two failures in a row keep what says more: a server's own words before a refused connection."""
    return first if isinstance(first, PostgresError) and not isinstance(second, PostgresError) else second


def _as_connect_failed(error: Exception) -> Exception:
    starting = isinstance(error, (CannotConnectNowError, driver.ConnectionDoesNotExistError))
    if isinstance(error, ConnectFailed) or (isinstance(error, (PostgresError, InterfaceError)) and not starting):
        return error
    failed = ConnectFailed(f"cannot connect: {error}", transient=starting or _is_transient(error))
    failed.__cause__ = error
    return failed


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_transient(inner) for inner in error.exceptions)
    if isinstance(error, OSError) and error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET, errno.EPIPE):
        return True
    # trio.open_tcp_stream reports "all attempts failed" as an OSError caused by the single ones.
    return error.__cause__ is not None and _is_transient(error.__cause__)


async def _has_wanted_role(connection: Connection, wanted: Any) -> bool:
    return wanted is None or wanted.value == "any" or bool(await connection.has_role(wanted))


async def _open_session(
    address: Address, attempt: Any, parameters: Any, configuration: Any, settle_seconds: float
) -> Connection:
    open_again = functools.partial(_open_transport, address, attempt)
    sock, tls = await open_again()
    wire = Wire(sock, tls, functools.partial(_send_cancel_request, open_again), settle_seconds)
    connected = wire.create_future()
    try:
        protocol = wire.protocol = driver.Protocol(address, connected, attempt, driver.Record, wire)
        protocol.connection_made(wire)
        await connected
        session = driver.Session(protocol, wire, wire, address, configuration, parameters)
    except BaseException:
        wire.abort()
        raise
    protocol.set_connection(session)
    wire.on_stuck = session.terminate
    return Connection(session, wire)


async def _open_transport(address: Address, parameters: Any) -> tuple[socket.socket, TLS | None]:
    sock = await _open_socket(address)
    try:
        tls = None
        if parameters.ssl and not isinstance(address, str):
            tls = await _start_tls(sock, address[0], parameters)
    except BaseException:
        _close_socket(sock)
        raise
    return sock, tls


async def _open_socket(address: Address) -> socket.socket:
    """Return a connected, non-blocking standard socket: the wire reads and writes it without Trio's wrapper."""
    if isinstance(address, str):
        stream = await trio.open_unix_socket(address)
    else:
        stream = await trio.open_tcp_stream(*address)
        # libpq's default: a dead peer is noticed even by a session that only listens.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wrapped = stream.socket
    sock = socket.socket(wrapped.family, wrapped.type, wrapped.proto, fileno=wrapped.detach())
    sock.setblocking(False)
    return sock


def _close_socket(sock: socket.socket) -> None:
    trio.lowlevel.notify_closing(sock)
    sock.close()


async def _start_tls(sock: socket.socket, host: str, parameters: Any) -> TLS:
    # `sslnegotiation=direct` (PostgreSQL 17) begins with the TLS handshake itself; older versions of asyncpg lack it.
    if getattr(getattr(parameters, "ssl_negotiation", None), "value", "postgres") != "direct":
        await _send_all(sock, _SSL_REQUEST)
        # One byte only: anything sent along with it in the clear would be an injection, and breaks the handshake.
        answer = await _receive_some(sock, 1)
        if answer != b"S":
            raise ConnectionError("the server does not offer TLS")
    tls = TLS(parameters.ssl, host)
    done = tls.step(b"")
    while True:
        await _send_all(sock, tls.take_output())
        if done:
            return tls
        done = tls.step(await _receive_some(sock, 65_536))


async def _send_all(sock: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


async def _receive_some(sock: socket.socket, limit: int) -> bytes:
    while True:
        await trio.lowlevel.wait_readable(sock)
        with contextlib.suppress(BlockingIOError):
            if data := sock.recv(limit):
                return data
            raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection during TLS negotiation")


async def _send_cancel_request(open_again: Callable[[], Any], pid: int, secret: int) -> None:
    """Ask the server to cancel what `pid` is doing; returns when the signal has been sent. Raises OSError."""
    sock, tls = await open_again()
    try:
        message = struct.pack("!llll", 16, _CANCEL_REQUEST_CODE, pid, secret)
        await _send_all(sock, tls.encrypt(message) if tls else message)
        # The server answers nothing: it closes the connection after the signal.
        await trio.lowlevel.wait_readable(sock)
    finally:
        _close_socket(sock)
