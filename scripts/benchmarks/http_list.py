"""`GET /api/channels` over the socket: keep-alive connections that ask one request after the other."""

from __future__ import annotations

import http.client
import select
import socket
import time

import orjson
import trio

from relay.asyncpg_trio import connect
from scripts.benchmarks.client import key
from scripts.benchmarks.load import latency
from scripts.benchmarks.meter import Figures, use
from scripts.benchmarks.scene import Rooms, open_channel
from scripts.benchmarks.target import Target

PATH = "/api/channels"


def channels(target: Target, *, dms: int = 100, rooms: int = 200, requests: int = 600, connections: int = 1) -> Figures:
    """The list of a member of `dms` DMs and `rooms` channels. A development header signs the caller in."""
    [me] = Rooms(target).connect([0])
    headers = {"X-Pubkey": me.secret.public_hex, "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(target.host, target.port)

    def call(method: str, path: str, body: str | None = None) -> bytes:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status < 300, (answer.status, data)
        return data

    for number in range(dms):
        call("POST", "/api/dms", f'{{"pubkeys":["{key(number + 1).public_hex}"]}}')
    # What an earlier run has made is enough: every run measures the same list.
    for _ in range(rooms + dms - len(orjson.loads(call("GET", PATH)))):
        open_channel(me)
    if dsn := target.dsn():
        # Autovacuum does it within a minute of such a change; a relay that has served for a while has been there.
        trio.run(_analyze, dsn)
    for _ in range(20):
        listed = call("GET", PATH)
    assert len(orjson.loads(listed)) == rooms + dms
    connection.close()
    question = f"GET {PATH} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nX-Pubkey: {me.secret.public_hex}\r\n\r\n"
    before = use(target.pid)
    taken = _ask(target, question.encode(), requests, connections)
    used = use(target.pid) - before
    me.close()
    return {
        "requests_per_second": requests / used.wall_seconds,
        **latency(taken),
        "body_bytes": float(len(listed)),
        **used.per(requests, "request"),
        **used.shares(),
    }


async def _analyze(dsn: str) -> None:
    con = await connect(dsn)
    await con.execute("VACUUM ANALYZE")
    await con.close()


def _ask(target: Target, question: bytes, requests: int, connections: int) -> list[float]:
    """Seconds of each request. Answers are told apart by their length: `http.client` would cost a millisecond each."""
    sockets = [socket.create_connection((target.host, target.port), 20) for _ in range(connections)]
    epoll = select.epoll()
    by_fd = {sock.fileno(): sock for sock in sockets}
    left = dict.fromkeys(by_fd, 0)
    """Bytes of the running answer that have not come; 0 while its head has not."""
    asked_at: dict[int, float] = {}
    taken: list[float] = []
    sent = 0
    for fd, sock in by_fd.items():
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        epoll.register(fd, select.EPOLLIN)
        asked_at[fd] = time.perf_counter()
        sock.sendall(question)
        sent += 1
    while len(taken) < requests:
        ready = epoll.poll(20)
        assert ready, "the relay did not answer in time"
        for fd, _ in ready:
            data = by_fd[fd].recv(1 << 18)
            assert data, "the relay closed the connection"
            if not left[fd]:
                data, left[fd] = _body_began(by_fd[fd], data)
            left[fd] -= len(data)
            if not left[fd]:
                taken.append(time.perf_counter() - asked_at[fd])
                if sent < requests:
                    sent += 1
                    asked_at[fd] = time.perf_counter()
                    by_fd[fd].sendall(question)
    epoll.close()
    for sock in sockets:
        sock.close()
    return taken


def _body_began(sock: socket.socket, data: bytes) -> tuple[bytes, int]:
    """(what has come of the body, its whole length)"""
    while b"\r\n\r\n" not in data:
        more = sock.recv(1 << 18)
        assert more, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    assert b" 200" in head.split(b"\r\n", 1)[0], head
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return body, int(lengths[0].split(b":")[1])
