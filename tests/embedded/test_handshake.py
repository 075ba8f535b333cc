from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from relay.embedded import cluster, embedded_postgres
from relay.embedded.binaries import candidates
from relay.embedded.handshake import ask


async def ask_peer(socket_dir: Path, peer: Callable[[trio.SocketStream], Awaitable[None]]) -> object:
    """Ask something that is not PostgreSQL."""
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(cluster.socket_path(socket_dir)))
    listener.listen()

    async def serve() -> None:
        connection, _ = await listener.accept()
        async with trio.SocketStream(connection) as stream:
            await peer(stream)

    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with trio.fail_after(5):
                return await ask(socket_dir)


def saying(data: bytes) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def peer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        with suppress(trio.BrokenResourceError):  # who has heard enough hangs up
            for offset in range(len(data)):  # byte by byte: no message arrives whole
                await stream.send_all(data[offset : offset + 1])

    return peer


def error(code: bytes, text: bytes) -> bytes:
    body = b"SFATAL\0C" + code + b"\0M" + text + b"\0\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body


AUTHENTICATED = b"R\0\0\0\x08\0\0\0\0"


@pytest.mark.parametrize(
    ("said", "sqlstate"),
    [
        (AUTHENTICATED + b"Z\0\0\0\x05I", ""),
        (AUTHENTICATED + error(b"3D000", b"no such database"), "3D000"),
        (error(b"57P03", b"starting up"), "57P03"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "08P01"),
        (b"R\0\0\0\0", "08P01"),
        (b"E\0\0\0\x05\0", "XX000"),
    ],
)
async def test_answer_is_read_message_by_message(tmp_path: Path, said: bytes, sqlstate: str) -> None:
    answer = await ask_peer(tmp_path, saying(said))
    assert answer is not None
    assert answer.sqlstate == sqlstate
    assert answer.serves is (sqlstate == "")


@pytest.mark.parametrize("said", [b"", AUTHENTICATED, b"R\0\0"])
async def test_peer_that_breaks_off_is_nobody(tmp_path: Path, said: bytes) -> None:
    assert await ask_peer(tmp_path, saying(said)) is None


async def test_no_socket_and_no_listener_are_nobody(tmp_path: Path) -> None:
    assert await ask(tmp_path) is None
    with trio.socket.socket(trio.socket.AF_UNIX) as left_over:
        await left_over.bind(str(cluster.socket_path(tmp_path)))
    assert await ask(tmp_path) is None


async def test_real_server(data_dir: Path) -> None:
    settings = {"max_connections": "2", "superuser_reserved_connections": "0", "max_wal_senders": "0"}
    async with embedded_postgres(data_dir, settings=settings) as server:
        answer = await ask(server.socket_dir)
        assert answer is not None
        assert answer.serves
        missing = await ask(server.socket_dir, "no such database")
        assert missing is not None
        assert missing.sqlstate == "3D000"

        program = [candidates()[0] / "psql", "-XAtq", "-d", server.dsn]
        clients = [
            subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) for _ in range(2)
        ]
        for client in clients:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"select 1;\n")
            assert client.stdout.readline() == b"1\n"
        full = await ask(server.socket_dir)
        assert full is not None
        assert full.sqlstate == "53300"
        assert full.serves  # it is up, only busy
        for client in clients:
            client.communicate()
