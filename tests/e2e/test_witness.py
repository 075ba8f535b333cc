"""Two relays that witness each other: cosignatures both ways, and a log that was taken back is noticed by the other."""

from __future__ import annotations

import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from relay.audit import checkpoint_file, note
from relay.audit.note import Checkpoint
from relay.audit.witness import name_of
from relay.nostr.keys import SecretKey
from tests.support.core import ALICE
from tests.support.launching import Launched, free_port, launched, reachable_dir
from tests.support.postgres import PostgresServer
from tests.support.relay import fields

pytestmark = pytest.mark.slow

CHECKPOINT_SECONDS = 0.1


@dataclass(frozen=True)
class Site:
    """One of the two: its key and address, which the other is told."""

    directory: Path
    key: SecretKey
    port: int

    @property
    def file(self) -> Path:
        return self.directory / "data" / checkpoint_file.FILE_NAME

    def records(self) -> list[Checkpoint]:
        return list(checkpoint_file.read(self.file)) if self.file.exists() else []

    def cosigned(self, by: Site) -> int:
        """The size of the largest checkpoint in the file that the other has cosigned; 0 if there is none."""
        pubkey = by.key.public_hex
        found = [each for each in self.records() if note.cosigned_at(each, name_of(pubkey), pubkey) is not None]
        return max((each.size for each in found), default=0)

    @asynccontextmanager
    async def running(self, dsn: str, other: Site) -> AsyncIterator[Launched]:
        async with launched(
            "relay serve",
            self.directory,
            DATABASE_URL=dsn,
            SPROUT_GRACE_SECONDS="0",
            SPROUT_BIND_ADDR=f"127.0.0.1:{self.port}",
            RELAY_URL=f"ws://127.0.0.1:{self.port}",
            SPROUT_RELAY_PRIVATE_KEY=self.key.to_bytes().hex(),
            SPROUT_AUDIT_CHECKPOINT_SECONDS=str(CHECKPOINT_SECONDS),
            SPROUT_AUDIT_WITNESSES=f"ws://127.0.0.1:{other.port}#{other.key.public_hex}",
            SPROUT_AUDIT_WITNESS_FOR=other.key.public_hex,
        ) as found:
            found.port = self.port
            yield found


async def say(relay: Launched, texts: int) -> None:
    async with trio.open_nursery() as nursery:
        client = await relay.connect(nursery, ALICE)
        for number in range(texts):
            await client.send("EVENT", fields(ALICE.sign(1, f"{number} {secrets.token_hex(4)}", [])))
            assert (await client.expect("OK"))[2] is True
        nursery.cancel_scope.cancel()


async def stop(relay: Launched) -> None:
    relay.signal(signal.SIGTERM)
    assert (await relay.exit())[0] == 0


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.05)


async def test_each_is_the_others_witness(postgres_server: PostgresServer, migrated_template: str) -> None:
    names = [postgres_server.create_database(migrated_template) for _ in range(2)]
    dsn, dsn_two = map(postgres_server.dsn, names)
    with reachable_dir() as here, reachable_dir() as there:
        one, two = (Site(each, SecretKey.from_bytes(secrets.token_bytes(32)), free_port()) for each in (here, there))
        async with two.running(dsn_two, one) as relay_two:
            async with one.running(dsn, two) as relay_one:
                await relay_one.ready()
                await relay_two.ready()
                await say(relay_one, 1)
                await say(relay_two, 1)
                await until(lambda: one.cosigned(two) and two.cosigned(one))
                await comes_to_rest(one, two)
                before = one.cosigned(two)
                await stop(relay_one)
            names.append(postgres_server.create_database(names[0]))
            kept = one.file.read_bytes()
            async with one.running(dsn, two) as relay_one:
                await relay_one.ready()
                await say(relay_one, 30)
                await until(lambda: one.cosigned(two) >= before + 30)
            # Database and file: on this machine nothing is left that knows of the thirty.
            one.file.write_bytes(kept)
            async with one.running(postgres_server.dsn(names[-1]), two) as relay_one:
                said = await relay_one.wait_said("a witness has cosigned another audit log under our name")
                assert said["level"] == "critical"
                assert said["witness"] == name_of(two.key.public_hex)
                assert one.cosigned(two) < before + 30
            assert [line for line in relay_two.log() if line.get("level") in ("error", "critical")] == []
    for name in names:
        postgres_server.drop_database(name)


async def comes_to_rest(*sites: Site) -> None:
    """Cosigning makes nothing that would have to be cosigned: after a while there are no more checkpoints."""
    with trio.fail_after(20):
        found = None
        while found != (found := [len(site.records()) for site in sites]):
            await trio.sleep(5 * CHECKPOINT_SECONDS)
