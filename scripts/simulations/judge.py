"""What was promised, held against one life. In: a `Life`. Out: sentences, one a breach; none where all was kept.

1. Every entry that was ever committed is, after the next start, in the log, once, and nothing else is; the chain fits.
2. What a client was told is true: accepted is kept, refused is not there; nobody but who left is without an answer, and
   a refusal says which one it is.
3. Exit code 0 means that nothing of ours was left to the outbox; what is left otherwise, the worker has counted.
4. The stop ends by its deadline, and nobody waits longer than the database was away and patience lasts.
5. Every checkpoint that was signed fits the log that the next start finds.
6. The worker's own figures are what the database says: a doubt about a commit is cleared up by asking.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from relay.audit.tree import Frontier
from relay.audit.walk import Walk
from relay.shutdown import ExitCode
from relay.store.outcome import PATIENCE_SECONDS
from scripts.simulations.life import Life
from scripts.simulations.mood import CALM
from scripts.simulations.world import OURS

# After the drain's deadline: the script's slack, and connections that are cut in the same instant.
SLACK_SECONDS = 0.25
# Where nothing is wrong, after the time that connections have: a last batch.
CALM_SECONDS = 0.3
# The worker cuts its connection itself; nothing is waited for after that.
WORKER_SECONDS = 0.01
# A cancelled life ends its tasks first: one inside BEGIN or COMMIT, or asking for its statement's end, has two seconds.
SETTLE_SECONDS = 2.0
# Beyond outages: one more patience for each of two queues, the batch before, a drain.
WAIT_SECONDS = 3 * PATIENCE_SECONDS


def judge(life: Life) -> list[str]:
    """The breaches of `life`."""
    breaches = list(life.breaches)
    if breaches and "not ended" in breaches[-1]:
        return breaches
    breaches += _kept(life)
    breaches += _told(life)
    breaches += _left(life)
    breaches += _timely(life)
    breaches += _counted(life)
    breaches += _signed(life)
    return breaches


def _kept(life: Life) -> list[str]:
    server = life.server
    chained = Counter(row.entry.uuid for row in server.log)
    found = []
    if lost := set(server.entered) - set(chained):
        found.append(f"{len(lost)} entries were committed and are not in the log after the next start")
    if strange := set(chained) - set(server.entered):
        found.append(f"{len(strange)} entries are in the log that nobody wrote")
    if twice := [uuid for uuid, count in chained.items() if count > 1]:
        found.append(f"{len(twice)} entries are in the log more than once")
    walk = Walk()
    walk.feed(server.log)
    return found + [str(fault) for fault in walk.faults]


def _told(life: Life) -> list[str]:
    server, found = life.server, []
    for request in life.requests:
        where = f"{request.what} of {request.began:.3f} s"
        if request.outcome is None:
            if not request.left:
                found.append(f"{where}: no answer")
            continue
        kept = [uuid in server.entered for uuid in request.uuids]
        if request.event_id is not None:
            kept.append(request.event_id in server.events)
        if request.outcome.accepted and not (kept and kept[-1] and (request.what == "effect" or all(kept))):
            found.append(f"{where}: accepted, and not there")
        if request.what == "effect" and sum(kept) > 1:
            found.append(f"{where}: done {sum(kept)} times")
        if not request.outcome.accepted:
            if request.outcome.refusal is None:
                found.append(f"{where}: refused without a reason")
            # Cut off at the deadline while it asked what had become of its commit: it may be either.
            if any(kept) and not life.aborted and not (request.what == "record" and life.spool_doubts):
                found.append(f"{where}: refused ({request.outcome.message}), and there")
    return found


def _left(life: Life) -> list[str]:
    report = life.worker.report if life.worker is not None else None
    if report is None:
        return ["the worker has made no report"]
    found = []
    if life.clients_left:
        found.append(f"{life.clients_left} producers are still open")
    ours = {uuid for uuid, owner in life.server.entered.items() if owner == OURS}
    left = ours & life.in_outbox_at_end
    # Whoever is cancelled from outside is not asked for an exit code.
    if life.code is ExitCode.DRAINED and left and life.scenario.ending != "cancelled":
        found.append(f"exit code 0, and {len(left)} entries were left to the outbox")
    if life.code is ExitCode.DRAINED and life.aborted:
        found.append("exit code 0 after connections were cut off")
    crash = life.scenario.ending in ("sibling", "worker")
    early = report.seconds < life.scenario.drain_seconds - 0.001
    if not report.finished and early and life.scenario.ending != "worker":
        found.append(f"the worker gave up after {report.seconds:.3f} s")
    if life.code is ExitCode.CRASHED and not crash:
        found.append(f"exit code 70 without a crash: {life.crashes or life.error!r}")
    if life.scenario.ending == "sibling" and life.code is not ExitCode.CRASHED:
        found.append(f"a sibling crashed, and the exit code is {life.code}")
    return found


def _timely(life: Life) -> list[str]:
    began, scenario = life.began_stopping, life.scenario
    if began is None:
        return ["nobody has told the watchdog that the relay stops"]
    took = life.ended - began
    most = scenario.drain_seconds + SLACK_SECONDS
    if scenario.ending == "cancelled":
        most += SETTLE_SECONDS
    found = [f"the stop took {took:.3f} s"] if took > most else []
    fine = scenario.mood is CALM and not scenario.blows and not scenario.forgetful
    if (
        fine
        and scenario.ending in ("SIGTERM", "two signals", "launcher")
        and (took > scenario.drain_seconds * 0.4 + CALM_SECONDS or life.code)
    ):
        found.append(f"nothing was wrong, and the stop took {took:.3f} s and ended with {life.code}")
    report = life.worker.report if life.worker is not None else None
    if report is not None and report.seconds > scenario.drain_seconds + WORKER_SECONDS:
        found.append(f"the drain took {report.seconds:.3f} s")
    longest = max((request.ended - request.began for request in life.requests if request.ended is not None), default=0)
    if longest > scenario.outage_seconds + WAIT_SECONDS:
        found.append(f"a client waited for {longest:.1f} s")
    return found


def _counted(life: Life) -> list[str]:
    """How many entries the worker says it wrote. Exact where no doubt was left over and no id was given out twice."""
    server = life.server
    if life.worker is None or server.crashes:
        return []
    ours = [commit for commit in server.commits if commit[0] == OURS]
    answered = [answer for _, _, answer in ours]
    clear = answered == [] or (answered[-1] and all(a or b for a, b in pairwise(answered)))
    said, true = life.written, server.written(OURS)
    if said > true or (clear and said != true):
        return [f"the worker says it wrote {said} entries, and there are {true}"]
    return []


def _signed(life: Life) -> list[str]:
    """Every checkpoint that was signed, the last one at the stop too, is about the log that the next start finds."""
    tree, roots = Frontier(), {}
    for row in life.server.log:
        tree.append(row.hash)
        roots[tree.size] = tree.root()
    wrong = [size for size, root in life.signed if roots.get(size) != root]
    return [f"what was signed at {wrong[0]} entries is not in the log"] if wrong else []
