"""Checkpoints as text: what the relay signs about its audit log, in the form of C2SP.

    <origin>                       c2sp.org/tlog-checkpoint: the log's name,
    <size>                         how many entries,
    <root, base64>                 the RFC 6962 root over their hashes (relay/audit/tree.py)

    — <key name> <base64>          c2sp.org/signed-note: one line a signature, the relay's first, then witnesses'

Keys are Nostr's (secp256k1, BIP-340), which have no number in C2SP: signature type 0xff with a name behind it. What is
signed is the SHA-256 of the text; of a cosignature, as c2sp.org/tlog-cosignature says, `cosignature/v1`, a line `time
<unix seconds>` and the text, and the time stands in front of the signature.

Pure: no I/O, no clock, no randomness.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass

from relay.errors import AuditError
from relay.nostr.keys import SecretKey, verify_schnorr

NOTE_BYTES_MAX = 64 * 1024
SIGNATURES_MAX = 100

_SIGNATURE_TYPE = b"\xffnostr-bip340-sha256"
_COSIGNATURE_TYPE = b"\xffnostr-bip340-cosignature/v1"
_NAME = re.compile(r"[^\s+]+")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_LINE = re.compile(r"— (\S+) ([A-Za-z0-9+/]+=*)")


class NoteError(AuditError):
    """A text that is not a checkpoint, or is signed wrongly."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line. `blob` is what follows the key id: 64 bytes, or 8 of time and 64."""

    name: str
    key_id: bytes
    blob: bytes
    line: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head and who has signed for it."""

    origin: str
    size: int
    root: bytes
    text: str
    signatures: tuple[Signature, ...]

    @property
    def note(self) -> str:
        """The whole signed note, as it is stored, sent and published."""
        return self.text + "\n" + "".join(each.line + "\n" for each in self.signatures)

    def with_lines(self, lines: Iterable[str]) -> Checkpoint:
        """The same with more signature lines; those that it has already are not repeated."""
        known = {each.line for each in self.signatures}
        more = [_signature(line) for line in dict.fromkeys(lines) if line not in known]
        return Checkpoint(self.origin, self.size, self.root, self.text, (*self.signatures, *more))


def origin_of(pubkey: str, generation: int = 1) -> str:
    """The name of the log of the relay with this key. Each accepted loss makes it a new log with a new name: the old
    one's checkpoints stay true, and stay broken."""
    assert generation >= 1
    base = f"relay-audit/{pubkey}"
    return base if generation == 1 else f"{base}/{generation}"


def sign(origin: str, size: int, root: bytes, key: SecretKey) -> Checkpoint:
    """A checkpoint signed by the log's key; the key's name is the origin."""
    assert _NAME.fullmatch(origin), "a key name has neither blanks nor a plus"
    assert size >= 0
    assert len(root) == 32
    text = f"{origin}\n{size}\n{b64encode(root).decode()}\n"
    line = _line(origin, _key_id(origin, _SIGNATURE_TYPE, key.public_hex), _signed(key, _digest(text)))
    return Checkpoint(origin, size, root, text, (_signature(line),))


def cosign(checkpoint: Checkpoint, name: str, key: SecretKey, now: int) -> str:
    """The signature line of a witness: that at `now` (Unix seconds) it had seen no larger log of that name, and that
    this one continues all that it had seen."""
    assert _NAME.fullmatch(name), "a key name has neither blanks nor a plus"
    signature = now.to_bytes(8) + _signed(key, _cosigned_digest(checkpoint.text, now))
    return _line(name, _key_id(name, _COSIGNATURE_TYPE, key.public_hex), signature)


def parse(note: str) -> Checkpoint:
    """A checkpoint from its text. Nothing is verified: see `is_signed_by`.

    Raises:
        NoteError: it does not have the form, down to the byte.
    """
    if len(note.encode(errors="replace")) > NOTE_BYTES_MAX:
        raise NoteError(f"a checkpoint is not longer than {NOTE_BYTES_MAX} bytes")
    body, separator, tail = note.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise NoteError("a checkpoint is a text, an empty line, and lines of signatures")
    lines = tail[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise NoteError(f"a checkpoint has no more than {SIGNATURES_MAX} signatures")
    origin, size, root = _head(body)
    return Checkpoint(origin, size, root, body + "\n", tuple(_signature(line) for line in lines))


def is_signed_by(checkpoint: Checkpoint, pubkey: str) -> bool:
    """Whether the log's own key (hex) has signed it, under the origin as its name."""
    key_id = _key_id(checkpoint.origin, _SIGNATURE_TYPE, pubkey)
    mine = [each for each in checkpoint.signatures if (each.name, each.key_id) == (checkpoint.origin, key_id)]
    digest = _digest(checkpoint.text)
    return bool(mine) and all(_holds(pubkey, digest, each.blob) for each in mine)


def cosigned_at(checkpoint: Checkpoint, name: str, pubkey: str) -> int | None:
    """When the witness of that name and key (hex) cosigned it, Unix seconds; None if it did not, or not rightly."""
    key_id = _key_id(name, _COSIGNATURE_TYPE, pubkey)
    for each in checkpoint.signatures:
        if (each.name, each.key_id) != (name, key_id) or len(each.blob) != 72:
            continue
        time = int.from_bytes(each.blob[:8])
        if time < 1 << 63 and _holds(pubkey, _cosigned_digest(checkpoint.text, time), each.blob[8:]):
            return time
    return None


def _head(body: str) -> tuple[str, int, bytes]:
    lines = body.split("\n")
    if len(lines) < 3 or not all(lines):
        raise NoteError("the text of a checkpoint is a name, a size, a root, and no empty line")
    if any(ord(character) < 0x20 for line in lines for character in line):
        raise NoteError("a checkpoint has no control characters")
    origin, size, root = lines[:3]
    if not _NAME.fullmatch(origin):
        raise NoteError("a checkpoint begins with the name of its log")
    if not _SIZE.fullmatch(size) or int(size) >= 1 << 63:
        raise NoteError("the second line of a checkpoint is its size")
    return origin, int(size), _base64(root, 32)


def _signature(line: str) -> Signature:
    match = _LINE.fullmatch(line)
    if match is None:
        raise NoteError("not a line of a signature")
    blob = _base64(match[2], None)
    if len(blob) < 5:
        raise NoteError("a signature is longer than the id of its key")
    return Signature(match[1], blob[:4], blob[4:], line)


def _base64(text: str, length: int | None) -> bytes:
    try:
        found = b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteError(f"not base64: {text[:100]!r}") from error
    # One spelling each: bits that padding leaves over must be zero.
    if b64encode(found).decode() != text or (length is not None and len(found) != length):
        raise NoteError(f"not base64 of the right length: {text[:100]!r}")
    return found


def _line(name: str, key_id: bytes, signature: bytes) -> str:
    return f"— {name} {b64encode(key_id + signature).decode()}"


def _key_id(name: str, kind: bytes, pubkey: str) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + kind + bytes.fromhex(pubkey)).digest()[:4]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _cosigned_digest(text: str, time: int) -> bytes:
    return _digest(f"cosignature/v1\ntime {time}\n{text}")


def _signed(key: SecretKey, digest: bytes) -> bytes:
    return bytes.fromhex(key.sign(digest))


def _holds(pubkey: str, digest: bytes, signature: bytes) -> bool:
    return len(signature) == 64 and verify_schnorr(pubkey, digest, signature)
