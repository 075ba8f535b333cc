"""Connecting: Unix socket, TCP, TLS by sslmode, passwords, several hosts, deadlines, retries."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import pytest
import trio

from relay.asyncpg_trio import ConnectFailed, Connection, connect, connect_retrying, errors
from tests.asyncpg_trio.cluster import PASSWORD, Cluster


@pytest.fixture(scope="module", autouse=True)
def guest(cluster: Cluster) -> None:
    cluster.psql("postgres", f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE banned LOGIN")


async def ask(dsn: str) -> int:
    connection = await connect(dsn)
    try:
        return await connection.fetchval("SELECT 1")
    finally:
        await connection.close()


async def test_unix_socket_and_tcp_with_a_password(cluster: Cluster):
    assert await ask(cluster.dsn()) == 1
    assert await ask(cluster.tcp_dsn()) == 1


async def test_a_server_without_tls_serves_those_who_only_prefer_it(cluster: Cluster):
    for mode in ("prefer", "allow"):
        assert await ask(cluster.tcp_dsn(f"?sslmode={mode}")) == 1
    with pytest.raises(ConnectFailed, match="does not offer TLS"):
        await connect(cluster.tcp_dsn("?sslmode=require"))


async def test_refusals_are_the_servers_words(cluster: Cluster):
    with pytest.raises(errors.InvalidPasswordError):
        await connect(cluster.tcp_dsn().replace("word", "w0rd"))
    with pytest.raises(errors.InvalidCatalogNameError):
        await connect(cluster.dsn("nowhere"))
    with pytest.raises(errors.PostgresError) as caught:
        await connect(cluster.tcp_dsn().replace("guest", "banned"))
    assert errors.sqlstate(caught.value) == "28000"


async def test_the_second_host_is_tried(cluster: Cluster):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        hosts = f"127.0.0.1:{closed.getsockname()[1]},127.0.0.1"
        assert await ask(cluster.tcp_dsn().replace("127.0.0.1", hosts)) == 1


@pytest.mark.parametrize(("role", "found"), [("primary", True), ("read-write", True), ("standby", False)])
async def test_the_wanted_role_is_checked(cluster: Cluster, role: str, found: bool):
    dsn = cluster.dsn() + f"&target_session_attrs={role}"
    if found:
        assert await ask(dsn)
    else:
        with pytest.raises(ConnectFailed, match="is not standby"):
            await connect(dsn)


async def test_nobody_there(tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for dsn in (f"postgresql://127.0.0.1:{closed.getsockname()[1]}/x", f"postgresql:///x?host={tmp_path}"):
            with pytest.raises(ConnectFailed) as caught:
                await connect(dsn)
            assert caught.value.transient
            assert isinstance(caught.value.__cause__, OSError)


async def test_a_dsn_without_sense(cluster: Cluster):
    with pytest.raises((ValueError, errors.InterfaceError)):
        await connect("http://localhost/x")
    with pytest.raises((ValueError, errors.InterfaceError)):
        await connect(cluster.dsn() + "&sslmode=maybe")


async def swallow(stream: trio.SocketStream, answer: bytes = b"") -> None:
    async with stream:
        async for _ in stream:
            if answer:
                await stream.send_all(answer)


@pytest.mark.parametrize(
    ("mode", "answer"), [("disable", b""), ("require", b""), ("require", b"S"), ("disable", b"R\x00\x00")]
)
async def test_a_server_that_accepts_and_never_comes_to_the_point(nursery: trio.Nursery, mode: str, answer: bytes):
    listeners = await nursery.start(partial(trio.serve_tcp, partial(swallow, answer=answer), 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    started = trio.current_time()
    with pytest.raises(ConnectFailed, match=r"no answer from the server within 0\.2 s"):
        await connect(f"postgresql://127.0.0.1:{port}/x?sslmode={mode}", connect_seconds=0.2)
    assert 0.15 < trio.current_time() - started < 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [b"N", b"E", b"x"])
async def test_a_server_without_tls(nursery: trio.Nursery, answer: bytes):
    listeners = await nursery.start(partial(trio.serve_tcp, partial(swallow, answer=answer), 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(ConnectFailed, match="does not offer TLS"):
        await connect(f"postgresql://127.0.0.1:{port}/x?sslmode=require", connect_seconds=2)
    nursery.cancel_scope.cancel()


async def test_garbage_and_hang_up(nursery: trio.Nursery):
    async def hang_up(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(1)

    async def babble(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    for manner in (hang_up, babble):
        listeners = await nursery.start(partial(trio.serve_tcp, manner, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        for mode in ("disable", "require"):
            with pytest.raises(ConnectFailed):
                await connect(f"postgresql://127.0.0.1:{port}/x?sslmode={mode}", connect_seconds=0.5)
    nursery.cancel_scope.cancel()


async def test_cancelled_while_connecting(nursery: trio.Nursery):
    listeners = await nursery.start(partial(trio.serve_tcp, swallow, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    for mode in ("disable", "require"):
        with trio.move_on_after(0.1) as scope:
            await connect(f"postgresql://127.0.0.1:{port}/x?sslmode={mode}")
        assert scope.cancelled_caught
    nursery.cancel_scope.cancel()


async def test_retrying_waits_for_a_server_that_is_starting():
    cluster = Cluster()
    cluster.kill()
    try:
        with pytest.raises(ConnectFailed):
            await connect_retrying(cluster.dsn(), within_seconds=0.3)
        found: list[Connection] = []
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                found.append(await connect_retrying(cluster.dsn(), within_seconds=20))

            nursery.start_soon(wait)
            await trio.to_thread.run_sync(cluster.revive)
        assert await found[0].fetchval("SELECT 1") == 1
        await found[0].close()
    finally:
        cluster.stop()


async def test_retrying_does_not_repeat_a_refusal(cluster: Cluster):
    started = trio.current_time()
    with pytest.raises(errors.InvalidCatalogNameError):
        await connect_retrying(cluster.dsn("nowhere"), within_seconds=10)
    assert trio.current_time() - started < 2
