"""Keys, against the test vectors of BIP-340."""

from __future__ import annotations

import pytest

from relay.errors import ProtocolError
from relay.nostr.keys import InvalidKey, SecretKey, is_valid_pubkey, verify_schnorr
from tests.nostr.people import ALICE

ORDER = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"

# BIP-340, vector 0: its auxiliary randomness is 32 zeros, which is what signing without any means.
VECTOR_SECRET = "00" * 31 + "03"
VECTOR_PUBLIC = "f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9"
VECTOR_SIGNATURE = (
    "e907831f80848d1069a5371b402410364bdf1c5f8307b0084c55f1ce2dca8215"
    "25f66a4a85ea8b71e482a74f382d2ce5ebeee8fdb2172f477df4900d310536c0"
)
# Vectors 4 (verifies) and 5 (no point on the curve).
OTHER_PUBLIC = "d69c3509bb99e412e68b0fe8544e72837dfa30746d8be2aa65975f29d22dc7b9"
OTHER_MESSAGE = "4df3c3f68fcc83b27e9d42c90431a72499f17875c81a599b566c9889b9696703"
OTHER_SIGNATURE = (
    "00000000000000000000003b78ce563f89a0ed9414f5aa28ad0d96d6795f9c63"
    "76afb1548af603b3eb45c9f8207dee1060cb71c04e80f593060b07d28308d7f4"
)
NOT_A_POINT = "eefdea4cdb677750a420fee807eacf21eb9898ae79b9768766e4faa04a2d4a34"


def test_bip340_signing_vector():
    secret = SecretKey.from_hex(VECTOR_SECRET)
    assert secret.public_hex == VECTOR_PUBLIC
    assert secret.sign(bytes(32)) == VECTOR_SIGNATURE


def test_bip340_verification_vectors():
    assert verify_schnorr(VECTOR_PUBLIC, bytes(32), bytes.fromhex(VECTOR_SIGNATURE))
    assert verify_schnorr(OTHER_PUBLIC, bytes.fromhex(OTHER_MESSAGE), bytes.fromhex(OTHER_SIGNATURE))
    assert not verify_schnorr(VECTOR_PUBLIC, b"\x01" + bytes(31), bytes.fromhex(VECTOR_SIGNATURE))
    assert not verify_schnorr(NOT_A_POINT, bytes.fromhex(OTHER_MESSAGE), bytes.fromhex(OTHER_SIGNATURE))


def test_signature_of_wrong_length_is_no_signature():
    assert not verify_schnorr(VECTOR_PUBLIC, bytes(32), bytes.fromhex(VECTOR_SIGNATURE)[:63])


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (VECTOR_PUBLIC, True),
        (OTHER_PUBLIC, True),
        (VECTOR_PUBLIC.upper(), False),
        (NOT_A_POINT, False),
        ("ff" * 32, False),
        (VECTOR_PUBLIC[:62], False),
        ("02" + VECTOR_PUBLIC, False),
        ("g" * 64, False),
        ("é" * 64, False),
        (" " * 64, False),
        ("", False),
    ],
)
def test_is_valid_pubkey(text, valid):
    # Twice: the first look may fill the cache from which the second is answered.
    assert is_valid_pubkey(text) is valid
    assert is_valid_pubkey(text) is valid


def test_secret_key_both_ways():
    secret = SecretKey.from_bytes(bytes.fromhex(VECTOR_SECRET))
    assert secret.to_bytes().hex() == VECTOR_SECRET
    assert SecretKey.from_hex(secret.to_bytes().hex().upper()).public_hex == secret.public_hex


@pytest.mark.parametrize("secret", [bytes(32), bytes.fromhex(ORDER), b"\xff" * 32, b"\x01", b"\x01" * 33, b""])
def test_bad_secret_bytes(secret):
    with pytest.raises(InvalidKey):
        SecretKey.from_bytes(secret)


@pytest.mark.parametrize("text", ["", "01", "zz" * 32, "é" * 64, ORDER])
def test_bad_secret_hex(text):
    with pytest.raises(InvalidKey) as caught:
        SecretKey.from_hex(text)
    assert isinstance(caught.value, ProtocolError)
    # Neither the text nor a chained cause may carry a mistyped secret into a log.
    assert not text or text not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_repr_shows_no_secret():
    assert ALICE.public_hex in repr(ALICE)
    assert ALICE.to_bytes().hex() not in repr(ALICE)
