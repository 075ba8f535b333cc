"""The measurements over the socket: ingest, fanout, req, connect, channels.

Each function makes one run against a `Target` and returns its figures; `scripts/bench` repeats them.
"""

from __future__ import annotations

import http.client
import statistics
import time
from collections import deque
from uuid import uuid4

import orjson

from scripts.benchmarks.client import Client, Poller, event, key, split_frames
from scripts.benchmarks.client import connect as connect_clients
from scripts.benchmarks.target import Target

Figures = dict[str, float]


def _channel(client: Client, visibility: str = "open") -> str:
    channel = str(uuid4())
    client.publish(event(client.secret, 9007, tags=[["h", channel], ["name", "bench"], ["visibility", visibility]]))
    return channel


def _quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def ingest(target: Target, *, connections: int = 32, depth: int = 16, events: int = 12_000) -> Figures:
    """Authenticated, audited, durable kind 9 events of 300 bytes; `depth` unanswered ones a connection."""
    clients = connect_clients(target.host, target.port, range(connections))
    channel = _channel(clients[0])
    text = "x" * 60
    frames = {
        client: deque(
            b'["EVENT",' + event(client.secret, 9, f"{n} {text} {uuid4()}", [["h", channel]]).json + b"]"
            for n in range(events // connections)
        )
        for client in clients
    }
    total = sum(map(len, frames.values()))
    sent_at: dict[Client, deque[float]] = {client: deque() for client in clients}
    latencies: list[float] = []
    answered = 0

    def send(client: Client, count: int) -> None:
        for _ in range(min(count, len(frames[client]))):
            client.send(frames[client].popleft())
            sent_at[client].append(time.perf_counter())

    def on_data(client: Client, data: bytes) -> None:
        nonlocal answered
        oks, client.rest = split_frames(client.rest + data)
        now = time.perf_counter()
        for ok in oks:
            assert ok.startswith(b'["OK"'), ok
            assert b",true," in ok, ok
            latencies.append(now - sent_at[client].popleft())
        answered += len(oks)
        send(client, len(oks))

    poller = Poller(clients, on_data)
    cpu = target.cpu_seconds() if target.pid else 0.0
    started = time.perf_counter()
    for client in clients:
        send(client, depth)
    poller.run_until(lambda: answered == total, 120)
    seconds = time.perf_counter() - started
    poller.close()
    used = (target.cpu_seconds() - cpu) if target.pid else 0.0
    for client in clients:
        client.close()
    return {
        "events_per_second": total / seconds,
        "latency_p50_ms": 1000 * statistics.median(latencies),
        "latency_p99_ms": 1000 * _quantile(latencies, 0.99),
        "cpu_us_per_event": 1e6 * used / total,
    }


def fanout(target: Target, *, subscribers: int = 1000, events: int = 600, in_flight: int = 16) -> Figures:
    """Stored and audited 400-byte kind 9 events of one channel to `subscribers` connections."""
    clients = connect_clients(target.host, target.port, range(1, subscribers + 1))
    [publisher] = connect_clients(target.host, target.port, [0])
    channel = _channel(publisher)
    for client in clients:
        client.send(b'["REQ","s",{"kinds":[9],"#h":["' + channel.encode() + b'"]}]')
        client.read("EOSE")
    frames = deque(
        b'["EVENT",' + event(publisher.secret, 9, f"{n:06} " + "x" * 60, [["h", channel]]).json + b"]"
        for n in range(events)
    )
    # All frames of one run have the same length, so that counting bytes counts deliveries.
    publisher.send(frames.popleft())
    first = clients[0].read("EVENT")
    assert first[1] == "s"
    publisher.read("OK")
    size = 4 + len(b'["EVENT","s",') + len(event(publisher.secret, 9, "000000 " + "x" * 60, [["h", channel]]).json) + 1
    for client in clients[1:]:
        client.read("EVENT")
    received = 0
    answered = 0
    total = len(frames)

    def on_data(client: Client, data: bytes) -> None:
        nonlocal received, answered
        if client is not publisher:
            received += len(data)
            return
        oks, client.rest = split_frames(client.rest + data)
        answered += len(oks)
        for _ in oks:
            if frames:
                client.send(frames.popleft())

    poller = Poller([*clients, publisher], on_data)
    started = time.perf_counter()
    for _ in range(min(in_flight, len(frames))):
        publisher.send(frames.popleft())
    expected = total * subscribers * size
    poller.run_until(lambda: received >= expected and answered == total, 120)
    seconds = time.perf_counter() - started
    assert received == expected, (received, expected)
    poller.close()
    for client in (*clients, publisher):
        client.close()
    return {"deliveries_per_second": total * subscribers / seconds, "events_per_second": total / seconds}


def req(target: Target, *, stored: int = 500, requests: int = 400, connections: int = 4) -> Figures:
    """REQs that each return `stored` events of one channel and an EOSE."""
    clients = connect_clients(target.host, target.port, range(connections))
    channel = _channel(clients[0])
    for start in range(0, stored, 50):
        batch = [event(clients[0].secret, 9, f"{n} " + "x" * 100, [["h", channel]]) for n in range(start, start + 50)]
        for item in batch:
            clients[0].send(b'["EVENT",' + item.json + b"]")
        for _ in batch:
            assert clients[0].read("OK")[2]
    request = b'["REQ","s",{"kinds":[9],"#h":["%b"],"limit":%d}]' % (channel.encode(), stored)
    done = 0
    sent = 0
    started_at: dict[Client, float] = {}
    latencies: list[float] = []

    def ask(client: Client) -> None:
        nonlocal sent
        sent += 1
        started_at[client] = time.perf_counter()
        client.send(request)

    def on_data(client: Client, data: bytes) -> None:
        nonlocal done
        client.rest = (client.rest + data)[-40:]
        if b'["EOSE","s"]' in client.rest:
            client.rest = b""
            done += 1
            latencies.append(time.perf_counter() - started_at[client])
            if sent < requests:
                ask(client)

    poller = Poller(clients, on_data)
    started = time.perf_counter()
    for client in clients:
        ask(client)
    poller.run_until(lambda: done == requests, 120)
    seconds = time.perf_counter() - started
    poller.close()
    for client in clients:
        client.close()
    return {
        "requests_per_second": requests / seconds,
        "events_per_second": requests * stored / seconds,
        "latency_p50_ms": 1000 * statistics.median(latencies),
        "latency_p99_ms": 1000 * _quantile(latencies, 0.99),
    }


def connect(target: Target, *, connections: int = 2000) -> Figures:
    """Connect, upgrade and log in (audited), 100 at a time; then what an idle connection costs in memory."""
    warm = connect_clients(target.host, target.port, range(50))
    before = target.rss_kib() if target.pid else 0
    started = time.perf_counter()
    clients = connect_clients(target.host, target.port, range(connections))
    seconds = time.perf_counter() - started
    time.sleep(0.5)
    after = target.rss_kib() if target.pid else 0
    for client in warm + clients:
        client.close()
    time.sleep(1.0)
    return {
        "connects_per_second": connections / seconds,
        "idle_kib_per_connection": (after - before) / connections,
    }


def channels(target: Target, *, dms: int = 20, rooms: int = 100, requests: int = 300) -> Figures:
    """GET /api/channels of a member of `dms` DMs and `rooms` channels, on one keep-alive connection."""
    [me] = connect_clients(target.host, target.port, [0])
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
    for _ in range(rooms + dms - len(orjson.loads(call("GET", "/api/channels")))):
        _channel(me)
    latencies = []
    for _ in range(20):
        call("GET", "/api/channels")
    started = time.perf_counter()
    for _ in range(requests):
        at = time.perf_counter()
        size = len(call("GET", "/api/channels"))
        latencies.append(time.perf_counter() - at)
    seconds = time.perf_counter() - started
    connection.close()
    me.close()
    return {
        "requests_per_second": requests / seconds,
        "latency_p50_ms": 1000 * statistics.median(latencies),
        "latency_p99_ms": 1000 * _quantile(latencies, 0.99),
        "body_bytes": float(size),
    }
