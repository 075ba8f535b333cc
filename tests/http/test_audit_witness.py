"""`POST /audit/witness/add-checkpoint`: every status of c2sp.org/tlog-witness, and how much may be asked."""

from __future__ import annotations

from base64 import b64decode, b64encode
from hashlib import sha256

import orjson
import pytest
import trio
from quart_trio import QuartTrio
from structlog.testing import capture_logs

from relay.audit import note
from relay.audit.witness import REQUEST_BYTES_MAX, name_of, request_body
from relay.http import audit_witness
from relay.http.audit_witness import PATH, REQUESTS_PER_MINUTE, SIZE_TYPE
from tests.support.http import LOOPBACK, Answer, Rig, running
from tests.support.witnessing import LOG_KEY, WITNESS_KEY, MemoryLog

LOG = MemoryLog(40)
ABROAD = {**LOOPBACK, "client": ("192.0.2.7", 50_000)}


@pytest.fixture
def app(rig: Rig) -> QuartTrio:
    return rig.with_settings(audit_witness_for=LOG_KEY.public_hex)


async def send(rig: Rig, app: QuartTrio, body: bytes, **options: object) -> Answer:
    return await rig.post(PATH, data=body, app=app, **options)


async def test_a_log_is_cosigned(rig: Rig, app: QuartTrio) -> None:
    pubkey = rig.services.relay_key.public_hex
    for old, new in ((0, 5), (5, 40)):
        answer = await send(rig, app, LOG.body(old, new))
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        signed = LOG.checkpoint(new).with_lines(answer.text.removesuffix("\n").split("\n"))
        assert note.cosigned_at(signed, name_of(pubkey), pubkey) is not None
        assert len(signed.signatures) == 2


async def test_the_line_is_that_of_the_protocol(rig: Rig, app: QuartTrio) -> None:
    """Name, four bytes that name the key, eight of time, the signature."""
    text = (await send(rig, app, LOG.body(0, 5))).text
    dash, name, blob = text.removesuffix("\n").split(" ")
    assert (dash, name) == ("—", f"relay-witness/{rig.services.relay_key.public_hex}")
    assert len(b64decode(blob, validate=True)) == 4 + 8 + 64


@pytest.mark.parametrize("old", [0, 3, 9])
async def test_another_old_size(rig: Rig, app: QuartTrio, old: int) -> None:
    assert (await send(rig, app, LOG.body(0, 5))).status == 200
    answer = await send(rig, app, LOG.body(old, 9))
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (409, SIZE_TYPE, b"5\n")


async def test_what_is_refused(rig: Rig, app: QuartTrio) -> None:
    assert (await send(rig, app, LOG.body(0, 5))).status == 200
    wrong_proof = request_body(5, LOG.proof(4, 9), LOG.checkpoint(9))
    unknown = MemoryLog(9, key=WITNESS_KEY)
    for status, body in (
        (400, b""),
        (400, LOG.body(5, 9).replace(b"old 5", b"old 10")),
        (403, request_body(5, LOG.proof(5, 9), LOG.checkpoint(9, key=WITNESS_KEY))),
        (404, unknown.body(0, 9)),
        (422, wrong_proof),
        (413, b"old 0\n" + b"x" * REQUEST_BYTES_MAX),
    ):
        answer = await send(rig, app, body)
        assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
        assert answer.json["status"] == status
    assert (await send(rig, app, LOG.body(5, 9))).status == 200


async def test_nobody_is_witnessed_unasked(rig: Rig) -> None:
    assert (await rig.post(PATH, data=LOG.body(0, 5))).status == 404


async def test_two_roots_for_one_size_are_kept_once(rig: Rig, app: QuartTrio) -> None:
    """Both notes go into our own audit log; that anybody may send them again must not fill it."""
    other = MemoryLog(40, fork_at=3, branch="b")
    assert (await send(rig, app, LOG.body(0, 5))).status == 200
    with capture_logs() as logged:
        for _ in range(3):
            answer = await send(rig, app, other.body(0, 5))
            assert (answer.status, answer.headers["Content-Type"], answer.body) == (409, SIZE_TYPE, b"5\n")
    (said,) = [each for each in logged if each["log_level"] == "critical"]
    assert (said["known"], said["seen"]) == (LOG.checkpoint(5).note, other.checkpoint(5).note)
    rows = await rig.con.fetch(
        "SELECT action, actor, kind, metadata FROM audit_outbox UNION ALL "
        "SELECT action, actor, kind, metadata FROM audit_log"
    )
    (row,) = rows
    assert (row["action"], row["actor"], row["kind"]) == ("event_refused", LOG_KEY.public_hex, 48010)
    kept = orjson.loads(row["metadata"])
    assert [note.parse(kept[name]).root for name in ("known", "seen")] == [LOG.root(5), other.root(5)]
    assert all(note.is_signed_by(note.parse(kept[name]), LOG_KEY.public_hex) for name in ("known", "seen"))


async def test_a_very_long_note_is_kept_as_its_hash(rig: Rig, app: QuartTrio) -> None:
    """Extension lines may make a note as long as 64 KiB; two of them would be no entry."""
    short = MemoryLog(40, branch="b").checkpoint(5)
    text = short.text + '"' * 40_000 + "\n"
    signature = bytes.fromhex(LOG_KEY.sign(sha256(text.encode()).digest()))
    line = f"— {LOG.origin} {b64encode(short.signatures[0].key_id + signature).decode()}"
    assert (await send(rig, app, LOG.body(0, 5))).status == 200
    assert (await send(rig, app, f"old 0\n\n{text}\n{line}\n".encode())).status == 409
    metadata = await rig.con.fetchval(
        "SELECT metadata FROM (SELECT metadata FROM audit_outbox UNION ALL SELECT metadata FROM audit_log) AS each"
    )
    kept = orjson.loads(metadata)
    assert kept["known"] == LOG.checkpoint(5).note
    assert kept["seen"].startswith("sha256:")


async def test_an_address_has_so_many(rig: Rig, app: QuartTrio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_witness, "REQUESTS_PER_MINUTE", 3)
    for status in (400, 400, 400, 429):
        answer = await send(rig, app, b"", scope=ABROAD)
        assert answer.status == status
    assert 1 <= int(answer.headers["Retry-After"]) <= 21
    other = await send(rig, app, b"", scope={**ABROAD, "client": ("192.0.2.8", 1)})
    assert (other.status, (await send(rig, app, b"")).status) == (400, 400)
    assert REQUESTS_PER_MINUTE >= 60, "a log that is busy has a checkpoint a second"


async def test_the_pool_is_not_taken_away(rig: Rig, app: QuartTrio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once for a log whose row somebody holds: a few wait for the database, the others for these."""
    monkeypatch.setattr(audit_witness, "TURN_SECONDS", 0.3)
    statuses: list[int] = []

    async def ask() -> None:
        statuses.append((await send(rig, app, LOG.body(0, 5))).status)

    async with rig.con.transaction():
        await rig.con.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 3))", LOG_KEY.public_hex)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            most = 0
            while len(statuses) < 20:
                await trio.sleep(0.01)
                most = max(most, rig.services.pool.statistics().in_use)
    assert most == audit_witness.DECIDED_AT_ONCE
    assert statuses == [503] * 20
    assert (await send(rig, app, LOG.body(0, 5))).status == 200


async def test_not_while_stopping(rig: Rig, app: QuartTrio) -> None:
    rig.stopping = rig.refusing = True
    assert (await send(rig, app, LOG.body(0, 5))).status == 503


async def test_without_the_database(migrated_dsn: str) -> None:
    async with running(migrated_dsn, audit_witness_for=LOG_KEY.public_hex) as rig:
        await rig.con.execute("ALTER TABLE audit_witnessed RENAME TO away")
        assert (await rig.post(PATH, data=LOG.body(0, 5))).status == 500
        await rig.con.execute("ALTER TABLE away RENAME TO audit_witnessed")
        assert (await rig.post(PATH, data=LOG.body(0, 5))).status == 200
