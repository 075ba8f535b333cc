"""Having checkpoints cosigned: a real log on PostgreSQL, real witnesses behind real ports, and ports that lie."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from relay.asyncpg_trio import Pool
from relay.audit import checkpoint_file, checkpoints, note, outbox, tree_store, witness_client, witnesses
from relay.audit.log import chain_outbox
from relay.audit.note import Checkpoint
from relay.audit.witness import Conflict, Cosigned, Split, Witness, name_of, parse_request
from relay.audit.witness_client import ANSWER_BYTES_MAX, PATH, Peer, peers
from relay.audit.witnesses import SIZE_TYPE, Witnesses
from relay.errors import ConfigError
from relay.nostr import nip19
from relay.nostr.keys import SecretKey
from tests.audit.memory import entries
from tests.support.witnessing import LOG_KEY, WITNESS_KEY, MemoryLog, Reply, WitnessPort

OTHER_KEY = SecretKey.from_bytes(bytes([9]) * 32)
NAME = name_of(WITNESS_KEY.public_hex)
ORIGIN = note.origin_of(LOG_KEY.public_hex)
HEX = WITNESS_KEY.public_hex


class TestPeers:
    @pytest.mark.parametrize(
        ("text", "url"),
        [
            ("https://relay.example", "https://relay.example" + PATH),
            ("wss://relay.example/", "https://relay.example" + PATH),
            ("ws://127.0.0.1:3000", "http://127.0.0.1:3000" + PATH),
            ("http://relay.example:81/under/", "http://relay.example:81/under" + PATH),
        ],
    )
    def test_an_address(self, text: str, url: str) -> None:
        assert peers(f"{text}#{HEX}") == (Peer(url, HEX),)

    def test_several(self) -> None:
        npub = nip19.encode_npub(OTHER_KEY.public_hex)
        assert [each.pubkey for each in peers(f" https://a#{HEX} ,, https://b#{npub},")] == [HEX, OTHER_KEY.public_hex]
        assert peers("") == ()

    @pytest.mark.parametrize(
        "text",
        [
            "https://relay.example",
            "https://relay.example#",
            f"https://relay.example#{HEX[:-1]}",
            f"relay.example#{HEX}",
            f"ftp://relay.example#{HEX}",
            f"https://#{HEX}",
            f"https://relay.example:x#{HEX}",
            f"https://relay.example?key=1#{HEX}",
            f"https://me:secret@relay.example#{HEX}",
            f"https://a#{HEX},https://b#{HEX}",
        ],
    )
    def test_what_makes_no_sense(self, text: str) -> None:
        with pytest.raises(ConfigError, match="SPROUT_AUDIT_WITNESSES") as refusal:
            peers(text)
        assert "secret" not in str(refusal.value)


# -- a log, and its witnesses ------------------------------------------------------------------------------------------


@dataclass
class OwnLog:
    """Ours: chained rows, and checkpoints as the checkpointer leaves them."""

    pool: Pool
    file: Path
    _numbers: count[int] = field(default_factory=lambda: count(1))

    async def grow(self, rows: int) -> Checkpoint:
        first = next(self._numbers) * 1000
        async with self.pool.acquire() as con:
            await outbox.insert(con, entries(first, rows))
            assert await chain_outbox(con, entries_max=500) == rows
            size = await con.fetchval("SELECT max(seq) FROM audit_log")
            signed = note.sign(ORIGIN, size, await tree_store.root_at(con, size), LOG_KEY)
            assert await checkpoints.insert(con, signed, 1)
        return signed

    async def cosigned(self, checkpoint: Checkpoint, key: SecretKey = WITNESS_KEY) -> bool:
        stored = await checkpoints.at(self.pool, checkpoint.origin, checkpoint.size)
        assert stored is not None
        return note.cosigned_at(stored.checkpoint, name_of(key.public_hex), key.public_hex) is not None

    def witnesses(self, *ports: tuple[WitnessPort, SecretKey], **options: float) -> Witnesses:
        found = peers(",".join(f"{port.url}#{key.public_hex}" for port, key in ports))
        return Witnesses(
            found,
            pool=self.pool,
            pubkey=LOG_KEY.public_hex,
            file=self.file,
            **({"retry_seconds": 0.01, "pace_seconds": 0.0} | options),
        )


@pytest.fixture
async def log(migrated_dsn: str, tmp_path: Path) -> AsyncIterator[OwnLog]:
    async with Pool(migrated_dsn, size_min=1, size_max=6) as pool:
        yield OwnLog(pool, tmp_path / "checkpoints.txt")


async def real(nursery: trio.Nursery, pool: Pool, key: SecretKey = WITNESS_KEY) -> WitnessPort:
    """A witness that keeps to the protocol; its memory is in the same database."""
    witness = Witness(pool, key, frozenset({LOG_KEY.public_hex}), lambda: 1_700_000_000_000_000)

    async def answer(body: bytes) -> Reply:
        match await witness.answer(parse_request(body)):
            case Cosigned(lines):
                return 200, "text/plain; charset=utf-8", "".join(f"{line}\n" for line in lines).encode()
            case Conflict(size) | Split(known=Checkpoint(size=size)):
                return 409, SIZE_TYPE, f"{size}\n".encode()
            case declined:
                return declined.status, "application/problem+json", b"{}"

    return await scripted(nursery, answer)


async def scripted(nursery: trio.Nursery, answer: Callable[[bytes], Awaitable[Reply]]) -> WitnessPort:
    port = WitnessPort(answer)
    await nursery.start(port.serve)
    return port


async def saying(nursery: trio.Nursery, *replies: Reply) -> WitnessPort:
    """These replies in turn, and the last for ever."""
    left = list(replies)

    async def answer(_: bytes) -> Reply:
        await trio.lowlevel.checkpoint()
        return left.pop(0) if len(left) > 1 else left[0]

    return await scripted(nursery, answer)


@asynccontextmanager
async def running(asked: Witnesses) -> AsyncIterator[Witnesses]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked.run)
        yield asked
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


def olds(port: WitnessPort) -> list[tuple[int, int]]:
    """(old size, size) of the requests."""
    found = [parse_request(body) for body in port.bodies]
    return [(each.old, each.checkpoint.size) for each in found]


async def test_each_new_checkpoint_is_cosigned(log: OwnLog, nursery: trio.Nursery) -> None:
    port = await real(nursery, log.pool)
    first = await log.grow(5)
    async with running(log.witnesses((port, WITNESS_KEY))) as asked:
        await until(lambda: asked.statistics()[0].cosignatures == 1)
        second = await log.grow(300)
        asked.hint(second)
        await until(lambda: asked.statistics()[0].cosignatures == 2)
        asked.hint(second)
        await trio.testing.wait_all_tasks_blocked(0.02)
    assert olds(port) == [(0, 5), (5, 305)], "and nothing is asked twice"
    assert port.paths == [PATH] * 2
    assert await log.cosigned(first)
    assert await log.cosigned(second)
    state = asked.statistics()[0]
    assert (state.cosigned_size, state.failure, state.disputed, state.failures) == (305, None, False, 0)
    # The file alone is enough to show it.
    for kept, signed in zip(checkpoint_file.read(log.file), (first, second), strict=True):
        assert note.cosigned_at(kept, NAME, HEX) == 1_700_000_000
        assert kept.text == signed.text
        assert note.is_signed_by(kept, LOG_KEY.public_hex)


async def test_what_was_cosigned_before_the_start_is_known(log: OwnLog, nursery: trio.Nursery) -> None:
    """And asked for once more, which would show that the witness knows better; kept it is only once."""
    port = await real(nursery, log.pool)
    await log.grow(5)
    for _ in range(2):
        async with running(log.witnesses((port, WITNESS_KEY))) as asked:
            await until(lambda: asked.statistics()[0].cosignatures == 1)
            asked.hint()
            await trio.testing.wait_all_tasks_blocked(0.02)
    assert olds(port) == [(0, 5), (5, 5)]
    await log.grow(2)
    async with running(log.witnesses((port, WITNESS_KEY))) as asked:
        await until(lambda: asked.statistics()[0].cosigned_size == 7)
    assert olds(port) == [(0, 5), (5, 5), (5, 7)]
    assert [each.size for each in checkpoint_file.read(log.file)] == [5, 7]


async def test_a_log_that_was_taken_back_is_noticed_at_the_start(log: OwnLog, nursery: trio.Nursery) -> None:
    port = await real(nursery, log.pool)
    await log.grow(5)
    async with running(log.witnesses((port, WITNESS_KEY))) as asked:
        await until(lambda: asked.statistics()[0].cosignatures == 1)
        asked.hint(await log.grow(4))
        await until(lambda: asked.statistics()[0].cosignatures == 2)
    for table in ("audit_cosignatures", "audit_checkpoints"):
        await log.pool.execute(f"DELETE FROM {table} WHERE size = 9")
    async with running(log.witnesses((port, WITNESS_KEY), retry_seconds=60)) as asked:
        await until(lambda: asked.statistics()[0].disputed)
    assert olds(port)[2:] == [(5, 5)]


async def test_a_witness_that_is_further_than_we_know(log: OwnLog, nursery: trio.Nursery) -> None:
    """It cosigned, and we fell before it was stored: its conflict says where it is."""
    port = await real(nursery, log.pool)
    await log.grow(5)
    async with running(log.witnesses((port, WITNESS_KEY))) as asked:
        await until(lambda: asked.statistics()[0].cosignatures == 1)
    await log.pool.execute("DELETE FROM audit_cosignatures")
    second = await log.grow(6)
    async with running(log.witnesses((port, WITNESS_KEY))) as asked:
        await until(lambda: asked.statistics()[0].cosignatures == 1)
    assert olds(port) == [(0, 5), (0, 11), (5, 11)]
    await log.pool.execute("DELETE FROM audit_cosignatures")
    async with running(log.witnesses((port, WITNESS_KEY))) as asked:
        await until(lambda: asked.statistics()[0].cosignatures == 1)
    assert olds(port)[3:] == [(0, 11), (11, 11)]
    assert await log.cosigned(second)


async def test_one_witness_does_not_wait_for_another(log: OwnLog, nursery: trio.Nursery) -> None:
    async def hang(_: bytes) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    dead, well = await scripted(nursery, hang), await real(nursery, log.pool, OTHER_KEY)
    async with running(log.witnesses((dead, WITNESS_KEY), (well, OTHER_KEY))) as asked:
        for size in (3, 6):
            signed = await log.grow(3)
            asked.hint(signed)
            await until(lambda: asked.statistics()[1].cosigned_size == size)  # noqa: B023
            assert await log.cosigned(signed, OTHER_KEY)
    assert len(dead.bodies) == 1
    assert not await log.cosigned(signed)


async def test_both_lines_stand_in_the_file(log: OwnLog, nursery: trio.Nursery) -> None:
    ports = [(await real(nursery, log.pool, WITNESS_KEY), WITNESS_KEY)]
    signed = await log.grow(3)
    async with running(log.witnesses(*ports)) as asked:
        await until(lambda: asked.statistics()[0].cosignatures == 1)
    await log.pool.execute("DELETE FROM audit_witnessed")  # the other one begins with nothing
    ports.append((await real(nursery, log.pool, OTHER_KEY), OTHER_KEY))
    async with running(log.witnesses(*ports)) as asked:
        await until(lambda: asked.statistics()[1].cosignatures == 1)
    *_, last = checkpoint_file.read(log.file)
    for key in (WITNESS_KEY, OTHER_KEY):
        assert note.cosigned_at(last, name_of(key.public_hex), key.public_hex) is not None
        assert await log.cosigned(signed, key)


async def test_a_witness_that_was_away(log: OwnLog, nursery: trio.Nursery) -> None:
    signed = await log.grow(3)
    port = await real(nursery, log.pool)
    genuine = port.answer
    turns = iter(range(3))

    async def answer(body: bytes) -> Reply:
        if next(turns, None) is not None:
            return 503, "text/html", b"<p>no"
        return await genuine(body)

    port.answer = answer
    with capture_logs() as logged:
        async with running(log.witnesses((port, WITNESS_KEY))) as asked:
            await until(lambda: asked.statistics()[0].cosignatures == 1)
    assert [(each["log_level"], each["reason"]) for each in logged] == [("warning", "status 503")] * 3
    assert asked.statistics()[0].failures == 3
    assert asked.statistics()[0].failure is None
    assert await log.cosigned(signed)


@pytest.mark.parametrize(
    ("reply", "level", "reason"),
    [
        ((200, "text/plain", b""), "warning", "no signature of its key"),
        ((200, "text/plain", b"\xff\n\xe2\x80\x94 x y\n"), "warning", "no signature of its key"),
        ((200, "text/plain", b"x" * (ANSWER_BYTES_MAX + 1)), "warning", "too large"),
        ((301, "text/plain", b""), "warning", "status 301"),
        ((409, "text/plain", b"5\n"), "warning", "status 409"),
        ((409, SIZE_TYPE, b"five\n"), "warning", "does not say at which size"),
        ((409, SIZE_TYPE, b"2\n"), "warning", "contradicts itself"),
        ((422, "text/plain", b""), "warning", "status 422"),
        ((404, "text/plain", b""), "error", "status 404"),
        ((403, "text/plain", b""), "error", "status 403"),
    ],
)
async def test_answers_that_are_none(log: OwnLog, nursery: trio.Nursery, reply: Reply, level: str, reason: str) -> None:
    signed = await log.grow(5)
    port = await saying(nursery, reply)
    with capture_logs() as logged:
        async with running(log.witnesses((port, WITNESS_KEY), retry_seconds=60)) as asked:
            await until(lambda: asked.statistics()[0].failures == 1)
    (said,) = logged
    assert said["log_level"] == level
    assert reason in said["reason"]
    assert not asked.statistics()[0].disputed
    assert not await log.cosigned(signed)


async def test_signatures_of_others_do_not_count(log: OwnLog, nursery: trio.Nursery) -> None:
    signed = await log.grow(5)
    smaller = note.sign(ORIGIN, 4, b"\0" * 32, LOG_KEY)
    lines = [
        note.cosign(signed, name_of(OTHER_KEY.public_hex), OTHER_KEY, 1),
        note.cosign(signed, NAME, OTHER_KEY, 1),
        note.cosign(smaller, NAME, WITNESS_KEY, 1),
        signed.signatures[0].line,
    ]
    good = note.cosign(signed, NAME, WITNESS_KEY, 1)
    answers = ["\n".join([*lines, ""]), "\n".join([*lines, good, ""])]
    port = await saying(nursery, *((200, "text/plain", text.encode()) for text in answers))
    async with running(log.witnesses((port, WITNESS_KEY))) as asked:
        await until(lambda: asked.statistics()[0].cosignatures == 1)
    assert asked.statistics()[0].failures == 1
    stored = await checkpoints.at(log.pool, ORIGIN, 5)
    assert stored is not None
    assert stored.checkpoint == signed.with_lines([good])


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ([(409, SIZE_TYPE, b"9\n")], "has cosigned 9 entries, and our newest checkpoint has 5"),
        ([(409, SIZE_TYPE, b"5\n"), (409, SIZE_TYPE, b"5\n")], "another root for our 5 entries"),
        ([(409, SIZE_TYPE, b"3\n"), (422, "text/plain", b"")], "at 3 entries"),
    ],
)
async def test_another_log_under_our_name(
    log: OwnLog, nursery: trio.Nursery, replies: list[Reply], reason: str
) -> None:
    signed = await log.grow(5)
    port = await saying(nursery, *replies)
    with capture_logs() as logged:
        async with running(log.witnesses((port, WITNESS_KEY), retry_seconds=60)) as asked:
            await until(lambda: asked.statistics()[0].disputed)
    (said,) = logged
    assert (said["log_level"], said["witness"]) == ("critical", NAME)
    assert reason in said["reason"]
    assert asked.statistics()[0].failure == said["reason"]
    assert not await log.cosigned(signed)


async def test_a_restored_backup_is_noticed(log: OwnLog, nursery: trio.Nursery) -> None:
    """The honest witness, a log that has lost its end and grown another: at every attempt, until it is settled."""
    elsewhere = MemoryLog(9)
    port = await real(nursery, log.pool)
    assert (await port.answer(elsewhere.body(0, 9)))[0] == 200
    await log.grow(5)
    async with running(log.witnesses((port, WITNESS_KEY))) as asked:
        await until(lambda: asked.statistics()[0].disputed)
        await log.grow(4)
        await until(lambda: "another root for our 9 entries" in str(asked.statistics()[0].failure))
        await log.grow(1)
        await until(lambda: "at 9 entries" in str(asked.statistics()[0].failure))
        assert asked.statistics()[0].cosignatures == 0


async def test_another_node_was_faster(log: OwnLog, nursery: trio.Nursery) -> None:
    """Our newest grew between the look and the answer: not another log."""
    signed = await log.grow(5)

    async def answer(body: bytes) -> Reply:
        nonlocal signed
        wanted = parse_request(body)
        if wanted.checkpoint.size == 5:
            signed = await log.grow(4)
            return 409, SIZE_TYPE, b"9\n"
        assert (wanted.old, wanted.checkpoint.size) == (9, 9)
        return 200, "text/plain", (note.cosign(wanted.checkpoint, NAME, WITNESS_KEY, 1) + "\n").encode()

    port = await scripted(nursery, answer)
    async with running(log.witnesses((port, WITNESS_KEY))) as asked:
        await until(lambda: asked.statistics()[0].cosignatures == 1)
    assert (asked.statistics()[0].failures, asked.statistics()[0].disputed) == (1, False)
    assert await log.cosigned(signed)


async def test_a_log_that_was_changed_is_not_shown(log: OwnLog, nursery: trio.Nursery) -> None:
    """Before a witness finds that the proof does not fit, we do."""
    port = await real(nursery, log.pool)
    await log.grow(5)
    async with running(log.witnesses((port, WITNESS_KEY), retry_seconds=60)) as asked:
        await until(lambda: asked.statistics()[0].cosignatures == 1)
        await log.grow(4)
        await log.pool.execute("ALTER TABLE audit_log DISABLE TRIGGER USER")
        await log.pool.execute("UPDATE audit_log SET hash = sha256(hash) WHERE seq = 7")
        with capture_logs() as logged:
            asked.hint()
            await until(lambda: asked.statistics()[0].failures == 1)
    assert [(each["log_level"], each["event"]) for each in logged] == [
        ("critical", "the audit log does not fit its checkpoints: not shown to a witness")
    ]
    assert len(port.bodies) == 1


async def test_a_checkpoint_that_we_did_not_sign_is_not_shown(log: OwnLog, nursery: trio.Nursery) -> None:
    port = await real(nursery, log.pool)
    await log.grow(5)
    await checkpoints.insert(log.pool, note.sign(ORIGIN, 9, b"\1" * 32, OTHER_KEY), 1)
    async with running(log.witnesses((port, WITNESS_KEY), retry_seconds=60)) as asked:
        await until(lambda: asked.statistics()[0].failures == 1)
    assert "is not signed by us" in str(asked.statistics()[0].failure)
    assert port.bodies == []


async def test_without_a_database_it_tries_again(log: OwnLog, nursery: trio.Nursery) -> None:
    port = await real(nursery, log.pool)
    await log.grow(5)
    await log.pool.execute("ALTER TABLE audit_losses RENAME TO away")
    async with running(log.witnesses((port, WITNESS_KEY))) as asked:
        await until(lambda: asked.statistics()[0].failures >= 2)
        await log.pool.execute("ALTER TABLE away RENAME TO audit_losses")
        await until(lambda: asked.statistics()[0].cosignatures == 1)


async def test_a_file_that_cannot_be_written_costs_no_cosignature(log: OwnLog, nursery: trio.Nursery) -> None:
    port = await real(nursery, log.pool)
    signed = await log.grow(5)
    log.file.mkdir()
    with capture_logs() as logged:
        async with running(log.witnesses((port, WITNESS_KEY))) as asked:
            await until(lambda: asked.statistics()[0].cosignatures == 1)
    assert [each["log_level"] for each in logged] == ["error"]
    assert await log.cosigned(signed)


async def test_nobody_listens(log: OwnLog, nursery: trio.Nursery) -> None:
    """The back-off doubles, and a hint does not shorten it."""
    await log.grow(5)
    async with trio.open_nursery() as serving:
        port = await real(serving, log.pool)
        serving.cancel_scope.cancel()
    async with running(log.witnesses((port, WITNESS_KEY), retry_seconds=60)) as asked:
        await until(lambda: asked.statistics()[0].failures == 1)
        asked.hint()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert asked.statistics()[0].failures == 1
    assert asked.statistics()[0].failure == "it cannot be asked: ConnectError"


async def test_an_attempt_has_an_end(log: OwnLog, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(_: bytes) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(witnesses, "ATTEMPT_SECONDS", 0.3)
    port = await scripted(nursery, hang)
    await log.grow(5)
    async with running(log.witnesses((port, WITNESS_KEY), retry_seconds=60)) as asked:
        await until(lambda: asked.statistics()[0].failures == 1)
    assert asked.statistics()[0].failure == "TooSlowError"


async def test_no_checkpoint_and_no_witness(log: OwnLog, nursery: trio.Nursery) -> None:
    port = await real(nursery, log.pool)
    async with running(log.witnesses((port, WITNESS_KEY))), running(log.witnesses()) as asked:
        asked.hint()
        await trio.testing.wait_all_tasks_blocked(0.02)
    assert asked.statistics() == ()
    assert port.bodies == []


async def test_nobody_witnesses_himself(log: OwnLog) -> None:
    with pytest.raises(ConfigError, match="own key"):
        log.witnesses((WitnessPort(lambda _: trio.sleep_forever(), port=1), LOG_KEY))


async def test_certificates_are_checked() -> None:
    async with witness_client.opened(Peer("https://relay.example", HEX)) as client:
        tls = client._transport._pool._ssl_context  # type: ignore[attr-defined]
    assert tls.verify_mode == ssl.CERT_REQUIRED
    assert tls.check_hostname
