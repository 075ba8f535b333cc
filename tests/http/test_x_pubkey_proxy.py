"""The development header behind a real reverse proxy on the same machine, where everybody seems to be local.

The relay has it switched on and would take it from a client that comes directly, which is asked first and last, so that
a refusal is the proxy's doing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import trio

from tests.support.http import new_key
from tests.support.launching import free_port, launched, reachable_dir

SECONDS = 20
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
TAKEN = (200, {"tokens": []})
REFUSED = (401, {"error": "authentication required"})

pytestmark = pytest.mark.skipif(
    NGINX is None and not os.environ.get("CI"), reason="nginx is not installed (apt-get install nginx-light)"
)

# As most instructions for proxies and WebSockets say it.
KEPT_ALIVE = 'proxy_http_version 1.1; proxy_set_header Connection "";'
# What stands in `location` beside proxy_pass.
WAYS = {
    "nothing else": "",
    "the host of the client": "proxy_set_header Host $http_host;",
    "HTTP/1.1": "proxy_http_version 1.1;",
    "X-Forwarded-For": KEPT_ALIVE + "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
    "X-Forwarded-Proto": KEPT_ALIVE + "proxy_set_header X-Forwarded-Proto $scheme;",
    "X-Real-IP": KEPT_ALIVE + "proxy_set_header X-Real-IP $remote_addr;",
    "Forwarded": KEPT_ALIVE + 'proxy_set_header Forwarded "for=$remote_addr";',
    "Via": KEPT_ALIVE + 'proxy_set_header Via "1.1 front";',
    "the name of the site": KEPT_ALIVE + "proxy_set_header Host relay.example;",
}
# Hides everything: bytes of a client and bytes of this are the same.
DISGUISED = KEPT_ALIVE


@dataclass
class Front:
    """A relay and a proxy in front of it: their ports. The first step of a path says in which way it is passed on."""

    relay: int
    proxy: int


def step(name: str) -> str:
    """The path under which requests are passed on in this way."""
    return "/" + name.replace(" ", "-").replace("/", "-") + "/"


@asynccontextmanager
async def fronted(dsn: str) -> AsyncIterator[Front]:
    with reachable_dir() as directory:
        async with launched("relay serve", directory, DATABASE_URL=dsn, SPROUT_DEV_X_PUBKEY="true") as relay:
            await relay.ready()
            front = Front(relay.port, free_port())
            async with running_nginx(directory / "nginx", front):
                yield front


@asynccontextmanager
async def running_nginx(directory: Path, front: Front) -> AsyncIterator[None]:
    """In the foreground, as this account, with all that it writes in the directory."""
    assert NGINX is not None, "CI must have nginx"
    directory.mkdir()
    locations = "".join(
        f"location {step(name)} {{ proxy_pass http://127.0.0.1:{front.relay}/; {more} }}\n"
        for name, more in {**WAYS, "disguised": DISGUISED}.items()
    )
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # One process: nobody is left behind when it is killed.
    configuration = f"""
daemon off; master_process off; pid {directory}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{front.proxy}; {locations} }} }}
"""
    path = directory / "nginx.conf"
    path.write_text(configuration)
    process = subprocess.Popen([NGINX, "-p", directory, "-c", path, "-e", "stderr"], stdin=subprocess.DEVNULL)
    try:
        await wait_open(process, front.proxy)
        yield
    finally:
        process.kill()
        process.wait()


async def wait_open(process: subprocess.Popen[bytes], port: int) -> None:
    with trio.fail_after(SECONDS):
        while True:
            assert process.poll() is None, "nginx has ended"
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.02)
            else:
                await stream.aclose()
                return


async def ask(front: Front, way: str | None = None, **headers: str) -> tuple[int, object]:
    """Who the relay thinks it is talking to; None: directly. The same client for all, so that only the way differs."""
    base = f"http://127.0.0.1:{front.relay}/" if way is None else f"http://127.0.0.1:{front.proxy}{step(way)}"
    async with httpx2.AsyncClient(timeout=SECONDS, trust_env=False) as client:
        answer = await client.get(f"{base}api/tokens", headers=headers)
        return answer.status_code, answer.json()


async def test_a_real_proxy_is_refused_however_it_is_set_up(migrated_dsn: str) -> None:
    header = {"X-Pubkey": new_key().public_hex}
    async with fronted(migrated_dsn) as front:
        assert await ask(front, **header) == TAKEN
        found = {way: await ask(front, way, **header) for way in WAYS}
        assert found == dict.fromkeys(WAYS, REFUSED)
        # A client cannot talk the proxy's marks away, nor pretend to be elsewhere than it is.
        assert await ask(front, "X-Forwarded-For", **header, **{"X-Forwarded-For": "127.0.0.1"}) == REFUSED
        assert await ask(front, "the host of the client", **header, Host="localhost") == REFUSED
        assert await ask(front, **header) == TAKEN


async def test_what_a_disguised_proxy_can_do_is_known(migrated_dsn: str) -> None:
    """Kept alive, without a header of its own, and with the loopback address for a host: that is a client, byte for
    byte. So the relay must not have the header switched on behind a proxy; this is said in its manual, and here."""
    header = {"X-Pubkey": new_key().public_hex}
    async with fronted(migrated_dsn) as front:
        assert await ask(front, "disguised", **header) == TAKEN
        # From a page in a browser it is refused all the same.
        assert await ask(front, "disguised", **header, Origin="https://page.example") == REFUSED
