"""What a relay uses while a load runs: processor time of its process and of its PostgreSQL apart, and switches.

In: the process id of the relay, read from /proc of this machine. A PostgreSQL that the relay started is its child, and
counted by itself; one that runs elsewhere is not seen. The generator's own share of a core stands beside every figure:
near 100 % the figure measures the generator.
"""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Figures = dict[str, float]

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_GENERATIONS = 3
"""The postmaster is the relay's child, its backends are grandchildren; one more for a relay behind a shell."""


@dataclass(frozen=True)
class Use:
    """Sums since the processes began; `-` gives what lies between two readings."""

    wall_seconds: float = 0
    generator_seconds: float = 0
    relay_seconds: float = 0
    relay_system_seconds: float = 0
    """Of `relay_seconds`, those spent in the kernel."""
    postgres_seconds: float = 0
    relay_switches: float = 0
    """Voluntary: the process had nothing to do and slept."""
    relay_preempted: float = 0
    postgres_switches: float = 0
    """Voluntary: about one for each message that a backend waited for, and one for each write that it waited for."""

    def __sub__(self, before: Use) -> Use:
        mine, others = vars(self), vars(before)
        return Use(**{name: mine[name] - others[name] for name in mine})

    def per(self, operations: float, unit: str) -> Figures:
        """Microseconds and switches an operation, and how busy the generator was."""
        return {
            f"relay_cpu_us_per_{unit}": 1e6 * self.relay_seconds / operations,
            f"relay_system_us_per_{unit}": 1e6 * self.relay_system_seconds / operations,
            f"postgres_cpu_us_per_{unit}": 1e6 * self.postgres_seconds / operations,
            f"relay_switches_per_{unit}": self.relay_switches / operations,
            f"relay_preempted_per_{unit}": self.relay_preempted / operations,
            f"postgres_switches_per_{unit}": self.postgres_switches / operations,
        }

    def shares(self) -> Figures:
        """Per cent of one core."""
        return {
            "relay_core_percent": 100 * self.relay_seconds / self.wall_seconds,
            "postgres_core_percent": 100 * self.postgres_seconds / self.wall_seconds,
            "generator_core_percent": 100 * self.generator_seconds / self.wall_seconds,
        }


def use(pid: int | None) -> Use:
    """All sums now; of the generator alone where the relay's process is not known."""
    wall, own = time.perf_counter(), time.process_time()
    if pid is None:
        return Use(wall, own)
    relay = system = postgres = switches = preempted = postgres_switches = 0.0
    for member, name, fields in _family(pid):
        user_ticks, system_ticks, dead_user_ticks, dead_system_ticks = map(int, fields[11:15])
        voluntary, involuntary = _switches(member)
        if name == "postgres":
            # Workers that have ended are in the postmaster's own sums; the relay never sees them.
            postgres += (user_ticks + system_ticks + dead_user_ticks + dead_system_ticks) / _TICKS_PER_SECOND
            postgres_switches += voluntary
        else:
            relay += (user_ticks + system_ticks) / _TICKS_PER_SECOND
            system += system_ticks / _TICKS_PER_SECOND
            switches += voluntary
            preempted += involuntary
    return Use(wall, own, relay, system, postgres, switches, preempted, postgres_switches)


def rss_kib(pid: int, *, postgres: bool = False) -> int:
    """Resident memory of the relay's process; with `postgres` what its PostgreSQL has to itself, unshared."""
    if postgres:
        return sum(_own_memory(member) for member, name, _ in _family(pid) if name == "postgres")
    return int(_status(pid)["VmRSS"].split()[0])


def postgres_pids(pid: int) -> list[int]:
    return [member for member, name, _ in _family(pid) if name == "postgres"]


def scrape(port: int) -> dict[str, float]:
    """All samples of a Prometheus listener on this machine, by name with labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def fsync_ms(directory: Path, times: int = 50) -> float:
    """Median of writing 8 KiB at the end of a file and having it on the disk, as a commit does."""
    path = directory / "fsync-probe"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(b"x" * 8192)
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    path.unlink()
    return 1000 * sorted(taken)[times // 2]


def _family(pid: int) -> Iterator[tuple[int, str, list[str]]]:
    """(process id, name, fields of its stat from the state on) of `pid` and what it has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                head, _, tail = (entry / "stat").read_text().rpartition(")")
            except OSError:
                continue  # ended while we looked
            found.append((int(entry.name), head.partition("(")[2], tail.split()))
    wanted = {pid}
    for _ in range(_GENERATIONS):
        wanted |= {member for member, _, fields in found if int(fields[1]) in wanted}
    return (each for each in found if each[0] in wanted)


def _status(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _switches(pid: int) -> tuple[int, int]:
    voluntary = involuntary = 0
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            status = _status(f"{pid}/task/{thread.name}")
        except OSError:
            continue
        voluntary += int(status["voluntary_ctxt_switches"])
        involuntary += int(status["nonvoluntary_ctxt_switches"])
    return voluntary, involuntary


def _own_memory(pid: int) -> int:
    try:
        return int(_status(pid)["RssAnon"].split()[0])
    except (OSError, KeyError):
        return 0
