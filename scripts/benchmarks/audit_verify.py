"""`relay audit verify` over a long log: entries a second, and how much the memory grows while it runs."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import trio

from relay.asyncpg_trio import Connection, connect
from relay.audit import checkpoints, log, note, tree_store
from relay.audit.anchors import Anchors
from relay.audit.chain import GENESIS, link
from relay.audit.entry import Action, Entry, canonical_json
from relay.audit.verify import add_database, verify
from relay.nostr.keys import SecretKey
from relay.store.migrate import up

ENTRIES = 1_000_000
CHECKPOINT_ENTRIES = 10_000
_CHUNK = 5_000
# Not a secret: of a log that lives for the time of the measurement.
_KEY = SecretKey.from_hex("01" * 32)
_METADATA = canonical_json({"ip": "192.0.2.1", "event_kind": 9, "reason": "said for the measurement"})


def _entry(number: int) -> Entry:
    return Entry(
        f"00000000-0000-4000-8000-{number:012x}", 1_767_225_600_000_000 + number, Action.EVENT_CREATED.value, "ab" * 32,
        f"{number:064x}", 9, "6f1c1f6e-1c1c-4c1c-8c1c-1c1c1c1c1c1c", _METADATA,
    )  # fmt: skip


async def fill(con: Connection, entries: int) -> None:
    """A log of so many chained entries, with the checkpoints and stored nodes that a relay would have made."""
    head, origin = GENESIS, note.origin_of(_KEY.public_hex)
    for begin in range(0, entries, _CHUNK):
        rows = link(head, [_entry(number) for number in range(begin + 1, min(begin + _CHUNK, entries) + 1)])
        await log.insert_rows(con, rows)
        head = rows[-1].head
    await con.execute("ANALYZE audit_log")
    await tree_store.fill(con, entries)
    for size in range(CHECKPOINT_ENTRIES, entries + 1, CHECKPOINT_ENTRIES):
        root = await tree_store.root_at(con, size)
        await checkpoints.insert(con, note.sign(origin, size, root, _KEY), size)


def _resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


async def measure(dsn: str) -> dict[str, float]:
    """Verifies a filled log; memory is looked at after every window of rows."""
    con = await connect(dsn)
    peak = before = _resident_bytes()
    started = time.perf_counter()

    def watch(_done: int, _total: int) -> None:
        nonlocal peak
        peak = max(peak, _resident_bytes())

    with Anchors(_KEY.public_hex) as anchors:
        await add_database(con, anchors)
        report = await verify(con, anchors=anchors, progress=watch)
    seconds = time.perf_counter() - started
    assert report.ok, report.summary()
    assert report.checkpoints is not None
    assert report.checkpoints.agreed == report.rows // CHECKPOINT_ENTRIES
    await con.close()
    return {
        "entries": float(report.rows),
        "seconds": seconds,
        "entries_per_second": report.rows / seconds,
        "growth_mib": (peak - before) / 2**20,
    }


async def _prepare(dsn: str, entries: int) -> None:
    con = await connect(dsn)
    await up(con)
    await fill(con, entries)
    await con.close()


def main() -> None:
    """On a server of its own: `python -m scripts.benchmarks.audit_verify [ENTRIES]`."""
    if len(sys.argv) == 3:
        for name, value in trio.run(measure, sys.argv[2]).items():
            print(f"{name:20} {value:12.1f}")
        return
    from tests.support.postgres import PostgresServer

    entries = int(sys.argv[1]) if len(sys.argv) == 2 else ENTRIES
    server = PostgresServer()
    try:
        dsn = server.dsn(server.create_database())
        trio.run(_prepare, dsn, entries)
        # A process of its own: this one has grown by filling.
        subprocess.run([sys.executable, "-m", "scripts.benchmarks.audit_verify", "measure", dsn], check=True)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
