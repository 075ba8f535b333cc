"""A small server behind the real listener, as a process of its own: `python -m tests.websocket.echo_server '{...}'`.

Prints its port, serves until SIGTERM, then prints its listener's statistics as JSON. The WebSocket side echoes through
`Connection` and `Outbound`; the HTTP side answers /ready, /big (more than any socket buffer) and NIP-11 at /.
Options: `connections_max`, `arrivals_max` (upgrades that may come, ever), `limits` (of `ListenerLimits`), `files_max`
(RLIMIT_NOFILE), `uds` (a path).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import resource
import signal
import sys

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from relay.fanout.outbound import CloseReason, Outbound
from relay.nostr.messages import ws_frame
from relay.websocket.connection import Connection
from relay.websocket.frames import Decoder
from relay.websocket.head import switch_protocols
from relay.websocket.listener import ListenerLimits, RequestHead, configure, install

BIG = 64 << 20


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    assert scope["type"] == "http", "an upgrade reached the app"
    assert not any(name == b"upgrade" for name, _ in scope["headers"])
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    status, body = {
        "/ready": (200, b"ready"),
        "/big": (200, b"x" * BIG),
        "/": (200, b'{"name":"document"}'),
        "/crash": (0, b""),
    }.get(scope["path"], (404, b""))
    assert status, "asked to crash"
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Echo:
    """Counts its connections before the first checkpoint, as the protocol asks."""

    def __init__(self) -> None:
        self.live = 0

    async def serve(self, stream: trio.SocketStream, head: RequestHead, peer: str, early: bytes) -> None:
        self.live += 1
        try:
            async with trio.open_nursery() as nursery:
                await self._echo(stream, head, peer, early, nursery)
                nursery.cancel_scope.cancel()
        finally:
            self.live -= 1

    async def _echo(self, stream, head, peer, early, nursery):
        if head.query == "crash":
            raise RuntimeError("asked to crash")

        def on_close(reason: CloseReason) -> None:
            nursery.cancel_scope.cancel()

        outbound = Outbound(stream, nursery, on_close=on_close)
        outbound.offer(switch_protocols(head))
        connection = Connection(stream, outbound, Decoder(65536, 100), early)
        try:
            while (message := await connection.receive()) is not None:
                text = isinstance(message, str)
                outbound.offer(ws_frame(f"{peer} {message}".encode() if text else message, 1 if text else 2))
            await connection.part()
        except trio.Cancelled:
            with trio.move_on_after(2, shield=True):
                await connection.close(1012, "restarting")
            raise


async def main(options: dict) -> None:
    echo = Echo()
    limits = ListenerLimits(**options.get("limits", {}))
    connections_max = options.get("connections_max", 1000)
    arrivals = iter(range(options.get("arrivals_max", 1_000_000)))
    listener = install(
        echo,
        arrival=lambda peer: None if peer in ("127.0.0.1", "unix") and next(arrivals, None) is not None else 29.2,
        admission=lambda: echo.live < connections_max,
        limits=limits,
    )
    config = Config()
    configure(config)
    config.bind = [f"unix:{options['uds']}" if "uds" in options else "127.0.0.1:0"]
    config.graceful_timeout = 1.0
    config.errorlog = None
    stop = trio.Event()

    async def wait_for_signal(task_status):
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                stop.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(wait_for_signal)
        [address] = await nursery.start(lambda task_status: serve(
            app, config, shutdown_trigger=stop.wait, task_status=task_status
        ))  # fmt: skip
        if "files_max" in options:
            resource.setrlimit(resource.RLIMIT_NOFILE, (options["files_max"], options["files_max"]))
        print(address.rpartition(":")[2], flush=True)
        await stop.wait()
        nursery.cancel_scope.deadline = trio.current_time() + 30
        # `serve` ends by itself; the signal receiver does not.
        while len(nursery.child_tasks) > 1:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    print(json.dumps(dataclasses.asdict(listener.statistics())), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    trio.run(main, json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
