"""Bytes in hex, as paths and cursors write them."""

from __future__ import annotations

from binascii import unhexlify


def hex_bytes(text: str) -> bytes | None:
    """The bytes that hex digits of either case write; None for anything else, blanks included."""
    try:
        return unhexlify(text)
    except ValueError:
        return None
