"""The witness's decisions: pure ones against a table and a forked log, and the memory behind them on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from relay.asyncpg_trio import Pool
from relay.audit import note
from relay.audit.note import NoteError
from relay.audit.tree import EMPTY_ROOT
from relay.audit.witness import (
    PROOF_LINES_MAX,
    Answer,
    Conflict,
    Cosigned,
    Declined,
    Known,
    Request,
    Split,
    Witness,
    decide,
    log_of,
    name_of,
    parse_request,
    request_body,
    screen,
    trusted_logs,
)
from relay.errors import ConfigError
from relay.nostr import nip19
from tests.support.witnessing import LOG_KEY, WITNESS_KEY, MemoryLog

LOG = MemoryLog(40)
TRUSTED = frozenset({LOG_KEY.public_hex})
NAME = name_of(WITNESS_KEY.public_hex)
NOW_US = 1_700_000_000_123_456


class TestNames:
    @pytest.mark.parametrize("generation", [1, 2, 10, 999_999_999])
    def test_of_a_log(self, generation: int) -> None:
        assert log_of(note.origin_of(LOG_KEY.public_hex, generation)) == (LOG_KEY.public_hex, generation)

    @pytest.mark.parametrize("tail", ["/1", "/0", "/02", "/", "/-2", "/2/3", "/9999999999", " ", "\n"])
    def test_of_no_log(self, tail: str) -> None:
        assert log_of(note.origin_of(LOG_KEY.public_hex) + tail) is None
        assert log_of("relay-audit/" + LOG_KEY.public_hex.upper()) is None

    def test_trusted(self) -> None:
        text = f" {LOG_KEY.public_hex} ,, {nip19.encode_npub(WITNESS_KEY.public_hex)}, "
        assert trusted_logs(text) == {LOG_KEY.public_hex, WITNESS_KEY.public_hex}
        assert trusted_logs("") == frozenset()

    @pytest.mark.parametrize("text", ["x", "00" * 32, LOG_KEY.public_hex[:-1], nip19.encode_note("00" * 32)])
    def test_not_trusted(self, text: str) -> None:
        with pytest.raises(ConfigError, match="SPROUT_AUDIT_WITNESS_FOR"):
            trusted_logs(f"{LOG_KEY.public_hex},{text}")


class TestRequest:
    @given(st.integers(0, 40), st.integers(0, 40))
    def test_there_and_back(self, one: int, other: int) -> None:
        old, new = sorted((one, other))
        assert parse_request(LOG.body(old, new)) == LOG.request(old, new)

    def test_the_form_down_to_the_byte(self) -> None:
        lines = LOG.body(3, 7).decode().split("\n")
        assert lines[0] == "old 3"
        assert lines[5:9] == ["", LOG.origin, "7", lines[8]], "four hashes go from 3 to 7"
        assert LOG.body(0, 7).startswith(f"old 0\n\n{LOG.origin}\n7\n".encode())

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            (b"old 03\n", b"old 3\n"),
            (b"old -3\n", b"old 3\n"),
            (b"Old 3\n", b"old 3\n"),
            (b"old  3\n", b"old 3\n"),
            (b"old 3\r\n", b"old 3\n"),
            (b"old 8\n", b"old 3\n"),
            (b"old 99999999999999999999\n", b"old 3\n"),
            (b"", b"old 3\n"),
            (b"old 3\nAAAA\n", b"old 3\n"),
            (b"old 3\n!\n", b"old 3\n"),
            (b"old 3\n" + b"A" * 42 + b"B=\n", b"old 3\n"),
            (b"old 3\n\xff\n", b"old 3\n"),
            (b"old 3\n" + (b"A" * 43 + b"=\n") * PROOF_LINES_MAX, b"old 3\n"),
            (b"\n\n\n", b"\n\n"),
            ("\n— ".encode(), "\n\n— ".encode()),
        ],
    )
    def test_malformed(self, wrong: bytes, right: bytes) -> None:
        body = LOG.body(3, 7)
        assert right in body
        with pytest.raises(NoteError):
            parse_request(body.replace(right, wrong, 1))

    def test_too_long(self) -> None:
        with pytest.raises(NoteError, match="longer"):
            parse_request(LOG.body(3, 7) + b"x" * (1 << 17))

    @given(st.binary(max_size=300), st.integers(0, 600))
    def test_garbage_is_refused_and_nothing_else(self, garbage: bytes, place: int) -> None:
        body = LOG.body(3, 7)
        for each in (garbage, body[:place] + garbage + body[place + len(garbage) :]):
            try:
                found = parse_request(each)
            except NoteError:
                continue
            # One spelling only: what is read is what was sent.
            assert request_body(found.old, found.proof, found.checkpoint) == each


class TestDecision:
    def test_who_is_screened(self) -> None:
        wanted = LOG.request(0, 5)
        assert screen(wanted, TRUSTED) is None
        assert screen(wanted, frozenset()) == Declined(404, "this witness does not know that log")
        forged = replace(wanted, checkpoint=LOG.checkpoint(5, key=WITNESS_KEY))
        assert _status(screen(forged, TRUSTED)) == 403
        unsigned = replace(wanted.checkpoint, signatures=())
        assert _status(screen(replace(wanted, checkpoint=unsigned), TRUSTED)) == 403
        other = replace(wanted, checkpoint=replace(wanted.checkpoint, origin="example.com/log"))
        assert _status(screen(other, TRUSTED)) == 404

    @pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 1), (0, 40), (1, 40), (8, 16), (7, 7), (31, 33)])
    def test_what_continues_is_cosigned(self, old: int, new: int) -> None:
        assert decide(LOG.request(old, new), _known(old)) is None

    @pytest.mark.parametrize("old", [0, 4, 6, 9])
    def test_another_old_size_is_a_conflict(self, old: int) -> None:
        assert decide(LOG.request(old, 9), _known(5)) == Conflict(5)
        assert decide(replace(LOG.request(old, 9), proof=()), _known(5)) == Conflict(5)

    def test_an_older_one_is_a_conflict(self) -> None:
        assert decide(LOG.request(3, 4), _known(5)) == Conflict(5)

    @pytest.mark.parametrize("proof", [(), (b"\0" * 32,), LOG.proof(5, 9)[:-1], (*LOG.proof(5, 9), b"\0" * 32)])
    def test_a_wrong_proof(self, proof: tuple[bytes, ...]) -> None:
        assert _status(decide(replace(LOG.request(5, 9), proof=proof), _known(5))) == 422

    def test_a_proof_where_there_is_nothing_to_prove(self) -> None:
        assert _status(decide(replace(LOG.request(0, 9), proof=LOG.proof(5, 9)), Known())) == 422
        assert _status(decide(replace(LOG.request(5, 5), proof=LOG.proof(5, 9)), _known(5))) == 422

    @pytest.mark.parametrize("old", [0, 3, 5])
    def test_two_roots_for_one_size(self, old: int) -> None:
        wanted = MemoryLog(40, branch="b").request(old, 5)
        assert decide(wanted, _known(5)) == Split(LOG.checkpoint(5), wanted.checkpoint)

    def test_an_empty_log_has_one_root(self) -> None:
        wanted = Request(0, (), note.sign(LOG.origin, 0, b"\1" * 32, LOG_KEY))
        assert _status(decide(wanted, Known())) == 422

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 24), st.booleans()), max_size=30), st.integers(0, 24))
    @settings(max_examples=60)
    def test_of_a_forked_log_one_branch_is_cosigned(self, asked: list[tuple[bool, int, bool]], fork_at: int) -> None:
        """Whatever is asked, in whatever order: what was cosigned is the history of one log."""
        branches = (MemoryLog(24), MemoryLog(24, fork_at=fork_at, branch="b"))
        known, history = Known(), [0]
        on: set[bool] = {False, True}
        for branch, new, honest in asked:
            old = known.size if honest else new // 2
            if old > new:
                continue
            wanted = branches[branch].request(old, new)
            if decide(wanted, known) is None:
                known = Known(new, wanted.checkpoint.root, wanted.checkpoint)
                history.append(new)
                if new > fork_at:
                    on &= {branch}
        assert on, "both branches were cosigned behind the fork"
        assert history == sorted(history)
        assert any(known.root == branches[each].root(known.size) for each in on)


# -- with its memory -------------------------------------------------------------------------------------------------


@pytest.fixture
async def pool(migrated_dsn: str) -> AsyncIterator[Pool]:
    async with Pool(migrated_dsn, size_min=1, size_max=6) as opened:
        yield opened


@pytest.fixture
def witness(pool: Pool) -> Witness:
    return Witness(pool, WITNESS_KEY, TRUSTED, lambda: NOW_US)


async def rows(pool: Pool) -> dict[str, int]:
    return {row["origin"]: row["size"] for row in await pool.fetch("SELECT origin, size FROM audit_witnessed")}


async def test_a_log_is_followed(witness: Witness, pool: Pool) -> None:
    for old, new in ((0, 5), (5, 9), (9, 9), (9, 40)):
        wanted = LOG.request(old, new)
        answer = await witness.answer(wanted)
        assert isinstance(answer, Cosigned)
        signed = wanted.checkpoint.with_lines(answer.lines)
        assert note.cosigned_at(signed, NAME, WITNESS_KEY.public_hex) == NOW_US // 1_000_000
        assert note.is_signed_by(signed, LOG_KEY.public_hex)
        assert await rows(pool) == {LOG.origin: new}
    assert await witness.answer(LOG.request(5, 9)) == Conflict(40)
    assert _status(await witness.answer(replace(LOG.request(40, 40), proof=(b"\0" * 32,)))) == 422
    assert await rows(pool) == {LOG.origin: 40}
    stored = await pool.fetchrow("SELECT * FROM audit_witnessed")
    assert stored is not None
    assert (stored["note"], bytes(stored["root"]), stored["time_us"]) == (LOG.checkpoint(40).note, LOG.root(40), NOW_US)


async def test_cosigning_makes_no_entry(witness: Witness, pool: Pool) -> None:
    """Two relays that witness each other would have something new to cosign for ever."""
    assert isinstance(await witness.answer(LOG.request(0, 5)), Cosigned)
    assert await pool.fetchval("SELECT (SELECT count(*) FROM audit_outbox) + (SELECT count(*) FROM audit_log)") == 0


async def test_the_proof_of_a_split_is_both_notes(witness: Witness, pool: Pool) -> None:
    other = MemoryLog(40, fork_at=3, branch="b")
    assert isinstance(await witness.answer(LOG.request(0, 5)), Cosigned)
    answer = await witness.answer(other.request(0, 5))
    assert answer == Split(LOG.checkpoint(5), other.checkpoint(5))
    assert note.is_signed_by(answer.known, LOG_KEY.public_hex)
    assert note.is_signed_by(answer.seen, LOG_KEY.public_hex)
    assert _status(await witness.answer(other.request(5, 9))) == 422
    assert await rows(pool) == {LOG.origin: 5}


async def test_of_many_at_once_the_others_are_conflicts(witness: Witness, pool: Pool) -> None:
    """The race of the protocol's text: a request that was checked before another one's update rolls that back."""
    answers: dict[int, Answer] = {}

    async def ask(size: int) -> None:
        answers[size] = await witness.answer(LOG.request(5, size))

    assert isinstance(await witness.answer(LOG.request(0, 5)), Cosigned)
    async with trio.open_nursery() as nursery:
        for size in (9, 40, 6, 23, 17):
            nursery.start_soon(ask, size)
    (winner,) = [size for size, answer in answers.items() if isinstance(answer, Cosigned)]
    assert [answers[size] for size in answers if size != winner] == [Conflict(winner)] * 4
    assert await rows(pool) == {LOG.origin: winner}


async def test_of_many_first_ones_too(witness: Witness, pool: Pool) -> None:
    """Where there is no row yet that could be locked."""
    answers: list[Answer] = []

    async def ask(log: MemoryLog) -> None:
        answers.append(await witness.answer(log.request(0, 9)))

    async with trio.open_nursery() as nursery:
        for branch in "abcde":
            nursery.start_soon(ask, MemoryLog(9, branch=branch))
    assert sorted(type(answer).__name__ for answer in answers) == ["Cosigned", *["Split"] * 4]
    assert await rows(pool) == {LOG.origin: 9}


async def test_a_log_that_was_begun_anew(witness: Witness, pool: Pool) -> None:
    again = MemoryLog(40, generation=3, branch="new")
    assert isinstance(await witness.answer(LOG.request(0, 20)), Cosigned)
    with capture_logs() as logged:
        assert isinstance(await witness.answer(again.request(0, 4)), Cosigned)
        assert isinstance(await witness.answer(again.request(4, 6)), Cosigned)
    assert [(each["log_level"], each["origin"], each["before"]) for each in logged] == [
        ("warning", again.origin, LOG.origin)
    ]
    for earlier in (LOG, MemoryLog(40, generation=2)):
        answer = await witness.answer(earlier.request(20 if earlier is LOG else 0, 30))
        assert answer == Declined(403, f"this log has gone on as {again.origin}")
    assert await rows(pool) == {LOG.origin: 20, again.origin: 6}


async def test_logs_of_several_keys_do_not_meet(pool: Pool) -> None:
    other = MemoryLog(9, key=WITNESS_KEY, branch="other")
    witness = Witness(pool, WITNESS_KEY, TRUSTED | {WITNESS_KEY.public_hex}, lambda: NOW_US)
    assert isinstance(await witness.answer(LOG.request(0, 9)), Cosigned)
    assert isinstance(await witness.answer(other.request(0, 9)), Cosigned)
    assert await rows(pool) == {LOG.origin: 9, other.origin: 9}


def _known(size: int) -> Known:
    return Known(size, LOG.root(size), LOG.checkpoint(size)) if size else Known(0, EMPTY_ROOT)


def _status(answer: object) -> int:
    assert isinstance(answer, Declined), answer
    return answer.status
