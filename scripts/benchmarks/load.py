"""The loads over the socket that publish and ask: ingest, fan-out, REQ, connect.

Each function makes one run in a `Scene` and returns its figures; `scripts/bench` repeats them. Events are signed before
the clock starts. The generator counts bytes where it can: a frame that it takes apart costs it more than the relay.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from uuid import uuid4

from scripts.benchmarks.client import Client, Poller, masked, split_frames
from scripts.benchmarks.meter import Figures, use
from scripts.benchmarks.scene import Place, Scene

RUN_SECONDS_MAX = 120
SUBSCRIPTION = "s"
PING_BYTES = 2
PINGS_MAX = 8
"""To one connection in one run. A relay may send one every few seconds."""
HEADER_BYTES = 4
"""Of a frame of 126 bytes to 64 KiB, as every EVENT here is."""


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def latency(values: list[float], name: str = "latency") -> Figures:
    return {f"{name}_p50_ms": 1000 * statistics.median(values), f"{name}_p99_ms": 1000 * quantile(values, 0.99)}


def subscribe(place: Place, clients: list[Client]) -> None:
    for client in clients:
        client.send(place.request(SUBSCRIPTION))
    for client in clients:
        client.read("EOSE")


def frame_bytes(place: Place, publisher: Client, subscribers: list[Client], content: str) -> int:
    """What one event with a content of this length is on the wire to a subscriber, as this relay writes it."""
    publisher.send(place.frame(publisher, content))
    assert publisher.read("OK")[2]
    sizes = set()
    for client in subscribers:
        while not (frames := split_frames(client.rest)[0]):
            more = client.sock.recv(65536)
            assert more, "the relay closed a connection"
            client.rest += more
        assert frames[0].startswith(b'["EVENT"'), frames[0]
        sizes.add(len(client.rest))
        client.rest = b""
    assert len(sizes) == 1, sizes
    return sizes.pop()


def is_all(received: int, expected: int, readers: list[Client]) -> bool:
    """Whether these bytes are all that was expected, and nothing more but a ping now and then."""
    pings, odd = divmod(received - expected, PING_BYTES)
    return odd == 0 and 0 <= pings <= len(readers) * PINGS_MAX


class _Writer:
    """A connection that publishes: keeps `depth` events unanswered, and sends as many at once as were answered."""

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = deque(map(masked, frames))
        self.sent_at: deque[float] = deque()
        self.taken: list[float] = []

    def send(self, client: Client, count: int) -> None:
        count = min(count, len(self.frames))
        if count:
            data = b"".join([self.frames.popleft() for _ in range(count)])
            self.sent_at.extend([time.perf_counter()] * count)
            client.sock.sendall(data)

    def answered(self, client: Client, data: bytes) -> int:
        oks, client.rest = split_frames(client.rest + data)
        now = time.perf_counter()
        for ok in oks:
            assert ok.startswith(b'["OK"'), ok
            assert b",true," in ok, ok
            self.taken.append(now - self.sent_at.popleft())
        self.send(client, len(oks))
        return len(oks)


def ingest(
    scene: Scene, *, connections: int = 8, depth: int = 16, events: int = 16_000, subscribers: int = 10
) -> Figures:
    """Durable events of 300 bytes; `depth` unanswered ones a connection; `subscribers` other connections get them."""
    clients = scene.connect(range(connections))
    readers = scene.connect(range(connections, connections + subscribers))
    place = scene.place(clients[0], range(1, connections + subscribers))
    run, text = uuid4().hex[:12], "x" * 70
    subscribe(place, readers)
    size = frame_bytes(place, clients[0], readers, f"{0:06} {run} {text}") if readers else 0
    share = events // connections
    writers = {
        client: _Writer([place.frame(client, f"{n:06} {run} {text}") for n in range(1, share + 1)])
        for client in clients
    }
    total, answered, received = share * connections, 0, 0

    def on_data(client: Client, data: bytes) -> None:
        nonlocal answered
        answered += writers[client].answered(client, data)

    def on_size(_client: Client, count: int) -> None:
        nonlocal received
        received += count

    poller = Poller(clients, on_data, counted=readers, on_size=on_size)
    counted = scene.target.metrics()
    before = use(scene.target.pid)
    for client, writer in writers.items():
        writer.send(client, depth)
    expected = total * size * subscribers
    poller.run_until(lambda: answered == total, RUN_SECONDS_MAX)
    used = use(scene.target.pid) - before
    poller.run_until(lambda: received >= expected, RUN_SECONDS_MAX)
    assert is_all(received, expected, readers), (received, expected)
    poller.close()
    batches = _mean(counted, scene.target.metrics(), "sprout_commit_batch_events")
    for client in (*clients, *readers):
        client.close()
    return {
        "events_per_second": total / used.wall_seconds,
        **latency([taken for writer in writers.values() for taken in writer.taken]),
        **used.per(total, "event"),
        **batches,
        **used.shares(),
    }


def _mean(before: dict[str, float], after: dict[str, float], histogram: str) -> Figures:
    """What a histogram of the relay's own took in between, on the average; nothing where it shows none."""
    count = after.get(f"{histogram}_count", 0) - before.get(f"{histogram}_count", 0)
    total = after.get(f"{histogram}_sum", 0) - before.get(f"{histogram}_sum", 0)
    return {f"{histogram.removeprefix('sprout_')}_mean": total / count} if count else {}


def fanout(scene: Scene, *, subscribers: int = 1000, events: int = 1200, in_flight: int = 64) -> Figures:
    """Stored 400-byte events of one publisher to `subscribers` connections.

    A delivery takes from the moment that the publisher has sent the event to the read that brought a subscriber the
    whole of its frame; the quantiles are over all deliveries.
    """
    readers = scene.connect(range(1, subscribers + 1))
    [publisher] = scene.connect([0])
    place = scene.place(publisher, range(1, min(subscribers, 100) + 1))
    run, text = uuid4().hex[:12], "x" * 60
    subscribe(place, readers)
    size = frame_bytes(place, publisher, readers, f"{0:06} {run} {text}")
    writer = _Writer([place.frame(publisher, f"{n:06} {run} {text}") for n in range(1, events + 1)])
    sent_at: list[float] = []
    have = dict.fromkeys(readers, 0)
    arrivals: list[tuple[float, int, int]] = []
    received = answered = 0
    expected = events * subscribers * size

    def send(count: int) -> None:
        at = time.perf_counter()
        sent_at.extend([at] * min(count, len(writer.frames)))
        writer.send(publisher, count)

    def on_data(client: Client, data: bytes) -> None:
        nonlocal answered
        oks, client.rest = split_frames(client.rest + data)
        assert all(b",true," in ok for ok in oks), oks
        answered += len(oks)
        send(len(oks))

    def on_size(client: Client, count: int) -> None:
        nonlocal received
        received += count
        had = have[client]
        have[client] = had + count
        arrivals.append((time.perf_counter(), had // size, (had + count) // size))

    poller = Poller([publisher], on_data, counted=readers, on_size=on_size)
    before = use(scene.target.pid)
    send(in_flight)
    poller.run_until(lambda: received >= expected and answered == events, RUN_SECONDS_MAX)
    used = use(scene.target.pid) - before
    assert is_all(received, expected, readers), (received, expected)
    poller.close()
    for client in (*readers, publisher):
        client.close()
    deliveries = events * subscribers
    return {
        "deliveries_per_second": deliveries / used.wall_seconds,
        "events_per_second": events / used.wall_seconds,
        **latency([at - sent for at, first, end in arrivals for sent in sent_at[first:end]], "delivery"),
        "relay_cpu_us_per_delivery": 1e6 * used.relay_seconds / deliveries,
        "deliveries_per_read": deliveries / len(arrivals),
        **used.per(events, "event"),
        **used.shares(),
    }


def store(place: Place, client: Client, count: int) -> None:
    """`count` events of 100 bytes of content, 50 of them on the way at a time."""
    run = uuid4().hex[:12]
    for start in range(0, count, 50):
        frames = [place.frame(client, f"{n} {run} " + "x" * 80) for n in range(start, min(count, start + 50))]
        client.sock.sendall(b"".join(map(masked, frames)))
        for _ in frames:
            ok = client.read("OK")
            assert ok[2], ok


def req(scene: Scene, *, stored: int = 500, requests: int = 800, connections: int = 4) -> Figures:
    """REQs that each return `stored` events and an EOSE, one after the other on each connection.

    The first byte of an answer is the first of its first EVENT: the time to the first EVENT is that of the first read.
    """
    clients = scene.connect(range(connections))
    place = scene.place(clients[0])
    store(place, clients[0], stored)
    request = masked(place.request(SUBSCRIPTION, limit=stored))
    done = sent = 0
    started_at: dict[Client, float] = {}
    first_at: dict[Client, float] = {}
    whole: list[float] = []
    first: list[float] = []
    checked = dict.fromkeys(clients, b"")
    end = b'["EOSE","' + SUBSCRIPTION.encode() + b'"]'

    def ask(client: Client) -> None:
        nonlocal sent
        sent += 1
        started_at[client] = time.perf_counter()
        client.sock.sendall(request)

    def on_data(client: Client, data: bytes) -> None:
        nonlocal done
        now = time.perf_counter()
        if client not in first_at:
            first_at[client] = now
            first.append(now - started_at[client])
        if client in checked:
            checked[client] += data
        client.rest = client.rest[-40:] + data[-40:]
        if client.rest.endswith(end):
            if client in checked:
                _check_answer(checked.pop(client), stored)
            client.rest = b""
            del first_at[client]
            done += 1
            whole.append(now - started_at[client])
            if sent < requests:
                ask(client)

    poller = Poller(clients, on_data)
    before = use(scene.target.pid)
    for client in clients:
        ask(client)
    poller.run_until(lambda: done == requests, RUN_SECONDS_MAX)
    used = use(scene.target.pid) - before
    poller.close()
    for client in clients:
        client.close()
    return {
        "requests_per_second": requests / used.wall_seconds,
        **latency(whole),
        **latency(first, "first_event"),
        **used.per(requests, "request"),
        **used.shares(),
    }


def _check_answer(data: bytes, stored: int) -> None:
    """The first answers are taken apart: a relay that sends less than it was asked for would win every race."""
    frames, _ = split_frames(data)
    events = sum(frame.startswith(b'["EVENT"') for frame in frames)
    assert events == stored, f"{events} events instead of {stored}"


def connect(scene: Scene, *, connections: int = 2000) -> Figures:
    """Connect, upgrade and log in, 100 at a time; then what an idle connection costs in memory."""
    target = scene.target
    warm = scene.connect(range(50))
    if target.pid and target.rss_before is None:
        target.rss_before = target.rss_kib()
    before = use(target.pid)
    clients = scene.connect(range(connections))
    used = use(target.pid) - before
    time.sleep(0.5)
    grown = target.rss_kib() - target.rss_before if target.rss_before is not None else 0
    for client in warm + clients:
        client.close()
    time.sleep(1.0)
    return {
        "connects_per_second": connections / used.wall_seconds,
        "idle_kib_per_connection": grown / connections,
        **used.per(connections, "connect"),
        **used.shares(),
    }
