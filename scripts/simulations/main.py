"""Lives of a relay in virtual time, one a seed, each held against what was promised of the audit log.

    scripts/simulate [--seeds N] [--first S] [--planted BUG]

A life has the real ingest, audit worker, queue, spool, checkpointer, supervisor and shutdown script on a PostgreSQL in
memory that is slow, refuses, hangs, loses connections and leaves commits in doubt; clients that go away; a neighbour on
the same database; and an end by signal, crash or cancellation. A seed that fails is printed with the command that
repeats it. --planted puts a known bug into the relay first, to see that it is found.

Exit code 0: every promise was kept in every life; 1: not so; 2: the arguments are wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from contextlib import nullcontext

from scripts.simulations.judge import judge
from scripts.simulations.planted import PLANTS
from scripts.simulations.scenario import draw
from scripts.simulations.world import live

SAY_EVERY = 1000


def trial(seed: int) -> tuple[list[str], float]:
    """The breaches of one life, and how long it was, in virtual seconds."""
    try:
        life = live(draw(seed))
    except Exception as error:
        return ["the life itself broke off:\n" + "".join(traceback.format_exception(error))], 0.0
    return judge(life), life.ended


def search(first: int, seeds: int) -> int | None:
    """The first seed that fails."""
    return next((seed for seed in range(first, first + seeds) if trial(seed)[0]), None)


def campaign(first: int, seeds: int) -> int:
    """Run them all, tell, and return how many have failed."""
    failed, virtual_seconds, began = 0, 0.0, time.perf_counter()
    for number, seed in enumerate(range(first, first + seeds), 1):
        breaches, lasted = trial(seed)
        virtual_seconds += lasted
        if breaches:
            failed += 1
            print(f"seed {seed}: scripts/simulate --first {seed} --seeds 1")
            print("\n".join(f"  {breach}" for breach in breaches), flush=True)
        if number % SAY_EVERY == 0 or number == seeds:
            rate = number / (time.perf_counter() - began)
            print(
                f"{number}/{seeds} seeds, {rate:.0f} a second, {virtual_seconds / 3600:.2f} virtual hours, "
                f"{failed} failed",
                flush=True,
            )
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--planted", choices=sorted(PLANTS))
    options = parser.parse_args()
    with PLANTS[options.planted]() if options.planted else nullcontext():
        return 1 if campaign(options.first, options.seeds) else 0


if __name__ == "__main__":
    sys.exit(main())
