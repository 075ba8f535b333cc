"""One relay process for all tests of a module that need nothing but its address."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest
import trio

from tests.support.launching import START_SECONDS, Launched, launched, reachable_dir


@pytest.fixture(scope="module")
def relay() -> Iterator[Launched]:
    """Started as an operator would, and stopped after the module. It lives in a thread with an event loop of its own,
    since every test has another one: use its address, not its methods."""
    with reachable_dir() as directory:
        started: queue.Queue[Launched | BaseException] = queue.Queue()
        stop = trio.Event()
        token: list[trio.lowlevel.TrioToken] = []

        async def hold() -> None:
            token.append(trio.lowlevel.current_trio_token())
            async with launched("relay serve", directory) as running:
                started.put(await running.ready())
                await stop.wait()

        def run() -> None:
            try:
                trio.run(hold)
            except BaseException as error:
                started.put(error)

        thread = threading.Thread(target=run, name="relay of this module")
        thread.start()
        found = started.get(timeout=2 * START_SECONDS)
        if isinstance(found, BaseException):
            raise found
        yield found
        token[0].run_sync_soon(stop.set)
        thread.join()
