"""`imeta` tags: every rule with its text, and no input that raises anything else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.nostr.imeta import Imeta, InvalidImeta, MediaFile, media_base, parse_imeta, parse_media_url

BASE = "https://team.example/media"
X, Y = "ab" * 32, "cd" * 32
IMAGE = {"url": f"/media/{X}.png", "m": "image/png", "x": X, "size": "5"}
VIDEO = {"url": f"{BASE}/{X}.mp4", "m": "video/mp4", "x": X, "size": "18446744073709551615"}


def tag(fields: dict[str, str], *more: str) -> list[str]:
    return ["imeta", *(f"{key} {value}" for key, value in fields.items()), *more]


def test_an_image() -> None:
    more = ("dim 3x4", "blurhash x y", "alt two words", "fallback https://a", "fallback https://b")
    found = parse_imeta(tag(IMAGE | {"thumb": f"/media/{X}.thumb.jpg"}, *more), BASE)
    assert found == Imeta(MediaFile(X, "png"), "image/png", 5, MediaFile(X, "thumb.jpg"), None, None)


def test_a_video() -> None:
    found = parse_imeta(tag(VIDEO, "duration 1.5e0", "bitrate 9", f"image {BASE}/{Y}.webp"), BASE)
    assert found == Imeta(MediaFile(X, "mp4"), "video/mp4", 2**64 - 1, None, MediaFile(Y, "webp"), 1.5)


@pytest.mark.parametrize(
    ("mime", "extension"),
    [("image/jpeg", "jpg"), ("image/png", "png"), ("image/gif", "gif"), ("image/webp", "webp"), ("video/mp4", "mp4")],
)
def test_every_type_has_its_extension(mime: str, extension: str) -> None:
    assert parse_imeta(tag(IMAGE | {"m": mime, "url": f"/media/{X}.{extension}"}), BASE).mime == mime
    wrong = "png" if extension == "jpg" else "jpg"
    with pytest.raises(InvalidImeta, match="imeta url extension does not match m"):
        parse_imeta(tag(IMAGE | {"m": mime, "url": f"/media/{X}.{wrong}"}), BASE)


LOCAL = "imeta url must be a local /media/ path"
MIME = "imeta m must be a supported MIME type (image/jpeg, image/png, image/gif, image/webp, video/mp4)"
HASH = "imeta x must be a 64-char lowercase hex SHA-256"
SIZE = "imeta size must be a positive integer"
THUMB = "imeta thumb must be a local .thumb.jpg path"
POSTER = "imeta image must be a local /media/ path"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (tag(IMAGE, "colour red"), "disallowed imeta key: colour"),
        (tag(IMAGE, ""), "disallowed imeta key: "),
        (tag(IMAGE, "URL x"), "disallowed imeta key: URL"),
        (tag(IMAGE, "k" * 5000), f"disallowed imeta key: {'k' * 64}"),
        *((tag(IMAGE, f"{key} {IMAGE[key]}"), f"duplicate imeta key: {key}") for key in IMAGE),
        (tag(IMAGE, "alt a", "alt b"), "duplicate imeta key: alt"),
        *(
            (tag(IMAGE | {"url": url}), LOCAL)
            for url in (
                "",
                f"https://elsewhere.example/media/{X}.png",
                f"{BASE}x/{X}.png",
                f"media/{X}.png",
                f"/media/{X}.svg",
                f"/media/{X}.PNG",
                f"/media/{X.upper()}.png",
                f"/media/{X}.png?a",
                f"/media/{X}.png#a",
                f"/media/%61{X[3:]}.png",
                f"/media/../{X}.png",
                f"/media/{X}.png\n",
                f"/media//{X}.png",
                f"/media/{X}.thumb.png",
            )
        ),
        (tag(IMAGE | {"url": f"/media/{X}.thumb.jpg"}), "imeta url must not be a thumbnail path; use thumb field"),
        *((tag(IMAGE | {"m": mime}), MIME) for mime in ("", "image/svg+xml", "IMAGE/PNG", "image/png ")),
        *((tag(IMAGE | {"x": x}), HASH) for x in ("", X.upper(), X[1:], X + "a", "g" * 64, X + "\n")),
        *((tag(IMAGE | {"size": size}), SIZE) for size in ("", "0", "-1", "1.5", "x", str(2**64), "٣", "9" * 5000)),
        *(
            (tag(IMAGE | {"thumb": thumb}), THUMB)
            for thumb in (f"/media/{X}.jpg", f"https://elsewhere.example/media/{X}.thumb.jpg", "")
        ),
        *(
            (tag(VIDEO | {"duration": number}), "imeta duration must be a valid float")
            for number in ("", "x", "1_0", " 1", "1,5", "0x1", "1e", ".", "٣")
        ),
        *(
            (tag(VIDEO | {"duration": number}), "imeta duration must be a positive finite number")
            for number in ("0", "-1", "inf", "NaN", "1e999", "-0.0")
        ),
        (tag(VIDEO | {"bitrate": "0"}), "imeta bitrate must be a positive integer"),
        (tag(VIDEO | {"image": f"https://elsewhere.example/{Y}.png"}), POSTER),
        (
            tag(VIDEO | {"image": f"/media/{Y}.thumb.jpg"}),
            "imeta image must reference a standalone poster frame, not a thumbnail",
        ),
        (
            tag(VIDEO | {"image": f"/media/{Y}.mp4"}),
            "imeta image must reference an image file (jpg, png, gif, webp), not video",
        ),
        *(
            (
                tag({key: value for key, value in IMAGE.items() if key != absent}),
                "imeta tag must include url, m, x, and size",
            )
            for absent in IMAGE
        ),
        (["imeta"], "imeta tag must include url, m, x, and size"),
        (tag(IMAGE | {"duration": "1"}), "imeta duration is only valid for video/mp4, not image/png"),
        (tag(IMAGE | {"bitrate": "1"}), "imeta bitrate is only valid for video/mp4, not image/png"),
        (tag(IMAGE | {"image": f"/media/{Y}.png"}), "imeta image is only valid for video/mp4, not image/png"),
        (tag(IMAGE | {"x": Y}), "imeta url hash does not match x"),
        (tag(IMAGE | {"m": "image/gif"}), "imeta url extension does not match m"),
        (tag(IMAGE | {"thumb": f"/media/{Y}.thumb.jpg"}), "imeta thumb hash does not match x"),
    ],
)
def test_refusals(given: list[str], text: str) -> None:
    with pytest.raises(InvalidImeta) as caught:
        parse_imeta(given, BASE)
    assert caught.value.reason == text


@pytest.mark.parametrize(
    ("relay_url", "base"),
    [
        ("ws://localhost:3000", "http://localhost:3000/media"),
        ("wss://team.example", "https://team.example/media"),
        ("wss://team.example:444/path/", "https://team.example:444/media"),
    ],
)
def test_media_are_found_under_the_relays_address(relay_url: str, base: str) -> None:
    assert media_base(relay_url) == base


def test_a_slash_at_the_end_of_the_base_changes_nothing() -> None:
    assert parse_media_url(f"{BASE}/{X}.png", f"{BASE}/") == MediaFile(X, "png")


_values = st.sampled_from([*IMAGE.values(), *VIDEO.values(), f"/media/{X}.thumb.jpg", "1", "1.5", "-"]) | st.text()
_elements = st.builds(
    "{} {}".format,
    st.sampled_from(["url", "m", "x", "size", "thumb", "image", "duration", "bitrate", "fallback", "alt", "?"]),
    _values,
)


@given(st.lists(_elements | st.text(), max_size=8))
def test_any_tag_is_read_or_refused(elements: list[str]) -> None:
    try:
        found = parse_imeta(["imeta", *elements], BASE)
    except InvalidImeta:
        return
    assert found.url.sha256 == X
    assert found.size > 0


def test_a_long_number_is_read_once() -> None:
    """In as many ways as it has digits, a message full of them would stop the relay for minutes."""
    for number in ("1" * 120_000 + "x", "1." + "1" * 120_000 + "x", "1e" + "1" * 120_000 + "x"):
        started = time.perf_counter()
        with pytest.raises(InvalidImeta, match="imeta duration must be a valid float"):
            parse_imeta(tag(VIDEO | {"duration": number}), BASE)
        assert time.perf_counter() - started < 1
