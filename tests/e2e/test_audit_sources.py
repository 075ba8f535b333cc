"""`relay audit verify --against` a relay that is running, over HTTP and over its WebSocket, as an auditor does it."""

from __future__ import annotations

import secrets
import subprocess
import sys

import orjson
import pytest
import trio

from relay.audit import checkpoint_file
from tests.support.core import ALICE
from tests.support.launching import free_port, launched, reachable_dir
from tests.support.postgres import PostgresServer
from tests.support.relay import fields

pytestmark = pytest.mark.slow


async def command(*arguments: str) -> bytes:
    """What it says on stdout; it must end well."""
    done = await trio.run_process(
        [sys.executable, "-m", "relay", *arguments], capture_stdout=True, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout


async def test_a_running_relay_is_a_source_of_checkpoints(
    postgres_server: PostgresServer, migrated_template: str
) -> None:
    name = postgres_server.create_database(migrated_template)
    dsn, port = postgres_server.dsn(name), free_port()
    with reachable_dir() as directory:
        async with launched(
            "relay serve",
            directory,
            DATABASE_URL=dsn,
            SPROUT_GRACE_SECONDS="0",
            SPROUT_BIND_ADDR=f"127.0.0.1:{port}",
            RELAY_URL=f"ws://127.0.0.1:{port}",
            SPROUT_RELAY_PRIVATE_KEY=secrets.token_hex(32),
            SPROUT_AUDIT_CHECKPOINT_SECONDS="0.1",
        ) as relay:
            relay.port = port
            await relay.ready()
            async with trio.open_nursery() as nursery:
                client = await relay.connect(nursery, ALICE)
                await client.send("EVENT", fields(ALICE.sign(1, "kept", [])))
                assert (await client.expect("OK"))[2] is True
                nursery.cancel_scope.cancel()
            await relay.wait_said("signed a checkpoint of the audit log")
            minted = await command("token", "mint", "--name", "t", "--scopes", "audit:read", "--database-url", dsn)
            token = next(line.split()[1] for line in minted.decode().splitlines() if line.startswith("token"))
            (directory / "token").write_text(token)
            # The token is for HTTP: over the WebSocket another key logs in, whose token it is not.
            sources = [f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"]
            said = await command(
                "audit", "verify", "--json", "--database-url", dsn, "--data-dir", str(directory / "auditor"),
                "--token-file", str(directory / "token"), *(each for url in sources for each in ("--against", url)),
            )  # fmt: skip
            report = orjson.loads(said.splitlines()[-1])
            assert report["ok"], report["faults"]
            seen = {each["source"] for each in report["checkpoints"]["sources"]}
            assert seen == {*sources, "database", "published events"}
            assert list(checkpoint_file.read(directory / "data" / checkpoint_file.FILE_NAME))
    postgres_server.drop_database(name)
