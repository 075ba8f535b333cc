"""secp256k1 as Nostr uses it: x-only public keys and BIP-340 Schnorr signatures, through libsecp256k1.

Secret keys are arguments, never made here. Signing takes no auxiliary randomness: BIP-340 allows it, the nonce is then
derived from key and message alone, and the same input gives the same signature.
"""

from __future__ import annotations

from binascii import unhexlify
from functools import lru_cache
from typing import Final

from coincurve import PrivateKey, PublicKeyXOnly

from relay.errors import ProtocolError

# Parsing a key is a square root in the field, 4 µs of the 30 that a signature check takes, and the same few keys write
# most events. A stranger who sends many keys only costs the others that 4 µs.
_KEYS_CACHED: Final = 4096


class InvalidKey(ProtocolError):
    """Not a key of secp256k1. The text never contains the key."""


@lru_cache(maxsize=_KEYS_CACHED)
def _x_only(public_hex: str) -> PublicKeyXOnly:
    """Raises ValueError, which is not cached, so that bad keys push no good one out."""
    return PublicKeyXOnly(unhexlify(public_hex))


def is_valid_pubkey(public_hex: str) -> bool:
    """Whether this is the x coordinate of a point on the curve, in 64 lowercase hex digits."""
    if len(public_hex) != 64:
        return False
    try:
        _x_only(public_hex)
    except ValueError:
        return False
    return public_hex == public_hex.lower()


def verify_schnorr(public_hex: str, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) is that of the key over `message` (32 bytes). BIP-340.

    A key that is not on the curve has no signatures, so the answer is False.
    """
    assert len(message) == 32
    try:
        return bool(_x_only(public_hex).verify(signature, message))
    except ValueError:
        return False


class SecretKey:
    """A secret key and the public key that belongs to it (`public_hex`)."""

    __slots__ = ("_private", "public_hex")

    def __init__(self, private: PrivateKey) -> None:
        self._private = private
        self.public_hex: Final[str] = private.public_key_xonly.format().hex()

    @classmethod
    def from_bytes(cls, secret: bytes) -> SecretKey:
        """Raises InvalidKey unless these are 32 bytes and a number between 1 and the order of the curve."""
        # coincurve pads a short secret with zeros; a truncated key must not silently become another one.
        if len(secret) != 32:
            raise InvalidKey("a secret key has 32 bytes")
        try:
            return cls(PrivateKey(secret))
        except ValueError:
            raise InvalidKey("this is not a secret key of secp256k1") from None

    @classmethod
    def from_hex(cls, secret_hex: str) -> SecretKey:
        """As `from_bytes`, from 64 hex digits of either case."""
        try:
            return cls.from_bytes(unhexlify(secret_hex))
        except ValueError:
            raise InvalidKey("a secret key has 64 hex digits") from None

    def sign(self, message: bytes) -> str:
        """The BIP-340 signature over 32 bytes, as 128 hex digits. libsecp256k1 checks it before it leaves."""
        assert len(message) == 32
        signature: bytes = self._private.sign_schnorr(message, aux_randomness=None)  # type: ignore[arg-type]  # documented there
        return signature.hex()

    def to_bytes(self) -> bytes:
        """The 32 secret bytes, for whoever writes the key file."""
        secret: bytes = self._private.secret
        return secret

    def __repr__(self) -> str:
        return f"SecretKey(of {self.public_hex})"
