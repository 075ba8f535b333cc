"""How far a verification is: rate and time left on a terminal, nothing elsewhere.

All of it goes to stderr: the answer is on stdout, and may be piped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[int, int], None]


@contextmanager
def shown() -> Iterator[Show | None]:
    """A function to tell entries done and entries in all; None where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    # Here, because few commands need it and it takes a while to load.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} entries"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, rate=0.0, start=True)

        def show(done: int, total: int) -> None:
            # Over all of the time: the rate of the last moment jumps, and the time left is made of the same numbers.
            elapsed = progress.tasks[0].elapsed or 0.0
            progress.update(task, completed=done, total=total, rate=done / elapsed if elapsed else 0.0)

        yield show
