"""Rounds on a PostgreSQL that is not the relay's own: over a long line, and with a second relay on it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Self

import trio

from relay.asyncpg_trio import connect
from relay.audit.log import ADVISORY_LOCK
from relay.embedded import cluster
from scripts.tortures.campaign import Campaign, at
from scripts.tortures.process import Relay, fresh_relay
from scripts.tortures.proxy import long_line
from scripts.tortures.server import postgres

ROUND_TRIP_SECONDS = 0.01
FULL_ENTRIES = 1000
"""As many as the audit queue holds."""
FULL_SECONDS_MAX = 1.0
FILL_SECONDS = 20.0
SURVIVED_SECONDS = 1.0
CHAINING_SECONDS_MAX = 1.0
"""How long a dead relay may keep the others from the log."""
_KEY = f"{0x7077:064x}"
"""Relays on one database have one key."""


@contextmanager
def on_a_server(settings: Mapping[str, str], *, keep: bool, round_trip_seconds: float = 0.0) -> Iterator[Relay]:
    """A relay on a server of its own, over a line with that much more of a round trip."""
    with fresh_relay(keep=keep) as relay, postgres(relay.base / "server") as socket_path:
        relay.own_dsn = cluster.dsn(socket_path.parent)
        relay.settings = dict(settings) | {"DATABASE_URL": relay.own_dsn, "SPROUT_RELAY_PRIVATE_KEY": _KEY}
        if not round_trip_seconds:
            yield relay
            relay.end()
            return
        with long_line(str(socket_path), round_trip_seconds) as port:
            relay.settings["DATABASE_URL"] = f"postgresql://{cluster.ROLE}@127.0.0.1:{port}/relay?sslmode=disable"
            yield relay
            relay.end()


def latency_place(settings: Mapping[str, str], *, keep: bool) -> AbstractContextManager[Relay]:
    return on_a_server(settings, keep=keep, round_trip_seconds=ROUND_TRIP_SECONDS)


# -- a full queue ------------------------------------------------------------------------------------------------------


def latency_round(campaign: Campaign) -> list[str]:
    """Nothing can be chained until the queue is full; then SIGTERM, and how long the log takes for all of it."""
    relay, load = campaign.relay, campaign.load()
    with LogWatch(relay.dsn, locked=True) as watch:
        full = load.run(lambda: watch.waiting >= FULL_ENTRIES, FILL_SECONDS)
        if not full:
            campaign.breaches.append(f"only {watch.waiting} entries wait after {FILL_SECONDS:g} s of load")
        told_at = time.monotonic()
        relay.signal(signal.SIGTERM)
        load.run(lambda: False, 0.05)
        waiting, released = watch.release()
        load.run(lambda: watch.empty_at > released, 10)
    load.run(lambda: load.all_gone, 10)
    load.close()
    told = campaign.judge_exit(told_at, (0,))
    took = (watch.empty_at - released) * FULL_ENTRIES / max(FULL_ENTRIES, waiting)
    if not watch.empty_at or took > FULL_SECONDS_MAX:
        campaign.breaches.append(f"{FULL_ENTRIES} entries took {took:.2f} s")
    return [f"{waiting} entries", campaign.figure(f"chained {FULL_ENTRIES} in", took), *told, campaign.start()]


class LogWatch:
    """Looks at outbox and log all the time, in a thread and by a connection of its own; holds the writers' lock if told
    to, until `release`."""

    def __init__(self, dsn: str, *, locked: bool = False) -> None:
        self.waiting = 0
        self.empty_at = 0.0
        self.heads: list[tuple[float, int]] = []
        """(moment, last seq), whenever it has changed."""
        self._dsn = dsn
        self._locked = threading.Event()
        self._let_go, self._released, self._over = threading.Event(), threading.Event(), threading.Event()
        self._released_at = 0.0
        self._at_release = 0
        if not locked:
            self._let_go.set()
        self._thread = threading.Thread(target=trio.run, args=(self._watch,), name="log watch")

    def release(self) -> tuple[int, float]:
        """How many entries waited when the lock was given back, and when that was."""
        self._let_go.set()
        assert self._released.wait(10)
        return self._at_release, self._released_at

    async def _watch(self) -> None:
        con = await connect(self._dsn)
        held = not self._let_go.is_set()
        if held:
            await con.execute(f"SELECT pg_advisory_lock({ADVISORY_LOCK})")
        self._locked.set()
        while not self._over.is_set():
            row = await con.fetchrow(
                "SELECT (SELECT count(*) FROM audit_outbox) AS waiting, (SELECT max(seq) FROM audit_log) AS head"
            )
            assert row is not None
            self.waiting, now = row["waiting"], time.monotonic()
            if not self.waiting and not held:
                self.empty_at = now
            if not self.heads or self.heads[-1][1] != row["head"]:
                self.heads.append((now, row["head"]))
            if held and self._let_go.is_set():
                self._at_release, held = self.waiting, False
                await con.execute(f"SELECT pg_advisory_unlock({ADVISORY_LOCK})")
                self._released_at = time.monotonic()
                self._released.set()
            await trio.sleep(0.005)
        con.terminate()

    def pause(self, since: float) -> float:
        """The longest time without a new head from `since` on."""
        moments = [since, *(moment for moment, _ in self.heads if moment > since)]
        return max((later - earlier for earlier, later in pairwise(moments)), default=0.0)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._locked.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._let_go.set()
        self._thread.join()


# -- two relays --------------------------------------------------------------------------------------------------------


def two_begin(campaign: Campaign) -> str:
    campaign.start()
    first = campaign.relay
    second = Relay(first.base / "second", settings=dict(first.settings), own_dsn=first.own_dsn)
    second.base.mkdir()
    first.others.append(second)
    return campaign.start(second)


def two_round(campaign: Campaign) -> list[str]:
    """Both write; one of them is killed or stopped, and the other one goes on as if nothing had been."""
    pair = [campaign.relay, *campaign.relay.others]
    campaign.chance.shuffle(pair)
    victim, survivor = pair
    number = campaign.chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    dying, living = campaign.load(victim), campaign.load(survivor)
    told_at = [0.0]

    def end() -> None:
        told_at[0] = time.monotonic()
        victim.signal(number)

    with LogWatch(survivor.dsn) as watch:
        timer = at(campaign.moment(), end)
        while timer.is_alive() or not dying.all_gone:
            dying.run(lambda: False, 0.02)
            living.run(lambda: False, 0.02)
            if told_at[0] and time.monotonic() > told_at[0] + 10:
                campaign.breaches.append("connections outlived the relay that served them")
                break
        living.run(lambda: time.monotonic() > told_at[0] + SURVIVED_SECONDS, 10)
        answered = living.run(lambda: living.waiting == 0 or living.all_gone, 10, publish=False)
    if living.gone or not answered:
        campaign.breaches.append(f"the other relay lost {living.gone} connections, {living.waiting} unanswered")
    pause = watch.pause(told_at[0])
    if pause > CHAINING_SECONDS_MAX:
        campaign.breaches.append(f"nothing was chained for {pause:.2f} s")
    code = victim.wait(10)
    if code not in (0, -signal.SIGKILL):
        campaign.breaches.append(f"exit code {code}")
    for load in (dying, living):
        load.close()
    return [f"{number.name}", campaign.figure("log stood still", pause), campaign.start(victim)]
