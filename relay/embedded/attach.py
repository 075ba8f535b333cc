"""A database for a command: the running relay's, or the same one started for the time of the command."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from relay.embedded import cluster
from relay.embedded.failures import DataDirBusy
from relay.embedded.handshake import ask
from relay.embedded.server import ANSWER_SECONDS, NO_SETTINGS, embedded_postgres

POLL_SECONDS = 0.05


@asynccontextmanager
async def attach_or_start(
    data_dir: Path,
    *,
    binaries: Path | None = None,
    cache_dir: Path = Path("/var/cache/relay"),
    settings: Mapping[str, str] = NO_SETTINGS,
    ready_seconds: float = 60.0,
    wait_seconds: float = 10.0,
) -> AsyncIterator[str]:
    """Yield the DSN of the database in `data_dir`: connect to the relay that runs on it, else start it and stop it.

    A relay that is starting, or another command that uses the directory, is waited for, `wait_seconds` at most.
    A database that a relay serves ends with that relay: the command then sees its connections break.

    Raises DataDirBusy after the wait, and any EmbeddedError of the start.
    """
    async with AsyncExitStack() as stack:
        deadline = trio.current_time() + wait_seconds
        while True:
            try:
                server = await stack.enter_async_context(
                    embedded_postgres(
                        data_dir,
                        binaries=binaries,
                        cache_dir=cache_dir,
                        settings=settings,
                        ready_seconds=ready_seconds,
                        purpose="command",
                    )
                )
                dsn = server.dsn
                break
            except DataDirBusy as busy:
                if busy.serves and busy.socket_dir is not None and await _answers(busy.socket_dir):
                    dsn = cluster.dsn(busy.socket_dir)
                    break
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(POLL_SECONDS)
        yield dsn


async def _answers(socket_dir: Path) -> bool:
    answer = None
    with trio.move_on_after(ANSWER_SECONDS):
        answer = await ask(socket_dir)
    return answer is not None and answer.serves
