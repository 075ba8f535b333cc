from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from relay.embedded import DataDirBusy, attach_or_start, cluster, embedded_postgres
from relay.embedded.lock import data_dir_lock
from relay.embedded.process import living_in
from tests.embedded.conftest import RelayProcess, psql


async def test_command_connects_to_the_running_relay_and_leaves_it_running(
    data_dir: Path, relay_process: Callable[..., RelayProcess]
) -> None:
    relay = relay_process(data_dir)
    relay.wait_ready()
    async with attach_or_start(data_dir) as dsn:
        assert dsn == relay.ready["dsn"]
        assert psql(dsn, "select 1") == "1"
    assert psql(dsn, "select 1") == "1"


async def test_command_without_a_relay_starts_the_server_and_stops_it(data_dir: Path) -> None:
    async with attach_or_start(data_dir) as dsn:
        assert psql(dsn, "select 1") == "1"
        assert living_in(data_dir / "postgres") != []
    assert living_in(data_dir / "postgres") == []


async def test_second_command_waits_for_the_first_and_never_shares_its_server(data_dir: Path) -> None:
    order = []

    async def second() -> None:
        async with attach_or_start(data_dir) as dsn:
            order.append("second")
            assert psql(dsn, "select 1") == "1"

    async with trio.open_nursery() as nursery, attach_or_start(data_dir) as dsn:
        nursery.start_soon(second)
        with pytest.raises(DataDirBusy):
            async with attach_or_start(data_dir, wait_seconds=0.1):
                pass
        assert psql(dsn, "select 1") == "1"
        order.append("first")
    assert order == ["first", "second"]


async def test_command_waits_for_a_relay_that_is_starting(data_dir: Path) -> None:
    socket_dir = cluster.socket_dir_of(data_dir)
    holding, release = trio.Event(), trio.Event()

    async def relay() -> None:
        with data_dir_lock(data_dir, socket_dir, "relay"):
            holding.set()
            await release.wait()

    async def command() -> None:
        async with attach_or_start(data_dir) as dsn:
            assert psql(dsn, "select 1") == "1"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay)
        await holding.wait()
        nursery.start_soon(command)
        began = time.perf_counter()
        with pytest.raises(DataDirBusy):
            async with attach_or_start(data_dir, wait_seconds=0.2):
                pass
        assert 0.2 <= time.perf_counter() - began < 2
        release.set()


async def test_an_error_of_the_command_stops_the_server(data_dir: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with attach_or_start(data_dir):
            _ = 1 / 0
    assert living_in(data_dir / "postgres") == []


async def test_an_error_of_the_start_is_the_commands(data_dir: Path) -> None:
    async with embedded_postgres(data_dir):
        pass
    (data_dir / "postgres" / "PG_VERSION").write_text("1\n")
    with pytest.raises(Exception, match="made by PostgreSQL 1,"):
        async with attach_or_start(data_dir):
            pass
