"""NIP-19: the vectors of the NIP and of BIP-173, round trips, and that no text breaks the decoder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.nostr.nip19 import (
    LENGTH_MAX,
    Address,
    EventPointer,
    InvalidBech32,
    Profile,
    bech32_decode,
    bech32_encode,
    decode,
    encode,
    encode_note,
    encode_npub,
    encode_nsec,
)

KEY = "3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d"
HEX64 = st.binary(min_size=32, max_size=32).map(bytes.hex)
RELAYS = st.lists(st.text(max_size=60), max_size=4).map(tuple)
UINT32 = st.integers(0, 2**32 - 1)


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_of_the_nip():
    first = "npub180cvv07tjdrrgpa0j7j7tmnyl2yr6yr7l8j4s3evf6u64th6gkwsyjh6w6"
    second = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg"
    secret = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5"
    secret_hex = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa"
    assert (encode_npub(KEY), decode(first)) == (first, ("npub", KEY))
    assert decode(second) == ("npub", "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e")
    assert (encode_nsec(secret_hex), decode(secret)) == (secret, ("nsec", secret_hex))


def test_profile_vector_of_the_nip():
    text = (
        "nprofile1qqsrhuxx8l9ex335q7he0f09aej04zpazpl0ne2cgukyawd24mayt8gpp4mhxue69uhhytnc9e3k7mgpz4mhxue69uhkg6nzv9ejuu"
        "mpv34kytnrdaksjlyr9p"
    )
    profile = Profile(KEY, ("wss://r.x.com", "wss://djbas.sadkb.com"))
    assert decode(text) == ("nprofile", profile)
    assert encode(profile) == text


@pytest.mark.parametrize(
    "text",
    [
        "A12UEL5L",
        "a12uel5l",
        "an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
    ],
)
def test_bip173_valid(text):
    assert bech32_decode(text) == (text.lower().rpartition("1")[0], b"")


@pytest.mark.parametrize(
    "text",
    [
        " 1nwldj5",
        "\x7f1axkwrx",
        "\x801eym55h",
        "pzry9x0s0muk",
        "1pzry9x0s0muk",
        "x1b4n0q5v",
        "li1dgmt3",
        "de1lg7wt\xff",
        "A1G7SGD8",
        "10a06t8",
        "1qzzfhee",
        "a12uel5L",
        "",
        "1",
        "a1",
    ],
)
def test_bip173_invalid(text):
    with pytest.raises(InvalidBech32):
        bech32_decode(text)


# --- bech32 -----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.sampled_from(["npub", "x", "a1b"]))
def test_bech32_round_trip(data, prefix):
    text = bech32_encode(prefix, data)
    assert bech32_decode(text) == (prefix, data)
    assert bech32_decode(text.upper()) == (prefix, data)


@given(st.binary(min_size=1, max_size=40), st.data())
def test_one_wrong_character_is_noticed(data, draw):
    text = bech32_encode("npub", data)
    position = draw.draw(st.integers(5, len(text) - 1))
    wrong = draw.draw(
        st.sampled_from([letter for letter in "qpzry9x8gf2tvdw0s3jn54khce6mua7l" if letter != text[position]])
    )
    with pytest.raises(InvalidBech32):
        bech32_decode(text[:position] + wrong + text[position + 1 :])


# Checksums that fit, padding that does not: made with a plain encoder of 5-bit groups.
@pytest.mark.parametrize("groups", [[0, 1], [31], [0, 0, 0]])
def test_padding_must_be_short_and_zero(groups):
    with pytest.raises(InvalidBech32, match="padding"):
        bech32_decode(encode_groups("x", groups))


def encode_groups(prefix: str, groups: list[int]) -> str:
    """BIP-173's own reference encoder, shortened."""

    def polymod(values):
        checksum = 1
        for value in values:
            top = checksum >> 25
            checksum = (checksum & 0x1FFFFFF) << 5 ^ value
            for bit, generator in enumerate([0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3]):
                checksum ^= generator if top >> bit & 1 else 0
        return checksum

    expanded = [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]
    checksum = polymod(expanded + groups + [0] * 6) ^ 1
    values = groups + [checksum >> 5 * (5 - place) & 31 for place in range(6)]
    return prefix + "1" + "".join("qpzry9x8gf2tvdw0s3jn54khce6mua7l"[value] for value in values)


def test_length_limit_at_its_edge():
    # 5 000 characters: "x1" + groups + 6 of checksum leave 4 992 groups, which are 3 120 bytes.
    longest = bech32_encode("x", bytes(3120))
    assert len(longest) == LENGTH_MAX
    assert bech32_decode(longest) == ("x", bytes(3120))
    with pytest.raises(InvalidBech32, match="longer than 5000"):
        bech32_encode("x", bytes(3121))
    with pytest.raises(InvalidBech32, match="longer than 5000"):
        bech32_decode(longest + "q")


# --- records ----------------------------------------------------------------------------------------------------------


@given(HEX64)
def test_plain_round_trips(value):
    for prefix, make in (("npub", encode_npub), ("nsec", encode_nsec), ("note", encode_note)):
        assert decode(make(value)) == decode("nostr:" + make(value)) == (prefix, value)


@given(st.builds(Profile, HEX64, RELAYS))
def test_profile_round_trip(profile):
    assert decode(encode(profile)) == ("nprofile", profile)


@given(st.builds(EventPointer, HEX64, RELAYS, st.none() | HEX64, st.none() | UINT32))
def test_event_round_trip(pointer):
    assert decode(encode(pointer)) == ("nevent", pointer)


@given(st.builds(Address, st.text(max_size=60), HEX64, UINT32, RELAYS))
def test_address_round_trip(address):
    assert decode(encode(address)) == ("naddr", address)


KEY_FIELD = b"\x00\x20" + bytes.fromhex(KEY)


@pytest.mark.parametrize(
    ("prefix", "data"),
    [
        ("npub", bytes(31)),
        ("note", bytes(33)),
        ("nrelay", b"\x00\x01a"),
        ("nprofile", b""),
        ("nprofile", b"\x00\x1f" + bytes(31)),
        ("nprofile", KEY_FIELD + b"\x01"),
        ("nprofile", KEY_FIELD + b"\x01\x05wss"),
        ("nprofile", KEY_FIELD + b"\x01\x01\xff"),
        ("nevent", b"\x02\x20" + bytes(32)),
        ("nevent", KEY_FIELD + b"\x02\x01a"),
        ("nevent", KEY_FIELD + b"\x03\x02\x00\x01"),
        ("naddr", b"\x00\x01d" + b"\x02\x20" + bytes(32)),
        ("naddr", b"\x02\x20" + bytes(32) + b"\x03\x04" + bytes(4)),
        ("naddr", b"\x00\x01d" + b"\x03\x04" + bytes(4)),
        ("naddr", b"\x00\x01\xff" + b"\x02\x20" + bytes(32) + b"\x03\x04" + bytes(4)),
    ],
)
def test_incomplete_records(prefix, data):
    with pytest.raises(InvalidBech32):
        decode(bech32_encode(prefix, data))


def test_unknown_types_are_skipped_and_the_first_of_a_type_counts():
    data = b"\x63\x02hi" + KEY_FIELD + b"\x00\x20" + bytes(32) + b"\x03\x04\x00\x00\x00\x09"
    assert decode(bech32_encode("nevent", data)) == ("nevent", EventPointer(KEY, kind=9))


@pytest.mark.parametrize(
    "make",
    [
        lambda: encode_npub("zz" * 32),
        lambda: encode_npub("00" * 31),
        lambda: encode(EventPointer(KEY, kind=2**32)),
        lambda: encode(EventPointer(KEY, kind=-1)),
        lambda: encode(Address("x" * 256, KEY, 30023)),
        lambda: encode(Profile(KEY, ("\ud800",))),
        lambda: encode(Profile(KEY, ("wss://" + "a" * 240,) * 20)),
    ],
)
def test_what_cannot_be_written(make):
    with pytest.raises(InvalidBech32):
        make()


@given(st.text() | st.binary(max_size=80).map(lambda data: bech32_encode("nevent", data)))
def test_any_text_decodes_or_is_refused(text):
    try:
        prefix, _ = decode(text)
    except InvalidBech32:
        return
    assert prefix in {"npub", "nsec", "note", "nprofile", "nevent", "naddr"}
