"""The result of a comparison: a Markdown table, a picture, and the marked block of a document that holds both."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

BEGIN, END = "<!-- bench compare: begin -->", "<!-- bench compare: end -->"
Figure = tuple[str, str]


class Measured(Protocol):
    """One relay with its figures; `median` is None where it has none."""

    name: str
    faults: dict[str, str]

    def median(self, name: str, figure: str) -> float | None: ...


# heading: the load and the figures of a cell
COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ingest 8 × 16: events/s": ("ingest", ("events_per_second",)),
    "CPU µs/event (database)": ("ingest", ("relay_cpu_us_per_event", "postgres_cpu_us_per_event")),
    "1 × 1: events/s, p50 ms": ("ingest-1x1", ("events_per_second", "latency_p50_ms")),
    "REQ of 500: /s, p50 ms": ("req", ("requests_per_second", "latency_p50_ms")),
    "1 000 subscribers, 64 in flight: deliveries/s": ("fanout", ("deliveries_per_second",)),
    "1 in flight: p50 / p99 ms": ("fanout-1", ("delivery_p50_ms", "delivery_p99_ms")),
    "100 subscribers, 1 in flight: p50 ms": ("fanout-100", ("delivery_p50_ms",)),
    "connects/s": ("connect", ("connects_per_second",)),
    "KiB per idle connection": ("connect", ("idle_kib_per_connection",)),
}
# title: (load, figure, whether less is better)
PANELS: dict[str, tuple[str, str, bool]] = {
    "ingest 8 × 16, events/s": ("ingest", "events_per_second", False),
    "ingest 1 × 1, events/s": ("ingest-1x1", "events_per_second", False),
    "REQ of 500, requests/s": ("req", "requests_per_second", False),
    "1 000 subscribers, 64 in flight,\ndeliveries/s": ("fanout", "deliveries_per_second", False),
    "1 000 subscribers, 1 in flight,\np50 ms (less is better)": ("fanout-1", "delivery_p50_ms", True),
    "100 subscribers, 1 in flight,\np50 ms (less is better)": ("fanout-100", "delivery_p50_ms", True),
    "connects/s": ("connect", "connects_per_second", False),
    "KiB per idle connection\n(less is better)": ("connect", "idle_kib_per_connection", True),
}


def number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(found: Sequence[Measured], runs: int) -> str:
    shown = {
        title: cells for title, cells in COLUMNS.items() if any(each.median(cells[0], cells[1][0]) for each in found)
    }
    lines = ["| | " + " | ".join(shown) + " |", "| --- |" + " --- |" * len(shown)]
    for each in found:
        cells = []
        for load, figures in shown.values():
            values = [value for figure in figures if (value := each.median(load, figure)) is not None]
            cells.append(", ".join(map(number, values)) or ("failed" if load in each.faults else "–"))
        lines.append(f"| {each.name} | " + " | ".join(cells) + " |")
    faults = [f"{each.name}: {load}: {text}" for each in found for load, text in each.faults.items()]
    day = datetime.now(UTC).date().isoformat()
    notes = [f"Median of {runs} run{'s' * (runs > 1)} by turns on one machine, {day}.", *faults]
    return "\n".join([*lines, "", *notes])


def plot(found: Sequence[Measured], path: Path) -> None:
    """Bars, one panel for each figure; a relay without the figure has no bar."""
    import matplotlib as mpl

    mpl.use("Agg")  # draws into the file, needs no display
    from matplotlib import pyplot as plt

    rows = (len(PANELS) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(11, rows * (0.9 + 0.32 * len(found))), layout="constrained")
    names = [each.name for each in found]
    for axis, (title, (load, name, _)) in zip(axes.flat, PANELS.items(), strict=True):
        values = [each.median(load, name) for each in found]
        colours = ["#1f6f8b"] + ["#b9c4c9"] * (len(found) - 1)
        bars = axis.barh(names, [value or 0 for value in values], color=colours)
        axis.bar_label(bars, [number(value) if value is not None else "–" for value in values], padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_title(title, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def write_block(path: Path, text: str, picture: str | None) -> None:
    """Replaces what stands between the marks; a document without them gets them at its end."""
    block = "\n\n".join([BEGIN, text, *([f"![The same as bars]({picture})"] if picture else []), END])
    old = path.read_text() if path.exists() else ""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        path.write_text(before + block + after)
    else:
        path.write_text(old + ("\n" if old else "") + block + "\n")
