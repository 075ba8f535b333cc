"""Rounds in which the relay dies at one named place (scripts/tortures/failpoints.py)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import trio

from relay.asyncpg_trio import connect
from scripts.tortures.campaign import Campaign
from scripts.tortures.failpoints import ARMED, FAILPOINTS, HIT
from scripts.tortures.load import Load
from scripts.tortures.process import Relay

REACH_SECONDS = 15.0
CALLS_MAX = 4
"""At which call of the armed place the relay dies, at most."""

_REFUSALS = """
SELECT count(*)
FROM (SELECT action, metadata FROM audit_outbox UNION ALL SELECT action, metadata FROM audit_log) entry
WHERE action = 'auth_failure' AND metadata::jsonb ->> 'from' = $1
"""


def begin_dying(campaign: Campaign) -> str:
    return _start(campaign)


def failpoint_round(campaign: Campaign) -> list[str]:
    """The next place of all of them: reached, and the relay started again."""
    name = campaign.place(campaign.number - 1)
    relay, load = campaign.relay, campaign.load()
    load.run(lambda: False, campaign.moment() / 2)
    began = time.monotonic()
    needs = FAILPOINTS[name].needs
    if needs == "load":
        _arm(relay, campaign.chance.randint(1, CALLS_MAX))
        load.run(lambda: load.all_gone, REACH_SECONDS)
        told = _died(campaign, load, began)
        return [name, *told, _start(campaign)]
    refused = _refused_request(campaign)
    _stop_while_stuck(relay, load, armed=needs == "stuck stop")
    told = []
    if needs == "spool":
        told += campaign.judge_exit(began, (75,))
        _arm(relay, 1)
        began = time.monotonic()
        relay.spawn()
    told += _died(campaign, load, began)
    told.append(_start(campaign))
    if (entries := trio.run(_refusals, relay, refused)) != 1:
        campaign.lost += entries == 0
        campaign.doubled += entries > 1
        campaign.breaches.append(f"a refusal that was counted before the stop has {entries} entries")
    return [name, *told]


def _died(campaign: Campaign, load: Load, began: float) -> list[str]:
    relay = campaign.relay
    try:
        relay.wait(REACH_SECONDS)
    except subprocess.TimeoutExpired:
        relay.kill()
    took = time.monotonic() - began
    load.close()
    if not (relay.base / HIT).exists():
        campaign.breaches.append(f"the place was not reached: {campaign.place(campaign.number - 1)}")
    for mark in (ARMED, HIT):
        (relay.base / mark).unlink(missing_ok=True)
    return [f"died after {took:.2f} s"]


def _start(campaign: Campaign) -> str:
    """As what dies at the next round's place, once it is armed."""
    relay, name = campaign.relay, campaign.place(campaign.number)
    relay.command = (sys.executable, "-m", "scripts.tortures.failpoints", name)
    return campaign.start()


def _arm(relay: Relay, calls: int) -> None:
    (relay.base / ARMED).write_text(str(calls))


def _refused_request(campaign: Campaign) -> str:
    """From an address of its own, which is returned: refusals are counted in memory, and written at the stop."""
    address = f"127.1.{campaign.number // 250}.{campaign.number % 250 + 1}"
    with socket.create_connection(("127.0.0.1", campaign.relay.port), 10, (address, 0)) as sock:
        sock.sendall(
            b"GET /api/channels HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer none\r\nConnection: close\r\n\r\n"
        )
        answer = sock.recv(1 << 16)
    assert b" 401 " in answer.split(b"\r\n", 1)[0], answer
    return address


def _stop_while_stuck(relay: Relay, load: Load, *, armed: bool) -> None:
    """What is then still to be written has nowhere to go but to the spool. Returns when the relay has ended."""
    frozen = relay.postgres()
    _signal_all(frozen, signal.SIGSTOP)
    if armed:
        _arm(relay, 1)
    relay.signal(signal.SIGTERM)
    load.run(lambda: relay.process is None or relay.process.poll() is not None, REACH_SECONDS)
    _signal_all(frozen, signal.SIGCONT)


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


async def _refusals(relay: Relay, address: str) -> int:
    con = await connect(relay.dsn)
    found: int = await con.fetchval(_REFUSALS, address)
    con.terminate()
    return found
