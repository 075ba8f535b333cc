"""Values as they stand in requests and answers: query strings, JSON bodies, times, ids.

What cannot be read is refused with the words of the original's framework, as plain text and before authentication: its
clients show them as they are. Unknown keys are ignored everywhere; a key given twice in a query is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson
import trio
from quart import request
from werkzeug.exceptions import RequestEntityTooLarge

from relay.http.refusals import ApiError, NotWellFormed

U32_MAX: Final = 2**32 - 1
INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
_DIGITS_MAX: Final = 20
# Apache's mod_reqtimeout does the same with 20 s and 500 bytes.
BODY_GRACE_SECONDS: Final = 10
BODY_BYTES_PER_SECOND: Final = 1024
# What `datetime` can hold; an event may be signed with any 64-bit number.
_SECONDS_MIN: Final = -62_135_596_800
_SECONDS_MAX: Final = 253_402_300_799
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(moment: datetime | None) -> str | None:
    """UTC with `+00:00`, and the fewest of 0, 3 or 6 fraction digits that are exact."""
    if moment is None:
        return None
    moment = moment.astimezone(UTC)
    if moment.microsecond == 0:
        return moment.isoformat(timespec="seconds")
    return moment.isoformat(timespec="microseconds" if moment.microsecond % 1000 else "milliseconds")


def rfc3339_seconds(seconds: int | None) -> str | None:
    """The same from seconds since 1970, moved into the years 1 to 9999."""
    if seconds is None:
        return None
    return rfc3339(_EPOCH + timedelta(seconds=max(_SECONDS_MIN, min(_SECONDS_MAX, seconds))))


class Query:
    """The query string of the current request, read key by key.

    Raises (each method): NotWellFormed.
    """

    def __init__(self, wanted: Sequence[str]) -> None:
        self._values: dict[str, str] = {}
        text = request.query_string.decode("ascii", "replace")
        for key, value in parse_qsl(text, keep_blank_values=True, max_num_fields=None):
            if key in wanted and key in self._values:
                raise _bad_query(f"duplicate field `{key}`")
            self._values[key] = value

    def text(self, key: str) -> str | None:
        return self._values.get(key)

    def boolean(self, key: str) -> bool | None:
        value = self._values.get(key)
        if value is None or value in ("true", "false"):
            return None if value is None else value == "true"
        raise _bad_query(f"{key}: provided string was not `true` or `false`")

    def required(self, key: str) -> str:
        """The text of a key that must be there."""
        if key not in self._values:
            raise _bad_query(f"missing field `{key}`")
        return self._values[key]

    def unsigned(self, key: str) -> int | None:
        """A number from 0 to 2³²-1, as the original's parser reads one: digits, perhaps a plus in front."""
        return self._integer(key, 0, U32_MAX)

    def limit(self, default: int, most: int) -> int:
        """How many rows: the key `limit`, or `default` without it, and never more than `most`."""
        wanted = self.unsigned("limit")
        return default if wanted is None else min(wanted, most)

    def signed(self, key: str) -> int | None:
        """A number of 64 bits: digits, perhaps a sign in front."""
        return self._integer(key, INT64_MIN, INT64_MAX)

    def _integer(self, key: str, lowest: int, highest: int) -> int | None:
        value = self._values.get(key)
        if value is None:
            return None
        if not value:
            raise _bad_query(f"{key}: cannot parse integer from empty string")
        negative = lowest < 0 and value.startswith("-")
        digits = value[1:] if negative else value.removeprefix("+")
        if not (digits.isascii() and digits.isdigit()):
            raise _bad_query(f"{key}: invalid digit found in string")
        digits = digits.lstrip("0") or "0"  # Python reads no more than 4300 digits, zeros included
        number = int(digits) if len(digits) < _DIGITS_MAX else INT64_MAX + 2
        number = -number if negative else number
        if not lowest <= number <= highest:
            size = "small" if negative else "large"
            raise _bad_query(f"{key}: number too {size} to fit in target type")
        return number


def _bad_query(detail: str) -> NotWellFormed:
    return NotWellFormed(400, f"Failed to deserialize query string: {detail}")


async def raw_body() -> bytes:
    """The whole body, at most `max_body_bytes` of it, within `body_seconds` and no slower than the floor.

    Raises: NotWellFormed (413); ApiError (408). The server then closes the connection, as a part is unread.
    """
    length_max, seconds_max = request.max_content_length, request.body_timeout
    assert length_max is not None
    assert seconds_max is not None
    body = bytearray()
    began = trio.current_time()
    while len(body) <= length_max:
        seconds = min(seconds_max, BODY_GRACE_SECONDS + len(body) / BODY_BYTES_PER_SECOND)
        with trio.move_on_at(began + seconds) as deadline:
            try:
                body += await anext(request.body)
            except StopAsyncIteration:
                return bytes(body)
            except RequestEntityTooLarge:
                break
        if deadline.cancelled_caught:
            raise ApiError(408, "request body did not arrive in time")
    raise NotWellFormed(413, "Failed to buffer the request body: length limit exceeded")


async def json_object() -> dict[str, Any]:
    """The body as a JSON object.

    Raises: NotWellFormed with 415, 413, 400 or 422, in this order.
    """
    if not _says_json(request.mimetype):
        raise NotWellFormed(415, "Expected request with `Content-Type: application/json`")
    body = await raw_body()
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotWellFormed(400, f"Failed to parse the request body as JSON: {error}") from None
    if not isinstance(value, dict):
        raise bad_shape(f"invalid type: {_describe(value)}, expected a map")
    return value


def _says_json(mimetype: str) -> bool:
    main, _, sub = mimetype.partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


def strings(body: dict[str, Any], key: str) -> list[str]:
    """The array of strings under a key that must be there. Raises NotWellFormed (422)."""
    if key not in body:
        raise bad_shape(f"missing field `{key}`")
    value = body[key]
    if not isinstance(value, list):
        raise bad_shape(f"{key}: invalid type: {_describe(value)}, expected a sequence")
    for place, item in enumerate(value):
        if not isinstance(item, str):
            raise bad_shape(f"{key}[{place}]: invalid type: {_describe(item)}, expected a string")
    return value


def string(body: dict[str, Any], key: str) -> str:
    """The string under a key that must be there. Raises NotWellFormed (422)."""
    if key not in body:
        raise bad_shape(f"missing field `{key}`")
    value = body[key]
    if not isinstance(value, str):
        raise bad_shape(f"{key}: invalid type: {_describe(value)}, expected a string")
    return value


def bad_shape(detail: str) -> NotWellFormed:
    return NotWellFormed(422, f"Failed to deserialize the JSON body into the target type: {detail}")


def _describe(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {orjson.dumps(value[:64]).decode()}"
        case list():
            return "sequence"
    return "map"
