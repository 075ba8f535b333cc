"""What is done to a relay that has its own database: killed, stopped, its PostgreSQL killed or frozen under it.

Every function is one round (`campaign.Mode`): under load something happens, and in the end a relay runs again.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import time
from contextlib import suppress

from scripts.benchmarks.client import Client, event, key
from scripts.tortures.campaign import Campaign, at
from scripts.tortures.process import FORMS, ReadinessWatch, Relay, kill_postgres

AFTERWARDS_SECONDS = 1.0
"""How long the load goes on after PostgreSQL was killed, at least."""
ANSWER_SECONDS = 20.0
FREEZE_SECONDS = (-0.05, 0.3)
"""When the database freezes, before or after the signal: the drain of a relay under load takes about this long."""
DEAF_CLIENTS = 50


def kill_round(campaign: Campaign) -> list[str]:
    """SIGKILL of the relay; PostgreSQL, its child, is told so by the kernel."""
    relay = campaign.relay
    load = campaign.load()
    at(campaign.moment(), lambda: relay.signal(signal.SIGKILL))
    if not load.run(lambda: load.all_gone, 10):
        campaign.breaches.append("connections outlived the relay that served them")
    load.close()
    relay.wait(10)
    told = []
    if campaign.chance.random() < 0.25:
        relay.spawn()
        time.sleep(campaign.chance.uniform(0, 1.5))
        relay.kill()
        told.append("killed again at its start")
    return [campaign.start(), *told]


def postgres_round(campaign: Campaign) -> list[str]:
    """PostgreSQL dies: the relay goes on, loses no connection, and works again."""
    relay, breaches = campaign.relay, campaign.breaches
    load, killed, ways = campaign.load(), [0.0], [""]

    def kill() -> None:
        killed[0] = time.monotonic()
        ways[0] = kill_postgres(relay, campaign.chance)

    with ReadinessWatch(relay.port) as watch:
        timer = at(campaign.moment(), kill)
        load.run(lambda: not timer.is_alive(), 10)
        works = load.run(lambda: bool(load.moments) and load.moments[-1] > killed[0] + AFTERWARDS_SECONDS, 15)
        answered = load.run(lambda: load.waiting == 0 or load.all_gone, ANSWER_SECONDS, publish=False)
    if not works:
        breaches.append("nothing was accepted any more after PostgreSQL had been killed")
    if not answered:
        breaches.append(f"{load.waiting} events were never answered")
    if load.gone:
        breaches.append(f"{load.gone} connections were lost with PostgreSQL")
    if not ways[0]:
        breaches.append("PostgreSQL could not be killed")
    if strange := {status for _, status in watch.answers} - {200, 503}:
        breaches.append(f"readiness answered {strange}")
    down, up = watch.outage(killed[0])
    told = [f"killed {ways[0]}", campaign.figure("longest silence", load.silence())]
    if down is None:
        told.append("never seen unready")
    elif up is None:
        breaches.append("readiness did not return")
    else:
        told += [campaign.figure("unready after", down), campaign.figure("ready again after", up)]
    load.close()
    if relay.process is None or relay.process.poll() is not None:
        breaches.append("the relay did not survive the death of PostgreSQL")
    return told


def sigterm_round(campaign: Campaign) -> list[str]:
    """SIGTERM in mid-load, then a new start."""
    return _stopped_under_load(campaign)


# -- frozen ------------------------------------------------------------------------------------------------------------


def frozen_round(campaign: Campaign) -> list[str]:
    """SIGTERM, and PostgreSQL stops answering during the drain: every process of it gets SIGSTOP."""
    frozen: list[int] = []

    def freeze() -> None:
        frozen.extend(campaign.relay.postgres())
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    after = campaign.chance.uniform(*FREEZE_SECONDS)
    told = _stopped_under_load(campaign, freeze, after)
    if left := set(frozen) & set(campaign.relay.postgres()):
        campaign.breaches.append(f"processes of the frozen server are still there: {left}")
    return [f"frozen {after:+.2f} s", *told]


def _stopped_under_load(campaign: Campaign, act: object = None, after: float = 0.0) -> list[str]:
    """SIGTERM in mid-load, and `act` that much later (or earlier)."""
    relay, load, told_at = campaign.relay, campaign.load(), [0.0]

    def terminate() -> None:
        told_at[0] = time.monotonic()
        relay.signal(signal.SIGTERM)

    moment = campaign.moment()
    at(moment, terminate)
    if callable(act):
        at(max(0.0, moment + after), act)
    load.run(lambda: load.all_gone, 15)
    load.close()
    told = campaign.judge_exit(told_at[0])
    return [*told, campaign.start()]


# -- clients that do not read ------------------------------------------------------------------------------------------


def readers_round(campaign: Campaign) -> list[str]:
    """SIGTERM with fifty clients that have stopped reading, with more waiting for each than their kernels take, and
    one upload that drips."""
    relay, load = campaign.relay, campaign.load()
    load.run(lambda: False, campaign.moment())
    deaf = [_deaf_client(relay, load.channel, number) for number in range(DEAF_CLIENTS)]
    writer = load.talkers[0].client
    load.run(lambda: load.waiting == 0, ANSWER_SECONDS, publish=False)
    for number in range(10):
        large = event(writer.secret, 9, f"{number}" + "x" * 60_000, [["h", load.channel]])
        campaign.record.sent[large.id] = large.kind
        writer.publish(large)
        campaign.record.answer(large.id, True, "")
    with _dripping(relay.port) as upload:
        drips = itertools.count()
        told_at = time.monotonic()
        relay.signal(signal.SIGTERM)

        def ended() -> bool:
            next(drips)
            with suppress(OSError):
                upload.send(b" ")
            return relay.process is None or relay.process.poll() is not None

        load.run(ended, 15)
        told = campaign.judge_exit(told_at)
    load.close()
    for client in deaf:
        client.close()
    return [f"{len(deaf)} deaf", *told, campaign.start()]


def _deaf_client(relay: Relay, channel: str, number: int) -> Client:
    client = Client("127.0.0.1", relay.port, key(500 + number))
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.send(b'["REQ","deaf",{"kinds":[9],"#h":["' + channel.encode() + b'"],"limit":0}]')
    client.read("EOSE")
    return client


def _dripping(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(b"POST /api/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n{")
    return sock


# -- launch forms ------------------------------------------------------------------------------------------------------

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CASES = list(itertools.product(FORMS, _SIGNALS, ("process", "group"), (1, 2)))


def forms_begin(campaign: Campaign) -> str:
    campaign.relay.command = FORMS[_case(0)[0]]
    return campaign.start()


def forms_round(campaign: Campaign) -> list[str]:
    """The next of all launch forms is told to stop under load: by SIGTERM or SIGINT, alone or with its group, once or
    twice."""
    form, number, target, times = _case(campaign.number - 1)
    load, told_at = campaign.load(), [0.0]

    def tell() -> None:
        told_at[0] = time.monotonic()
        for _ in range(times):
            campaign.relay.signal(number, group=target == "group")
            time.sleep(0.05)

    timer = at(campaign.moment(), tell)
    load.run(lambda: load.all_gone, 15)
    load.close()
    timer.join()
    # What Hypercorn's parent process ends with is its own: a second signal may meet it on its way out.
    parents = (-number,) if form == "hypercorn -w 1" and times > 1 else ()
    told = campaign.judge_exit(told_at[0], (0, *parents))
    campaign.relay.command = FORMS[_case(campaign.number)[0]]
    return [f"{form}, {number.name} to the {target} {times} times", *told, campaign.start()]


def _case(number: int) -> tuple[str, signal.Signals, str, int]:
    # Not one form after the other: a short campaign should meet most of them.
    order = random.Random(1)
    cases = list(_CASES)
    order.shuffle(cases)
    return cases[number % len(cases)]
