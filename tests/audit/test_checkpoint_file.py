"""The file of checkpoints: what is appended comes back, whatever else stands there, and however it was torn."""

from __future__ import annotations

import os
import stat
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.audit import checkpoint_file, note
from relay.audit.checkpoint_file import END_BYTES, append, read, read_end
from relay.config import Settings
from relay.nostr.keys import SecretKey

KEY = SecretKey.from_hex("11" * 32)
WITNESS = SecretKey.from_hex("22" * 32)
ORIGIN = note.origin_of(KEY.public_hex)
CHECKPOINTS = [note.sign(ORIGIN, size, bytes([size]) * 32, KEY) for size in range(1, 6)]
RECORD_BYTES = len(CHECKPOINTS[0].note.encode()) + 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "directory" / "checkpoints.txt"


def written(path, *checkpoints):
    for checkpoint in checkpoints:
        append(path, checkpoint)
    return path


def found(path, reader=read):
    problems = []
    return list(reader(path, problems.append)), problems


def test_what_is_appended_comes_back_in_order_and_is_nobody_elses(path):
    written(path, *CHECKPOINTS)
    assert found(path) == (CHECKPOINTS, [])
    assert found(path, read_end) == (CHECKPOINTS, [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_cosignatures_come_along(path):
    cosigned = CHECKPOINTS[0].with_lines([note.cosign(CHECKPOINTS[0], "relay-witness/x", WITNESS, 1_700_000_000)])
    written(path, CHECKPOINTS[0], cosigned, CHECKPOINTS[1])
    assert found(path) == ([CHECKPOINTS[0], cosigned, CHECKPOINTS[1]], [])


def test_a_file_that_is_not_there(path):
    for reader in (read, read_end):
        with pytest.raises(FileNotFoundError):
            list(reader(path))


def test_torn_at_every_byte_and_written_to_again(path):
    """A crash in the middle of an append costs that record and no other one."""
    written(path, *CHECKPOINTS[:2])
    whole = path.read_bytes()
    assert len(whole) == 2 * RECORD_BYTES
    for length in range(RECORD_BYTES, 2 * RECORD_BYTES):
        path.write_bytes(whole[:length])
        before, problems = found(path)
        assert before == CHECKPOINTS[:1]
        assert [problem.torn for problem in problems] == [True] * (length > RECORD_BYTES)
        append(path, CHECKPOINTS[2])
        # Where only the empty line behind it was missing, the append has completed the torn one.
        complete = length >= 2 * RECORD_BYTES - 2
        for reader in (read, read_end):
            after, problems = found(path, reader)
            assert after == ([*CHECKPOINTS[:3]] if complete else [CHECKPOINTS[0], CHECKPOINTS[2]])
            # A crash of long ago is still none of a forger's work: `verify` would say that the log is broken, for ever.
            assert [problem.torn for problem in problems] == [True] * (length > RECORD_BYTES and not complete)


@pytest.mark.parametrize(
    ("scribble", "line"),
    [
        (b"what is this?\n\n", 7),
        (b"one\ntwo\n\nthree\n\n", 7),
        ("— lonely abcd\n\n".encode(), 7),
        (b"\xff\xfe\x00\n\n" + b"x" * 200_000 + b"\n\n", 7),
        (CHECKPOINTS[4].note.replace("relay-audit", "relay audit").encode() + b"\n", 7),
    ],
)
def test_anything_else_is_skipped_and_reported_with_its_place(path, scribble, line):
    written(path, CHECKPOINTS[0])
    with path.open("ab") as file:
        file.write(scribble)
    written(path, CHECKPOINTS[1])
    checkpoints, problems = found(path)
    assert checkpoints == CHECKPOINTS[:2]
    assert problems[0].line == line
    append(path, CHECKPOINTS[2])
    assert found(path)[0][-1] == CHECKPOINTS[2]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.integers(0, 3 * RECORD_BYTES))
def test_no_content_raises_and_what_is_appended_behind_it_is_found(tmp_path, garbage, at):
    path = tmp_path / "checkpoints.txt"
    path.unlink(missing_ok=True)
    written(path, *CHECKPOINTS[:3])
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + garbage + whole[at:])
    written(path, CHECKPOINTS[3], CHECKPOINTS[4])
    assert found(path)[0][-1] == CHECKPOINTS[4]
    assert found(path, read_end)[0][-1] == CHECKPOINTS[4]


def test_the_end_of_a_long_file_is_read_alone(path, monkeypatch):
    path.parent.mkdir()
    record = CHECKPOINTS[0].note + "\n"
    path.write_text(record * 12)
    append(path, CHECKPOINTS[1])
    for shift in range(RECORD_BYTES):  # wherever the window begins
        monkeypatch.setattr(checkpoint_file, "END_BYTES", 4 * RECORD_BYTES + shift)
        checkpoints, problems = found(path, read_end)
        assert checkpoints[-1] == CHECKPOINTS[1]
        assert len(checkpoints) in (3, 4, 5)
        assert problems == []


def test_where_the_end_has_nothing_the_whole_file_is_read(path):
    written(path, CHECKPOINTS[0])
    with path.open("ab") as file:
        file.write(b"x" * 2 * END_BYTES)
    assert found(path, read_end)[0] == CHECKPOINTS[:1]


def test_several_writers_at_once(path):
    threads = [threading.Thread(target=written, args=(path, *CHECKPOINTS)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    checkpoints, problems = found(path)
    assert (len(checkpoints), problems) == (40, [])


def test_a_write_that_fails_half_way_is_taken_back(path, monkeypatch):
    written(path, CHECKPOINTS[0])
    before, real, calls = path.read_bytes(), os.write, []

    def half(descriptor, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:20])

    monkeypatch.setattr(checkpoint_file.os, "write", half)
    with pytest.raises(OSError, match="No space"):
        append(path, CHECKPOINTS[1])
    assert path.read_bytes() == before


def test_a_failed_fsync_is_told(path, monkeypatch):
    def fsync(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint_file.os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        append(path, CHECKPOINTS[0])


def test_its_place(tmp_path):
    assert checkpoint_file.place(Settings(), tmp_path) == tmp_path / "audit-checkpoints.txt"
    other = tmp_path / "elsewhere"
    assert checkpoint_file.place(Settings(audit_checkpoint_file=other), tmp_path) == other
