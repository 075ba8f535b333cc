"""What the benchmarks rest on: frames, sums of use, the slope of memory, and the block that a document gets.

That the loads run is seen against a real relay, in small: a load that counts wrongly would end in its own assertion.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.benchmarks import growth, load, report, soak
from scripts.benchmarks.client import Client, connect, key, masked, split_frames
from scripts.benchmarks.compare import LOADS, Subject, measure, secret_key, wants_login
from scripts.benchmarks.meter import Use, fsync_ms, postgres_pids, rss_kib, use
from scripts.benchmarks.scene import Notes, Rooms
from scripts.benchmarks.target import Target, running, target


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_frame_of_any_size_is_split_again(size: int) -> None:
    payload = b"x" * size
    frame = masked(payload)
    # As the server would send it: without the mask's key and bit.
    head = len(frame) - size - 4
    unmasked = bytes((frame[0], frame[1] & 0x7F)) + frame[2:head] + payload
    assert split_frames(unmasked + unmasked[:1]) == ([payload], unmasked[:1])


def test_use_is_a_difference_and_comes_out_per_operation() -> None:
    used = Use(wall_seconds=5, relay_seconds=3, postgres_seconds=2) - Use(wall_seconds=3, relay_seconds=2)
    assert used == Use(wall_seconds=2, relay_seconds=1, postgres_seconds=2)
    assert used.per(1000, "event")["relay_cpu_us_per_event"] == 1000
    assert used.shares()["postgres_core_percent"] == 100


def test_use_counts_this_process() -> None:
    before = use(os.getpid())
    deadline = time.process_time() + 0.1
    while time.process_time() < deadline:
        pass
    used = use(os.getpid()) - before
    assert 0.05 < used.relay_seconds <= used.wall_seconds + 0.05
    assert used.postgres_seconds == 0
    assert rss_kib(os.getpid()) > 1000


def test_the_disk_is_measured_and_left_clean(tmp_path: Path) -> None:
    assert fsync_ms(tmp_path, times=3) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_slope_is_that_of_a_line_through_noise() -> None:
    assert soak.slope([(0, 10), (1, 12), (2, 14)]) == pytest.approx(2)
    assert soak.slope([(0, 1), (1, 3), (2, 1), (3, 3)]) == pytest.approx(0.4)


def test_the_block_of_a_document_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_block(path, "| new |", "bars.png")
    text = path.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n\n| new |\n\n![")
    assert text.endswith(f"(bars.png)\n\n{report.END}\nafter\n")
    assert "old" not in text
    report.write_block(tmp_path / "none.md", "| new |", None)
    assert (tmp_path / "none.md").read_text() == f"{report.BEGIN}\n\n| new |\n\n{report.END}\n"


def test_the_table_says_what_failed_and_leaves_out_what_nobody_did(tmp_path: Path) -> None:
    scene = Notes(running("ws://127.0.0.1:1"))
    ours, theirs = Subject("ours", scene), Subject("theirs", scene)
    ours.figures["req"] = [{"requests_per_second": 1234.0, "latency_p50_ms": value} for value in (1.0, 9.0, 2.0)]
    theirs.faults["req"] = "too slow"
    text = report.table([ours, theirs], 3)
    assert text.splitlines()[:4] == [
        "| | REQ of 500: /s, p50 ms |", "| --- | --- |", "| ours | 1,234, 2.00 |", "| theirs | failed |",
    ]  # fmt: skip
    assert "theirs: req: too slow" in text
    report.plot([ours, theirs], tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_addresses_and_keys_are_taken_as_people_write_them() -> None:
    assert running("ws://example.org/nostr", 7) == Target("example.org", 80, 7, path="/nostr")
    assert running("ws://[::1]:7000").url == "ws://::1:7000"
    with pytest.raises(SystemExit):
        running("wss://example.org")
    assert secret_key(f"{1:064x}").public_hex == secret_key(_NSEC_OF_ONE).public_hex


_NSEC_OF_ONE = "nsec1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqsmhltgl"


# ---- against a relay


@pytest.fixture(scope="module")
def relay() -> Iterator[Target]:
    cores = os.sched_getaffinity(0)
    with target(None) as where:
        yield where
    os.sched_setaffinity(0, cores)


def test_the_loads_count_what_the_relay_did(relay: Target) -> None:
    found = load.ingest(Rooms(relay), connections=2, depth=4, events=40, subscribers=3)
    assert found["events_per_second"] > 0
    assert found["commit_batch_events_mean"] >= 1
    assert found["relay_switches_per_event"] > 0
    delivered = load.fanout(Rooms(relay), subscribers=5, events=20, in_flight=4)
    assert delivered["deliveries_per_second"] == pytest.approx(5 * delivered["events_per_second"])
    assert delivered["delivery_p50_ms"] <= delivered["delivery_p99_ms"]
    asked = load.req(Rooms(relay), stored=60, requests=8, connections=2)
    assert asked["first_event_p50_ms"] <= asked["latency_p50_ms"]
    assert relay.pid is not None
    assert len(postgres_pids(relay.pid)) > 1
    assert rss_kib(relay.pid, postgres=True) > 0


def test_a_relay_that_sends_too_little_is_noticed(relay: Target) -> None:
    with pytest.raises(AssertionError, match="60 events instead of 61"):
        load._check_answer(_answer(relay, 60), 61)


def _answer(relay: Target, stored: int) -> bytes:
    [client] = Rooms(relay).connect([0])
    place = Rooms(relay).place(client)
    load.store(place, client, stored)
    client.send(place.request("s", limit=stored))
    data = client.rest
    while not data.endswith(b'["EOSE","s"]'):
        data += client.sock.recv(65536)
    client.close()
    return data


def test_a_comparison_measures_plain_notes_and_keeps_what_fails(relay: Target) -> None:
    assert wants_login(relay)
    subject = Subject("ours", Notes(relay))
    subject.sizes["req"] = 8
    measure(subject, "req")
    assert subject.median("req", "requests_per_second")
    gone = Subject("gone", Notes(running("ws://127.0.0.1:1")))
    measure(gone, "req")
    measure(gone, "req")
    assert gone.faults["req"].startswith("ConnectionRefusedError")
    assert gone.median("req", "requests_per_second") is None
    assert set(LOADS) >= {"ingest", "req", "fanout", "connect"}


def test_the_soak_takes_all_its_turns(relay: Target) -> None:
    found = soak.Soak(relay, seed=3)
    for turn in (found.publish, found.ask, found.come_and_go, found.subscribe, found.offend):
        turn()
    found.close()
    assert found.number == soak.MESSAGES


async def test_filled_events_are_asked_for_like_published_ones(relay: Target) -> None:
    dsn = relay.dsn()
    assert dsn is not None
    now = int(time.time())
    await growth.fill(dsn, 0, 300, now)
    await growth.fill(dsn, 300, 400, now)
    [client] = connect(relay.host, relay.port, [0])
    got = {name: growth.ask(relay, client, name, filters[:5]) for name, filters in growth.questions(now).items()}
    client.close()
    assert got["room_newest_500"]["room_newest_500_kib"] > 1
    assert got["one_by_id"]["one_by_id_kib"] > 0.3
    other = Client(relay.host, relay.port, key(1))
    other.send(b'["COUNT","c",{"kinds":[9],"#t":["topic7"]}]')
    assert other.read("COUNT")[2] == {"count": 4}
    other.close()
