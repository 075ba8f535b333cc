"""The shared port: looks at each connection's first request and opens one of two doors.

Flows in: connections that Hypercorn accepted. Flows out: WebSocket upgrades, to a `WebSocketHandler`; everything else,
to Hypercorn and the ASGI app, with what was read of it put in front again. Hypercorn owns the port, the accept loop,
the nursery with one task per connection, and the moment when accepting stops. Not done here: the answer to an upgrade,
the list of live connections (both the handler's), TLS (ends in front: the first look needs a plain socket).

Hypercorn has no hook for this, so `install` replaces the class that it makes for each connection. What else differs:

* Every exception ends at its connection. Hypercorn lets them escape into the server's nursery, where one packet (an
  upgrade with any byte behind it) would end the process.
* A client that stops reading its response is cut off (`plain.HttpStream`).
* Upgrades that we do not take are served as plain requests, with the upgrade taken out of their head: NIP-11 requests
  that carry one, other paths, h2c. Where the head cannot be seen in time (a later request of a connection, HTTP/2), the
  app's place is taken by a refusal.

The accept loop itself is Trio's: it survives aborted connections, and when file descriptors run out it pauses for
100 ms and goes on.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import h11
import hypercorn.trio.run as hypercorn_run
import structlog
import trio
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer

from relay.errors import ConfigError, leaves
from relay.websocket.head import Refusal, RequestHead, parse_head, upgrade_fault, without_upgrade
from relay.websocket.opening import HeadTooLong, read_head
from relay.websocket.origin import OriginPolicy, same_host_or
from relay.websocket.plain import HttpStream, refuse

__all__ = ["BACKLOG", "Listener", "ListenerLimits", "ListenerStatistics", "RequestHead", "WebSocketHandler", "install"]

_log = structlog.get_logger(__name__)

# Connections that wait to be accepted, e.g. when everybody reconnects; the kernel cuts it to net.core.somaxconn.
BACKLOG = 4096
# Asked of the kernel for each WebSocket: enough for a burst, and a bound on what a client that does not read can hold.
SEND_BUFFER_BYTES = 256 << 10
# The backstop: the kernel gives up a peer that has acknowledged nothing for so long. Longer than our own limits.
TCP_USER_TIMEOUT_MS = 30_000
RETRY_AFTER_SECONDS = 5


class WebSocketHandler(Protocol):
    """Serves one connection that asked for an upgrade."""

    async def serve(self, stream: trio.SocketStream, head: RequestHead, peer: str, early: bytes) -> None:
        """Answer the upgrade, which has no fault, and do everything after it.

        `peer`: the address of the other end without port, or "unix". `early`: what came behind the head. The handler
        counts the connection before its first checkpoint, so that `admission` sees it. Ownership: the stream is closed
        after the return, if it is not before; what is raised is logged and ends only this connection."""
        ...


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """`head_*`: size and time that the head of a request may take (16 KiB is h11's bound, too).

    `send_stall_seconds`: for how long an HTTP client may take nothing.
    `stop_seconds`: what an HTTP response still gets once the server stops."""

    head_bytes: int = 16 << 10
    head_seconds: float = 10.0
    send_stall_seconds: float = 10.0
    stop_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class ListenerStatistics:
    """Counts since the start. `no_head`: closed before a whole request had come. `refused`: by HTTP status."""

    connections: int
    websockets: int
    http: int
    no_head: int
    contained_errors: int
    refused: dict[int, int]


@dataclass(slots=True)
class Listener:
    """What all connections of one `install` share."""

    handler: WebSocketHandler
    arrival: Callable[[str], float | None]
    admission: Callable[[], bool]
    origin_allowed: OriginPolicy
    takes_path: Callable[[str], bool]
    limits: ListenerLimits
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)

    def statistics(self) -> ListenerStatistics:
        return ListenerStatistics(
            connections=self.counts["connections"],
            websockets=self.counts["websockets"],
            http=self.counts["http"],
            no_head=self.counts["no_head"],
            contained_errors=self.counts["contained_errors"],
            refused=dict(self.refused),
        )

    def takes(self, head: RequestHead) -> bool:
        """Whether the request is for the WebSocket door. The relay's document has precedence, as in the original."""
        return head.is_websocket_upgrade and not head.wants_relay_document and self.takes_path(head.path)

    def refusal(self, head: RequestHead, peer: str) -> Refusal | None:
        """Why this upgrade gets a plain answer; None if the handler gets it."""
        fault = upgrade_fault(head)
        if fault is not None:
            return fault
        if not self.origin_allowed(head):
            return Refusal(403, "origin not allowed")
        seconds = self.arrival(peer)
        if seconds is not None:
            return Refusal(429, "too many new connections", _retry_after(math.ceil(seconds)))
        if not self.admission():
            return Refusal(503, "too many connections", _retry_after(RETRY_AFTER_SECONDS))
        return None


class RelayTCPServer(TCPServer):
    """One accepted connection, in its own task of Hypercorn's server nursery."""

    listener: ClassVar[Listener]

    async def run(self) -> None:
        listener = self.listener
        listener.counts["connections"] += 1
        try:
            await self._route(listener)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer went away in the middle of something
        except* Exception as group:
            # What a client can provoke in Hypercorn and its parsers: a line, no traceback for each hostile packet.
            listener.counts["contained_errors"] += 1
            # Shortened: they may quote what the client sent.
            _log.warning("http connection failed", errors=[repr(error)[:200] for error in leaves(group)])

    async def _route(self, listener: Listener) -> None:
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = self.stream
        if not isinstance(stream, trio.SocketStream):  # TLS by Hypercorn: nothing to peek at, upgrades are refused
            self.app = _without_websockets(self.app)
            await super().run()
            return
        _tune(stream.socket)
        limits = listener.limits
        try:
            first = await read_head(
                stream.socket,
                bytes_max=limits.head_bytes,
                seconds=limits.head_seconds,
                stopping=self.context.terminated.is_set,
            )
        except HeadTooLong:
            await self._refuse(listener, stream, Refusal(431, "request head too large"))
            return
        if first is None:
            listener.counts["no_head"] += 1
            return
        raw, early = first
        head = parse_head(raw)
        if head is not None and listener.takes(head):
            await self._websocket(listener, stream, head, early)
        elif head is not None and "upgrade" in head.headers:
            await self._http(listener, stream, without_upgrade(raw) + early)
        else:
            await self._http(listener, stream, raw + early)

    async def _websocket(self, listener: Listener, stream: trio.SocketStream, head: RequestHead, early: bytes) -> None:
        peer = _peer(stream.socket)
        refusal = listener.refusal(head, peer)
        if refusal is not None:
            await self._refuse(listener, stream, refusal)
            return
        _tune_websocket(stream.socket)
        listener.counts["websockets"] += 1
        try:
            await listener.handler.serve(stream, head, peer, early)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except* Exception as group:  # the handler's own errors are ours, an OSError of its database too
            listener.counts["contained_errors"] += 1
            _log.error("websocket connection failed", peer=peer, exc_info=group)

    async def _refuse(self, listener: Listener, stream: trio.SocketStream, refusal: Refusal) -> None:
        listener.refused[refusal.status] += 1
        await refuse(stream, refusal)

    async def _http(self, listener: Listener, stream: trio.SocketStream, first: bytes) -> None:
        listener.counts["http"] += 1
        self.app = _without_websockets(self.app)
        bounded: Any = HttpStream(
            stream,
            first=first,
            in_head=self._in_head,
            head_seconds=listener.limits.head_seconds,
            stopping=self.context.terminated.is_set,
            stall_seconds=listener.limits.send_stall_seconds,
            stop_seconds=listener.limits.stop_seconds,
        )
        self.stream = bounded
        await super().run()

    def _in_head(self) -> bool:
        """Whether a part of a request's head has come, over HTTP/1.1. (HTTP/2 has frames for it, and their sizes.)"""
        protocol = self.protocol.protocol
        connection = protocol.connection
        return (
            isinstance(protocol, H11Protocol)
            and isinstance(connection, h11.Connection)
            and connection.their_state is h11.IDLE
            and bool(connection.trailing_data[0])
        )


def install(
    handler: WebSocketHandler,
    *,
    arrival: Callable[[str], float | None] = lambda peer: None,  # noqa: ARG005 - named for the reader
    admission: Callable[[], bool] = lambda: True,
    origin_allowed: OriginPolicy | None = None,
    takes_path: Callable[[str], bool] = lambda path: path == "/",
    limits: ListenerLimits | None = None,
) -> Listener:
    """Make every Trio server that Hypercorn starts from now on in this process use our connection class.

    `arrival`: asked, with the peer's address, for each upgrade that could be taken; seconds are answered with 429 and
    told as the time to wait. `admission`: asked last before the handler gets an upgrade; False is answered with 503.
    `origin_allowed`: False is answered with 403; by default as `same_host_or()`. `takes_path`: which paths are
    WebSocket endpoints.
    Raises ConfigError if Hypercorn is not built as expected."""
    server_module: Any = hypercorn_run
    present = getattr(server_module, "TCPServer", None)
    if not (isinstance(present, type) and issubclass(present, TCPServer)):
        raise ConfigError("this version of Hypercorn is not supported: hypercorn.trio.run.TCPServer is not there")
    listener = Listener(
        handler, arrival, admission, origin_allowed or same_host_or(), takes_path, limits or ListenerLimits()
    )
    server_module.TCPServer = type("InstalledTCPServer", (RelayTCPServer,), {"listener": listener})
    return listener


def configure(config: Config, limits: ListenerLimits | None = None) -> None:
    """Set what a server that we start ourselves needs of Hypercorn's configuration.

    Raises ConfigError for options that need TLS or QUIC in this process."""
    if config.certfile or config.keyfile or config.quic_bind:
        raise ConfigError("TLS ends in front of the relay: remove certfile, keyfile and quic_bind")
    config.backlog = BACKLOG
    config.h11_max_incomplete_size = (limits or ListenerLimits()).head_bytes


def _without_websockets(app: Any) -> Any:
    """The app, with Hypercorn's own WebSockets refused: they are upgrades that nobody could see coming."""

    async def guarded(scope: Any, receive: Any, send: Any, *hypercorn_helpers: Any) -> None:
        if scope["type"] != "websocket":
            await app(scope, receive, send, *hypercorn_helpers)
            return
        # No body: bytes behind such an upgrade end the connection (Hypercorn's fault), maybe before a body is out.
        headers = [(b"content-length", b"0"), (b"connection", b"close")] if scope["http_version"] != "2" else []
        await send({"type": "websocket.http.response.start", "status": 400, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b""})

    return guarded


def _tune(sock: trio.socket.SocketType) -> None:
    """For every TCP connection. (Trio has set TCP_NODELAY; a peer without it would answer in 40 ms.)"""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)


def _tune_websocket(sock: trio.socket.SocketType) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # Trio allows 16 KiB of unsent bytes, so that a writer task is woken late; we have none, and a write of several
        # joined frames would be cut at that size.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SEND_BUFFER_BYTES)


def _retry_after(seconds: int) -> tuple[tuple[str, str], ...]:
    return (("retry-after", str(max(1, seconds))),)


def _peer(sock: trio.socket.SocketType) -> str:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return "unix"
    address = ipaddress.ip_address(sock.getpeername()[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
