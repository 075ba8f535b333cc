"""Checkpoints as text: C2SP's form to the byte, and no signature that says less than it seems to."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.audit import note
from relay.audit.note import NOTE_BYTES_MAX, SIGNATURES_MAX, NoteError, parse
from relay.nostr.keys import SecretKey

KEY = SecretKey.from_hex("11" * 32)
OTHER = SecretKey.from_hex("22" * 32)
ORIGIN = note.origin_of(KEY.public_hex)
WITNESS = f"relay-witness/{OTHER.public_hex}"
CHECKPOINT = note.sign(ORIGIN, 7, b"r" * 32, KEY)
ROOT = b64encode(b"r" * 32).decode()


def test_the_form_is_c2sps():
    lines = CHECKPOINT.note.split("\n")
    assert lines[:4] == [ORIGIN, "7", ROOT, ""]
    assert lines[4].startswith(f"— {ORIGIN} ")
    assert lines[5:] == [""]
    assert len(b64decode(lines[4].split(" ")[2])) == 4 + 64


def test_names():
    assert note.origin_of("ab" * 32) == "relay-audit/" + "ab" * 32
    assert note.origin_of("ab" * 32, 3) == "relay-audit/" + "ab" * 32 + "/3"


def test_the_same_log_is_signed_alike_and_comes_back():
    assert note.sign(ORIGIN, 7, b"r" * 32, KEY) == CHECKPOINT
    assert parse(CHECKPOINT.note) == CHECKPOINT


@given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_any_size_and_root(size, root):
    found = parse(note.sign(ORIGIN, size, root, KEY).note)
    assert (found.origin, found.size, found.root) == (ORIGIN, size, root)
    assert note.is_signed_by(found, KEY.public_hex)
    assert not note.is_signed_by(found, OTHER.public_hex)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n7\n", "\n8\n"), (ROOT, b64encode(b"s" * 32).decode()), ("relay-audit/", "relay_audit/"),
        ("\n7\n", f"\n7\n{ROOT}\n"),
    ],
)  # fmt: skip
def test_a_changed_text_is_not_signed(old, new):
    assert not note.is_signed_by(parse(CHECKPOINT.note.replace(old, new)), KEY.public_hex)


def test_a_signature_under_another_name_says_nothing():
    forged = CHECKPOINT.note.replace(f"— {ORIGIN}", "— somebody")
    assert not note.is_signed_by(parse(forged), KEY.public_hex)


def test_a_good_signature_does_not_cover_for_a_bad_one_of_the_same_key():
    bad = note.sign(ORIGIN, 8, b"r" * 32, KEY).signatures[0].line
    assert not note.is_signed_by(CHECKPOINT.with_lines([bad]), KEY.public_hex)


class TestCosignatures:
    LINE = note.cosign(CHECKPOINT, WITNESS, OTHER, 1_700_000_000)

    def test_come_with_their_time_and_are_told_apart_from_the_relays(self):
        cosigned = parse(CHECKPOINT.with_lines([self.LINE]).note)
        assert note.cosigned_at(cosigned, WITNESS, OTHER.public_hex) == 1_700_000_000
        assert note.is_signed_by(cosigned, KEY.public_hex)
        assert not note.is_signed_by(cosigned, OTHER.public_hex)
        assert note.cosigned_at(cosigned, WITNESS, KEY.public_hex) is None
        assert note.cosigned_at(cosigned, ORIGIN, KEY.public_hex) is None

    def test_are_about_one_checkpoint_and_one_time(self):
        elsewhere = note.sign(ORIGIN, 8, b"r" * 32, KEY).with_lines([self.LINE])
        assert note.cosigned_at(elsewhere, WITNESS, OTHER.public_hex) is None
        raw = bytearray(b64decode(self.LINE.split(" ")[2]))
        raw[11] ^= 1
        later = f"— {WITNESS} {b64encode(raw).decode()}"
        assert note.cosigned_at(CHECKPOINT.with_lines([later]), WITNESS, OTHER.public_hex) is None

    def test_a_bad_one_does_not_hide_a_good_one(self):
        bad = note.cosign(note.sign(ORIGIN, 8, b"r" * 32, KEY), WITNESS, OTHER, 5)
        both = CHECKPOINT.with_lines([bad, self.LINE])
        assert note.cosigned_at(both, WITNESS, OTHER.public_hex) == 1_700_000_000

    def test_a_line_is_added_once(self):
        assert len(CHECKPOINT.with_lines([self.LINE, self.LINE]).with_lines([self.LINE]).signatures) == 2

    def test_the_relays_own_signature_is_not_a_cosignature_of_it(self):
        line = note.cosign(CHECKPOINT, ORIGIN, KEY, 5)
        alone = parse(CHECKPOINT.text + "\n" + line + "\n")
        assert not note.is_signed_by(alone, KEY.public_hex)


SIGNATURE = CHECKPOINT.signatures[0].line


@pytest.mark.parametrize(
    "text",
    [
        "",
        CHECKPOINT.text,
        CHECKPOINT.note[:-1],
        CHECKPOINT.note + "\n",
        CHECKPOINT.note.replace("\n7\n", "\n07\n"),
        CHECKPOINT.note.replace("\n7\n", "\n-7\n"),
        CHECKPOINT.note.replace("\n7\n", "\n٧\n"),
        CHECKPOINT.note.replace("\n7\n", f"\n{2**63}\n"),
        CHECKPOINT.note.replace("\n7\n", "\n7\r\n"),
        CHECKPOINT.note.replace("\n7\n", "\n\n7\n"),
        CHECKPOINT.note.replace("relay-audit/", "relay audit/"),
        CHECKPOINT.note.replace("relay-audit/", "relay+audit/"),
        CHECKPOINT.note.replace(ROOT, ROOT[:-1]),
        CHECKPOINT.note.replace(ROOT, b64encode(b"r" * 31).decode()),
        CHECKPOINT.note.replace("— ", "- "),
        f"{CHECKPOINT.text}\n— name {'A' * 4}\n",
        f"{CHECKPOINT.text}\n— name AAAAAAB=\n",  # a bit that padding leaves over
        f"{CHECKPOINT.text}\n" + f"{SIGNATURE}\n" * (SIGNATURES_MAX + 1),
        f"{CHECKPOINT.text}{'x' * NOTE_BYTES_MAX}\n\n{SIGNATURE}\n",
        CHECKPOINT.note.replace("\n7\n", "\n7\n\ud800"),
    ],
)
def test_what_is_not_a_checkpoint(text):
    with pytest.raises(NoteError):
        parse(text)


@given(st.text(max_size=300))
def test_no_text_raises_anything_else(text):
    try:
        found = parse(text)
    except NoteError:
        return
    assert found.note == text


@given(st.integers(0, len(CHECKPOINT.note) - 1), st.characters(exclude_categories=["Cs"]))
def test_a_changed_character_is_noticed(at, character):
    changed = CHECKPOINT.note[:at] + character + CHECKPOINT.note[at + 1 :]
    if changed == CHECKPOINT.note:
        return
    try:
        found = parse(changed)
    except NoteError:
        return
    assert found.note == changed
    assert not note.is_signed_by(found, KEY.public_hex)
