"""The spellings in which clients name an event, a key or a channel, and the one in which we keep them.

Text goes in, lowercase hex or a lowercase hyphenated UUID comes out, or None. Nothing raises.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from typing import Final

from relay.nostr import nip19
from relay.nostr.keys import is_valid_pubkey

NIL_UUID: Final = "00000000-0000-0000-0000-000000000000"
"""RFC 9562 §5.9: stands before every other, and for nothing."""

# ASCII: without it, ignoring case would take the dotless i (U+0131) for an i.
_UUID: Final = re.compile(
    r"""
    (?: urn:uuid:(?P<urn>H) | \{(?P<braced>H)\} | (?P<hyphenated>H) | (?P<simple>[0-9a-f]{32}) )
    """.replace("H", "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)


def parse_uuid(text: str) -> str | None:
    """The canonical form of a UUID written hyphenated, as 32 hex digits, as `urn:uuid:` or in braces, in any case."""
    found = _UUID.fullmatch(text)
    if found is None:
        return None
    digits = found.group(found.lastgroup or 0).lower()
    if len(digits) == 36:
        return digits
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def parse_hex64(text: str) -> str | None:
    """64 hex digits of either case, lowered."""
    if len(text) != 64:
        return None
    try:
        unhexlify(text)
    except ValueError:
        return None
    return text.lower()


def parse_event_id(text: str) -> str | None:
    """An event id: 64 hex digits, note1…, nevent1…, or one of those behind `nostr:`."""
    return parse_hex64(text) or _bech32_id(text)


def parse_pubkey(text: str) -> str | None:
    """A public key that is a point on the curve: 64 hex digits, npub1…, nprofile1…, or one of those behind `nostr:`."""
    pubkey = parse_hex64(text) or _bech32_pubkey(text)
    return pubkey if pubkey is not None and is_valid_pubkey(pubkey) else None


def _bech32_id(text: str) -> str | None:
    if not text.startswith(("note1", "nevent1", "nostr:")):
        return None
    match _decode(text):
        case "note", str(event_id):
            return event_id
        case "nevent", nip19.EventPointer(id=event_id):
            return event_id
    return None


def _bech32_pubkey(text: str) -> str | None:
    if not text.startswith(("npub1", "nprofile1", "nostr:")):
        return None
    match _decode(text):
        case "npub", str(pubkey):
            return pubkey
        case "nprofile", nip19.Profile(pubkey=pubkey):
            return pubkey
    return None


def _decode(text: str) -> tuple[str, nip19.Decoded] | None:
    try:
        return nip19.decode(text)
    except nip19.InvalidBech32:
        return None
