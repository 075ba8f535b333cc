"""The launch forms: how Hypercorn and the supervisor come together in one process.

    relay serve, python -m relay                       serve()            our own process, Hypercorn as a part of it
    hypercorn -c hypercorn.toml relay.asgi:app         take_over()        Hypercorn's process (workers = 0), or a
    hypercorn -k trio -w 0 | -w 1 relay.asgi:app                          worker that its parent process has spawned

Theory
------
Hypercorn's Trio worker imports the application and only then looks up `worker_serve` in its module, to run it as the
main task. `take_over`, called by that import, puts a function of ours there: so the supervisor owns the main task in
every form, Hypercorn's server is one child of the root nursery, and there is one way to start, to stop and to exit.
The alternative, a supervisor inside the ASGI lifespan, has to raise KeyboardInterrupt in Hypercorn's main task to stop
it, and its failures are swallowed, or answered with exit code 0.

What remains Hypercorn's: it has made and bound the sockets; with a parent process, that one reports 0 whatever we
answer, and starts a worker anew that ended with 0 by itself. A worker that refuses to start ends with 2, so no loop.
"""

from __future__ import annotations

import logging
import multiprocessing
import resource
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn
from urllib.parse import urlsplit

import hypercorn.trio.run as hypercorn_run
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config, Sockets

from relay import logs
from relay.config import LOOPBACK_HOSTS, Settings
from relay.errors import ConfigError
from relay.last_message import ASGIApp, always_sent
from relay.shutdown import ExitCode
from relay.supervisor import Assemble, supervise
from relay.watchdog import Watchdog
from relay.websocket.listener import BACKLOG, ListenerLimits

KEEP_ALIVE_SECONDS = 60  # longer than the 30 s between the polls of most clients; nginx has 75

_worker_serve = hypercorn_run.worker_serve

log = structlog.get_logger(__name__)


class OuterApp:
    """The ASGI application that Hypercorn sees: answers the lifespan, passes HTTP on to the relay's own application."""

    def __init__(self) -> None:
        self.inner: ASGIApp | None = None
        """Set while a supervisor runs."""

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            # Upgrades are taken at the socket, before HTTP begins. What comes here is one inside a running HTTP
            # connection, or over HTTP/2; the client may try again on a connection of its own.
            await receive()
            await send({"type": "websocket.close", "code": 1002})
        else:
            assert self.inner is not None
            await self.inner(scope, receive, send)

    async def _lifespan(self, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Any]) -> None:
        await receive()
        if self.inner is None:
            # Not our worker_serve: another server, or Hypercorn with its default (asyncio) worker.
            message = "relay runs on Hypercorn's Trio worker: hypercorn -c hypercorn.toml relay.asgi:app"
            _say(message)
            await send({"type": "lifespan.startup.failed", "message": message})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


class HypercornServer:
    """Hypercorn's Trio server over sockets that are bound already, as the supervisor's web server."""

    def __init__(
        self,
        settings: Settings,
        config: Config,
        sockets: Sockets,
        outer: OuterApp,
        told_to_stop: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self._config = config
        self._sockets = sockets
        self._outer = outer
        self._told_to_stop = told_to_stop
        _configure(config, settings)

    async def serve(
        self, app: ASGIApp, *, stop: Callable[[], Awaitable[None]], task_status: trio.TaskStatus[Sequence[str]]
    ) -> None:
        for sock in self._sockets.insecure_sockets:
            sock.listen(self._config.backlog)
        self._outer.inner = always_sent(app)
        wrapped = ASGIWrapper(self._outer)
        await _worker_serve(
            wrapped, self._config, sockets=self._sockets, shutdown_trigger=stop, task_status=task_status
        )

    async def wait_told_to_stop(self) -> str:
        if self._told_to_stop is None:
            await trio.sleep_forever()
            raise AssertionError
        return await self._told_to_stop()


def _configure(config: Config, settings: Settings) -> None:
    """What the relay needs of Hypercorn, whatever its own file and command line say."""
    config.graceful_timeout = settings.close_seconds
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.h11_max_incomplete_size = config.h2_max_header_list_size = ListenerLimits().head_bytes
    config.include_server_header = False
    config.backlog = max(config.backlog, BACKLOG)
    if config.errorlog == "-":
        config.errorlog = logging.getLogger("hypercorn.error")  # into our log, in its form


# -- our own process -------------------------------------------------------------------------------------------------


def serve(settings: Settings, assemble: Assemble) -> ExitCode:
    """Run a relay in this process until it stops. The port is taken first, so that a conflict shows before any work.

    Raises:
        ConfigError: An address cannot be used.
    """
    prepare_process()
    logs.configure(settings.log_level, settings.log_format)
    config = Config()
    config.bind = [settings.bind_addr]
    if settings.uds_path is not None:
        config.bind.append(f"unix:{settings.uds_path}")
    try:
        sockets = config.create_sockets()
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be a host's
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"SPROUT_BIND_ADDR: cannot listen on {' and '.join(config.bind)}: {reason}") from None
    settings = _with_port(settings, sockets.insecure_sockets[0])
    server = HypercornServer(settings, config, sockets, OuterApp())
    try:
        return trio.run(partial(supervise, settings, server, assemble, watchdog=Watchdog()))
    finally:
        if settings.uds_path is not None:
            settings.uds_path.unlink(missing_ok=True)


def _with_port(settings: Settings, sock: socket.socket) -> Settings:
    """The address that clients sign, where nobody has set it: that of the socket (its port may be any free one)."""
    if "relay_url" in settings.model_fields_set or sock.family == socket.AF_UNIX:
        return settings
    return settings.model_copy(update={"relay_url": f"ws://localhost:{sock.getsockname()[1]}"})


def prepare_process() -> None:
    """As many files as the system allows: 10 000 connections and the usual limit of 1024 do not go together."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS: the hard limit is "unlimited", and refused
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# -- Hypercorn's process ---------------------------------------------------------------------------------------------


def take_over(settings: Settings, assemble: Assemble, outer: OuterApp) -> None:
    """Make Hypercorn's Trio worker, which is importing us, run the supervisor. See the module's theory."""
    assert hypercorn_run.worker_serve is _worker_serve, "Hypercorn's Trio worker was taken over twice"

    async def worker_serve(
        _app: Any,
        config: Config,
        *,
        sockets: Sockets | None = None,
        shutdown_trigger: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        assert sockets is not None, "Hypercorn's command line makes the sockets"
        refuse_options(config)
        prepare_process()
        own = _with_port(settings, sockets.insecure_sockets[0])
        warn_about_address(own, sockets.insecure_sockets)
        server = HypercornServer(own, config, sockets, outer, _launcher(shutdown_trigger))
        code = await supervise(own, server, assemble, watchdog=Watchdog())
        # The only way that a code takes through Hypercorn; also 0, so that nothing of Hypercorn's runs after us.
        raise SystemExit(int(code))

    module: Any = hypercorn_run  # replaced at run time, on purpose
    module.worker_serve = worker_serve


def refuse_options(config: Config) -> None:
    """Ends the process, with code 2 and a sentence, where Hypercorn was told to do what does not work here."""
    if config.workers > 1:
        refuse(
            f"{config.workers} workers: the processes of a relay cannot talk to each other yet, so a subscriber would "
            "miss what another worker stores. Start one: hypercorn -k trio -w 0 (or workers = 0 in hypercorn.toml)."
        )
    if config.certfile or config.keyfile or config.ca_certs or config.quic_bind:
        refuse(
            "certificates: Hypercorn's TLS and QUIC options do not work here, since WebSocket upgrades are taken "
            "from the plain socket. Let Caddy, nginx or another proxy in front end TLS."
        )
    if config.max_requests is not None:
        refuse("max-requests: a relay that ended after so many requests would drop all its subscribers. Remove it.")


def warn_about_address(settings: Settings, sockets: Sequence[socket.socket]) -> None:
    """With Hypercorn's own `bind`, RELAY_URL is easily forgotten, and then nobody can log in."""
    if not sockets or sockets[0].family == socket.AF_UNIX or settings.relay_host not in LOOPBACK_HOSTS:
        return
    port, public = sockets[0].getsockname()[1], urlsplit(settings.relay_url)
    if port != (public.port or {"ws": 80, "wss": 443}[public.scheme]):
        log.warning("clients log in to RELAY_URL, which is another port", RELAY_URL=settings.relay_url, port=port)


def _launcher(shutdown_trigger: Callable[[], Awaitable[None]] | None) -> Callable[[], Awaitable[str]] | None:
    """What a worker with a parent process listens to: the parent's wish, and the parent's end.

    Without the second, a parent that was killed would leave a worker that serves on and that nobody knows.
    """
    parent = multiprocessing.parent_process()
    if shutdown_trigger is None or parent is None:
        return None

    async def told() -> str:
        reasons: list[str] = []
        async with trio.open_nursery() as nursery:

            async def wait(function: Callable[[], Awaitable[object]], reason: str) -> None:
                await function()
                reasons.append(reason)
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, shutdown_trigger, "asked by Hypercorn's parent process")
            nursery.start_soon(
                wait, partial(trio.lowlevel.wait_readable, parent.sentinel), "Hypercorn's parent process is gone"
            )
        return reasons[0]

    return told


def refuse(sentence: str) -> NoReturn:
    """Say why, and end with the code that means "starting again will not help"."""
    _say(sentence)
    raise SystemExit(int(ExitCode.REFUSED))


def _say(sentence: str) -> None:
    sys.stderr.write(f"relay: {sentence}\n")
    sys.stderr.flush()
