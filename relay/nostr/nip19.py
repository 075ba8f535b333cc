"""NIP-19: identifiers in bech32 (npub, nsec, note, nprofile, nevent, naddr) and NIP-21 `nostr:` addresses.

Text goes in, hex strings and small records come out, and back. Bech32 is BIP-173 (not bech32m) without its limit of 90
characters: NIP-19 suggests 5 000, and nothing longer is read or written. Unknown TLV types are skipped, as the NIP
asks. Whether 32 bytes are a point on the curve is not asked here.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from relay.errors import ProtocolError

LENGTH_MAX: Final = 5000

_ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
# Python reads base 32 with the digits 0-9a-v: one translation makes regrouping bits two integer conversions.
_TO_DIGITS: Final = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
_TO_VALUES: Final = bytes.maketrans(_ALPHABET.encode(), bytes(range(32)))
_CHARACTERS: Final = frozenset(_ALPHABET)


def _checksum_table() -> tuple[int, ...]:
    generators = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
    table = []
    for top in range(32):
        mixed = 0
        for bit, generator in enumerate(generators):
            if top >> bit & 1:
                mixed ^= generator
        table.append(mixed)
    return tuple(table)


# A frame of 128 KiB may be full of these identifiers; by table a character costs 0.1 µs, by the reference loop 0.6.
_CHECKSUM: Final = _checksum_table()


class InvalidBech32(ProtocolError):
    """The text is not a NIP-19 identifier of the wanted sort."""


@dataclass(frozen=True, slots=True)
class Profile:
    """nprofile: a public key and relays where it writes."""

    pubkey: str
    relays: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EventPointer:
    """nevent: an event id and hints about it."""

    id: str
    relays: tuple[str, ...] = ()
    author: str | None = None
    kind: int | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """naddr: an addressable event (kind, author, `d` tag)."""

    identifier: str
    pubkey: str
    kind: int
    relays: tuple[str, ...] = ()


Decoded: TypeAlias = str | Profile | EventPointer | Address


# --- bech32 -----------------------------------------------------------------------------------------------------------


def _polymod(prefix: str, values: bytes) -> int:
    codes = prefix.encode()
    table = _CHECKSUM
    checksum = 1
    for value in bytes([code >> 5 for code in codes]) + b"\0" + bytes([code & 31 for code in codes]) + values:
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value ^ table[checksum >> 25]
    return checksum


def bech32_encode(prefix: str, data: bytes) -> str:
    """BIP-173. Raises InvalidBech32 if the text would be longer than `LENGTH_MAX`."""
    values = bytearray()
    pending = width = 0
    for byte in data:
        pending, width = pending << 8 | byte, width + 8
        while width >= 5:
            width -= 5
            values.append(pending >> width & 31)
        pending &= (1 << width) - 1
    if width:
        values.append(pending << 5 - width)
    checksum = _polymod(prefix, bytes(values) + bytes(6)) ^ 1
    values.extend(checksum >> shift & 31 for shift in range(25, -1, -5))
    text = f"{prefix}1{''.join([_ALPHABET[value] for value in values])}"
    if len(text) > LENGTH_MAX:
        raise InvalidBech32(f"longer than {LENGTH_MAX} characters")
    return text


def bech32_decode(text: str) -> tuple[str, bytes]:
    """The prefix in lower case and the bytes. BIP-173: one case only, checksum, zero padding of less than 5 bits.

    Raises:
        InvalidBech32: anything else, and texts longer than `LENGTH_MAX`.
    """
    if len(text) > LENGTH_MAX:
        raise InvalidBech32(f"longer than {LENGTH_MAX} characters")
    visible = text.isascii() and text.isprintable() and " " not in text
    if not visible or (text != text.lower() and text != text.upper()):
        raise InvalidBech32("bech32 is visible ASCII in one case")
    prefix, separator, payload = text.lower().rpartition("1")
    if not separator or not prefix or len(payload) < 6 or not _CHARACTERS.issuperset(payload):
        raise InvalidBech32("not bech32")
    if _polymod(prefix, payload.encode().translate(_TO_VALUES)) != 1:
        raise InvalidBech32("bech32 checksum does not match")
    return prefix, _regroup(payload[:-6])


def _regroup(payload: str) -> bytes:
    """Groups of 5 bits to bytes."""
    size, padding = divmod(len(payload) * 5, 8)
    number = int(payload.translate(_TO_DIGITS) or "0", 32)
    if padding >= 5 or number & ((1 << padding) - 1):
        raise InvalidBech32("bech32 padding is not zero")
    return (number >> padding).to_bytes(size, "big")


# --- encode -----------------------------------------------------------------------------------------------------------


def encode_npub(pubkey: str) -> str:
    """`pubkey`: 64 hex digits, as everywhere below."""
    return bech32_encode("npub", _bytes32(pubkey))


def encode_nsec(secret_hex: str) -> str:
    return bech32_encode("nsec", _bytes32(secret_hex))


def encode_note(event_id: str) -> str:
    return bech32_encode("note", _bytes32(event_id))


def encode(pointer: Profile | EventPointer | Address) -> str:
    """nprofile, nevent or naddr.

    Raises:
        InvalidBech32: not hex, a value that does not fit its field (255 bytes, kind of 32 bits), or too long a text.
    """
    if isinstance(pointer, Profile):
        return bech32_encode("nprofile", _tlv((0, _bytes32(pointer.pubkey)), *_relay_fields(pointer.relays)))
    if isinstance(pointer, EventPointer):
        fields = [(0, _bytes32(pointer.id)), *_relay_fields(pointer.relays)]
        if pointer.author is not None:
            fields.append((2, _bytes32(pointer.author)))
        if pointer.kind is not None:
            fields.append((3, _kind_bytes(pointer.kind)))
        return bech32_encode("nevent", _tlv(*fields))
    fields = [(0, _utf8(pointer.identifier)), *_relay_fields(pointer.relays)]
    fields += [(2, _bytes32(pointer.pubkey)), (3, _kind_bytes(pointer.kind))]
    return bech32_encode("naddr", _tlv(*fields))


def _bytes32(text: str) -> bytes:
    try:
        data = unhexlify(text)
    except ValueError:
        raise InvalidBech32("not hex") from None
    if len(data) != 32:
        raise InvalidBech32("not 32 bytes")
    return data


def _kind_bytes(kind: int) -> bytes:
    if not 0 <= kind < 1 << 32:
        raise InvalidBech32("a kind has 32 bits")
    return kind.to_bytes(4, "big")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidBech32("not valid Unicode") from None


def _relay_fields(relays: tuple[str, ...]) -> list[tuple[int, bytes]]:
    return [(1, _utf8(relay)) for relay in relays]


def _tlv(*fields: tuple[int, bytes]) -> bytes:
    for _, value in fields:
        if len(value) > 255:
            raise InvalidBech32("a TLV value has at most 255 bytes")
    return b"".join([bytes((field, len(value))) + value for field, value in fields])


# --- decode -----------------------------------------------------------------------------------------------------------


def decode(text: str) -> tuple[str, Decoded]:
    """Any NIP-19 identifier, with or without `nostr:`: its prefix, and hex (npub, nsec, note) or a record.

    Raises:
        InvalidBech32: bad bech32, an unknown prefix, or a TLV that lacks what its prefix needs.
    """
    prefix, data = bech32_decode(text.removeprefix("nostr:"))
    match prefix:
        case "npub" | "nsec" | "note":
            if len(data) != 32:
                raise InvalidBech32(f"{prefix} needs 32 bytes")
            return prefix, data.hex()
        case "nprofile":
            return prefix, _decode_profile(data)
        case "nevent":
            return prefix, _decode_event(data)
        case "naddr":
            return prefix, _decode_address(data)
    raise InvalidBech32("unknown prefix")


def _decode_profile(data: bytes) -> Profile:
    special, relays, _, _ = _fields(data)
    return Profile(_hex32(special), relays)


def _decode_event(data: bytes) -> EventPointer:
    special, relays, author, kind = _fields(data)
    return EventPointer(_hex32(special), relays, None if author is None else _hex32(author), kind)


def _decode_address(data: bytes) -> Address:
    identifier, relays, author, kind = _fields(data)
    if identifier is None or kind is None:
        raise InvalidBech32("naddr needs an identifier, an author and a kind")
    return Address(_text(identifier), _hex32(author), kind, relays)


def _fields(data: bytes) -> tuple[bytes | None, tuple[str, ...], bytes | None, int | None]:
    """The first special value, all relays, the first author and the first kind."""
    first: dict[int, bytes] = {}
    relays = []
    for field, value in _entries(data):
        if field == 1:
            relays.append(_text(value))
        else:
            first.setdefault(field, value)
    kind = first.get(3)
    if kind is not None and len(kind) != 4:
        raise InvalidBech32("a kind has 4 bytes")
    return first.get(0), tuple(relays), first.get(2), None if kind is None else int.from_bytes(kind, "big")


def _entries(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        value_start = position + 2
        # A type without a length, or a length beyond the end, is the same fault: the text was cut.
        if value_start > len(data) or (value_end := value_start + data[position + 1]) > len(data):
            raise InvalidBech32("TLV ends in the middle")
        yield data[position], data[value_start:value_end]
        position = value_end


def _hex32(value: bytes | None) -> str:
    if value is None or len(value) != 32:
        raise InvalidBech32("a key or an id is missing or not 32 bytes")
    return value.hex()


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidBech32("not UTF-8") from None
