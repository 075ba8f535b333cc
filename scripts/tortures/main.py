"""Makes a relay suffer under load, round after round, and checks what was promised.

    scripts/torture [--MODE | --all] [--rounds N] [--seed N] [--connections N] [--place TEXT] [--keep]

Without a mode the relay is killed with SIGKILL, now and then a second time while it starts again; the other modes are
listed below. --all runs every mode, one after another, each with as many rounds as make its figures believable.

After every round, on the same data: every event that was answered OK true, or delivered, is stored; every stored event
has exactly one `event_created` entry, in outbox and log together and, once the outbox is empty, in the log; every login
that was acknowledged has its entry; nothing that was refused is stored; no effect is half done; the signed checkpoints
in the database and in the file agree with each other and the log with them; `relay audit verify` exits 0; whatever was
told to stop did so in eight seconds.

Exit code 0: no breach; 1: at least one. The seed decides the load and the moments; it is printed.
"""

from __future__ import annotations

import argparse
import secrets
import sys

from scripts.tortures.campaign import NO_GRACE, Mode, Plan, run
from scripts.tortures.dying import begin_dying, failpoint_round
from scripts.tortures.failpoints import FAILPOINTS
from scripts.tortures.rounds import (
    forms_begin,
    forms_round,
    frozen_round,
    kill_round,
    postgres_round,
    readers_round,
    sigterm_round,
)
from scripts.tortures.shared import latency_place, latency_round, on_a_server, two_begin, two_round

MODES = {
    "kill": Mode("SIGKILL of the relay, at any moment", kill_round, 200),
    "failpoints": Mode(
        f"SIGKILL of the relay at each of {len(FAILPOINTS)} named places", failpoint_round, 4 * len(FAILPOINTS),
        NO_GRACE, begin=begin_dying,
    ),
    # A server that dies again and again within a minute ends the relay on purpose: a new one each round.
    "postgres": Mode("SIGKILL or immediate stop of PostgreSQL, while the relay goes on", postgres_round, 60, anew=True),
    "sigterm": Mode("SIGTERM in mid-load", sigterm_round, 50),
    "frozen": Mode("SIGTERM, and SIGSTOP of PostgreSQL during the drain", frozen_round, 30, NO_GRACE),
    "latency": Mode(
        "SIGTERM with a full queue, and 10 ms more for every round trip", latency_round, 20, NO_GRACE,
        place=latency_place,
    ),
    "readers": Mode("SIGTERM with 50 clients that do not read, and a dripping upload", readers_round, 20, NO_GRACE),
    "forms": Mode("every launch form, every way to tell it to stop", forms_round, 40, NO_GRACE, begin=forms_begin),
    "two": Mode(
        "two relays on one database, one of them killed or stopped", two_round, 50, NO_GRACE,
        place=on_a_server, begin=two_begin,
    ),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=None, help="20 unless told; with --all each mode's own number")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--keep", action="store_true", help="leave the data directory and the log where they are")
    parser.add_argument("--place", default="", help="of --failpoints only those with this in their name")
    chosen = parser.add_mutually_exclusive_group()
    for name, mode in MODES.items():
        chosen.add_argument(f"--{name}", dest="mode", action="store_const", const=name, help=mode.about)
    chosen.add_argument("--all", dest="mode", action="store_const", const="all", help="every mode")
    options = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    last: list[str] = []

    def say(text: str) -> None:
        print(text, flush=True)
        last[:] = [text]

    places = [place for place in FAILPOINTS if options.place in place]
    if not places:
        parser.error(f"no place has {options.place!r} in its name; there are: {'; '.join(FAILPOINTS)}")
    everything = options.mode == "all"
    breaches, summaries = [], []
    for name in MODES if everything else [options.mode or "kill"]:
        rounds = options.rounds or (MODES[name].rounds if everything else 20)
        plan = Plan(rounds, seed, options.connections, options.keep, places)
        breaches += run(name, MODES[name], plan, say)
        summaries += last
    if everything:
        print("\n".join(["", *summaries]), flush=True)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
