"""NIP-92: `imeta` tags, which describe a file that the content links to.

Pure: a tag and the address of our media go in, an `Imeta` comes out, or `InvalidImeta` with the client's text. Only
files of this relay may be described: a foreign one could change after everybody has seen it. Whether the file is there
and is what the tag says, only the media store knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from relay.errors import ProtocolError
from relay.nostr.numbers import parse_decimal

EXTENSIONS: Final = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/webp": "webp",
    "video/mp4": "mp4",
}
VIDEO: Final = "video/mp4"
UINT64_MAX: Final = 2**64 - 1

_KEYS: Final = frozenset(
    {"url", "m", "x", "size", "dim", "blurhash", "alt", "thumb", "fallback", "duration", "bitrate", "image"}
)
_REQUIRED: Final = ("url", "m", "x", "size")
_VIDEO_ONLY: Final = ("duration", "bitrate", "image")
# Of a client's own words in an answer; nobody's key is longer.
_ECHO_CHARACTERS_MAX: Final = 64

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_FILE: Final = re.compile(r"(?P<hash>[0-9a-f]{64})\.(?P<extension>jpg|png|gif|webp|mp4|thumb\.jpg)")
# Each digit can be matched in one way only: a long number that goes wrong at its end must not be tried in all of them.
_FLOAT: Final = re.compile(
    r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity|nan)", re.IGNORECASE
)


class InvalidImeta(ProtocolError):
    """The tag does not describe one of our files. `reason` is for the client's eyes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A file of ours, as its address names it: the SHA-256 of the content, and the extension (`thumb.jpg` for a
    preview that was made of it)."""

    sha256: str
    extension: str

    @property
    def is_thumbnail(self) -> bool:
        return self.extension == "thumb.jpg"


@dataclass(frozen=True, slots=True)
class Imeta:
    """What a valid tag says: what the media store has to confirm. `size` in bytes, `duration` in seconds."""

    url: MediaFile
    mime: str
    size: int
    thumb: MediaFile | None
    image: MediaFile | None
    duration: float | None


def media_base(relay_url: str) -> str:
    """Where the media of a relay are found whose address is `ws(s)://host[:port]`."""
    parts = urlsplit(relay_url)
    scheme = "https" if parts.scheme.lower() in ("wss", "https") else "http"
    return f"{scheme}://{parts.netloc}/media"


def parse_media_url(text: str, base: str) -> MediaFile | None:
    """The file behind `/media/<file>` or `<base>/<file>`; None for every other address and every other spelling."""
    for prefix in ("/media/", f"{base.rstrip('/')}/"):
        if text.startswith(prefix) and (found := _FILE.fullmatch(text, len(prefix))):
            return MediaFile(found["hash"], found["extension"])
    return None


def parse_imeta(tag: Sequence[str], base: str) -> Imeta:
    """One `imeta` tag: every element after the first is a key and, behind a space, its value.

    Raises:
        InvalidImeta: by the first rule that is broken: each element in turn, then the tag as a whole.
    """
    values: dict[str, str] = {}
    for element in tag[1:]:
        key, _, value = element.partition(" ")
        if key not in _KEYS:
            raise InvalidImeta(f"disallowed imeta key: {key[:_ECHO_CHARACTERS_MAX]}")
        if key in values and key != "fallback":
            raise InvalidImeta(f"duplicate imeta key: {key}")
        values[key] = value
        _check_value(key, value, base)
    if any(key not in values for key in _REQUIRED):
        raise InvalidImeta("imeta tag must include url, m, x, and size")
    found = _imeta(values, base)
    _check_whole(found, values)
    return found


def _imeta(values: dict[str, str], base: str) -> Imeta:
    url = parse_media_url(values["url"], base)
    assert url is not None, "checked with its element"
    return Imeta(
        url,
        values["m"],
        int(values["size"]),
        parse_media_url(values["thumb"], base) if "thumb" in values else None,
        parse_media_url(values["image"], base) if "image" in values else None,
        float(values["duration"]) if "duration" in values else None,
    )


def _check_whole(found: Imeta, values: dict[str, str]) -> None:
    for key in _VIDEO_ONLY:
        if key in values and found.mime != VIDEO:
            raise InvalidImeta(f"imeta {key} is only valid for {VIDEO}, not {found.mime}")
    if found.url.sha256 != values["x"]:
        raise InvalidImeta("imeta url hash does not match x")
    if found.url.extension != EXTENSIONS[found.mime]:
        raise InvalidImeta("imeta url extension does not match m")
    if found.thumb is not None and found.thumb.sha256 != values["x"]:
        raise InvalidImeta("imeta thumb hash does not match x")


def _check_value(key: str, value: str, base: str) -> None:
    match key:
        case "url":
            _check_url(value, base)
        case "m" if value not in EXTENSIONS:
            raise InvalidImeta(f"imeta m must be a supported MIME type ({', '.join(EXTENSIONS)})")
        case "x" if not _HASH.fullmatch(value):
            raise InvalidImeta("imeta x must be a 64-char lowercase hex SHA-256")
        case "size" | "bitrate" if not parse_decimal(value, UINT64_MAX):
            raise InvalidImeta(f"imeta {key} must be a positive integer")
        case "thumb":
            file = parse_media_url(value, base)
            if file is None or not file.is_thumbnail:
                raise InvalidImeta("imeta thumb must be a local .thumb.jpg path")
        case "duration":
            _check_duration(value)
        case "image":
            _check_image(value, base)


def _check_url(value: str, base: str) -> None:
    file = parse_media_url(value, base)
    if file is None:
        raise InvalidImeta("imeta url must be a local /media/ path")
    if file.is_thumbnail:
        raise InvalidImeta("imeta url must not be a thumbnail path; use thumb field")


def _check_image(value: str, base: str) -> None:
    file = parse_media_url(value, base)
    if file is None:
        raise InvalidImeta("imeta image must be a local /media/ path")
    if file.is_thumbnail:
        raise InvalidImeta("imeta image must reference a standalone poster frame, not a thumbnail")
    if file.extension == EXTENSIONS[VIDEO]:
        raise InvalidImeta("imeta image must reference an image file (jpg, png, gif, webp), not video")


def _check_duration(value: str) -> None:
    if not _FLOAT.fullmatch(value):
        raise InvalidImeta("imeta duration must be a valid float")
    if not (math.isfinite(seconds := float(value)) and seconds > 0):
        raise InvalidImeta("imeta duration must be a positive finite number")
