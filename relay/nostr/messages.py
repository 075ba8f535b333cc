"""The frames of NIP-01, NIP-42 and NIP-45: what a client sent becomes a typed message, what the relay says bytes.

The payload of one WebSocket message goes in. Out comes a `ClientMessage`, or `InvalidMessage` with the text that the
client gets in a NOTICE; nothing else is ever raised, whatever the bytes. The lower half makes the payloads that the
relay sends, and the frames (RFC 6455) around them: fan-out writes ready-made frames past the WebSocket library.

How long a message may be is the listener's limit, not checked here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Final, TypeAlias

import orjson

from relay.errors import ProtocolError
from relay.nostr.event import Event, InvalidEvent, parse_event
from relay.nostr.filter import Filter, InvalidFilter, parse_filter

# All three are the original's, and so what clients were written for. The depth is that of its parser, serde_json.
SUB_ID_BYTES_MAX: Final = 256
FILTERS_MAX: Final = 10
DEPTH_MAX: Final = 127


class InvalidMessage(ProtocolError):
    """What came is not a client message; `detail` says why, `notice` is the whole text for the client."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @property
    def notice(self) -> str:
        # The prefix stands twice in the original, and clients look for it.
        return f"invalid message: Invalid message format: {self.detail}"


@dataclass(frozen=True, slots=True)
class EventMessage:
    """`["EVENT",{…}]`. Neither id nor signature is verified yet."""

    event: Event


@dataclass(frozen=True, slots=True)
class ReqMessage:
    """`["REQ",id,filter…]`. No filter at all is legal and matches nothing."""

    sub_id: str
    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class CountMessage:
    """`["COUNT",id,filter…]` (NIP-45). Its ids live apart from those of subscriptions: nothing is opened or closed."""

    sub_id: str
    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class CloseMessage:
    """`["CLOSE",id]`. The id may be any string."""

    sub_id: str


@dataclass(frozen=True, slots=True)
class AuthMessage:
    """`["AUTH",{…}]`. Neither id nor signature is verified yet."""

    event: Event


ClientMessage: TypeAlias = EventMessage | ReqMessage | CountMessage | CloseMessage | AuthMessage


# --- client to relay --------------------------------------------------------------------------------------------------


def parse_client_message(data: str | bytes, *, filters_max: int = FILTERS_MAX) -> ClientMessage:
    """The message in a text frame, or in a binary one that holds UTF-8. Elements beyond the needed ones are ignored.

    Raises:
        InvalidMessage: it is not one.
    """
    message = _parse_json(data)
    if type(message) is not list:
        raise InvalidMessage("expected JSON array")
    if not message:
        raise InvalidMessage("empty array")
    verb = message[0]
    if type(verb) is not str:
        raise InvalidMessage("first element must be a string")
    match verb:
        case "EVENT":
            return _parse_event_message(message)
        case "REQ":
            return ReqMessage(*_parse_query("REQ", message, filters_max))
        case "COUNT":
            return CountMessage(*_parse_query("COUNT", message, filters_max))
        case "CLOSE":
            return _parse_close(message)
        case "AUTH":
            return _parse_auth(message)
    raise InvalidMessage(f"unknown message type: {verb}")


def _parse_json(data: str | bytes) -> object:
    try:
        value: object = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidMessage(f"JSON parse error: {error}") from None
    # orjson allows 1 024 levels. Every level costs an opening bracket, so most messages need no second look.
    if isinstance(data, str):
        brackets = data.count("[") + data.count("{")
    else:
        brackets = data.count(b"[") + data.count(b"{")
    if brackets > DEPTH_MAX and _deeper_than(value, DEPTH_MAX):
        raise InvalidMessage("JSON parse error: recursion limit exceeded")
    return value


def _deeper_than(value: object, depth_max: int) -> bool:
    """Level by level, not by recursion: the depth is the sender's choice."""
    members = [value]
    for _ in range(depth_max + 1):
        lists = [member for member in members if type(member) is list]
        objects = [member.values() for member in members if type(member) is dict]
        if not lists and not objects:
            return False
        # chain, because a loop of our own over 40 000 empty lists takes three times as long.
        members = list(chain(chain.from_iterable(lists), chain.from_iterable(objects)))
    return True


def _parse_event_message(message: list[object]) -> EventMessage:
    if len(message) < 2:
        raise InvalidMessage("EVENT requires event object")
    try:
        return EventMessage(parse_event(message[1]))
    except InvalidEvent as error:
        raise InvalidMessage(f"invalid event: {error.reason}") from None


def _parse_auth(message: list[object]) -> AuthMessage:
    if len(message) < 2:
        raise InvalidMessage("AUTH requires event object")
    try:
        return AuthMessage(parse_event(message[1]))
    except InvalidEvent as error:
        raise InvalidMessage(f"invalid auth event: {error.reason}") from None


def _parse_query(verb: str, message: list[object], filters_max: int) -> tuple[str, tuple[Filter, ...]]:
    """Id and filters of a REQ or COUNT: the same rules, the same words."""
    if len(message) < 2:
        raise InvalidMessage(f"{verb} requires sub_id")
    sub_id = message[1]
    if type(sub_id) is not str:
        raise InvalidMessage(f"{verb} sub_id must be a string")
    if not sub_id:
        raise InvalidMessage(f"{verb} sub_id must not be empty")
    if len(sub_id.encode()) > SUB_ID_BYTES_MAX:
        raise InvalidMessage(f"{verb} sub_id exceeds maximum length of {SUB_ID_BYTES_MAX} bytes")
    count = len(message) - 2
    if count > filters_max:
        raise InvalidMessage(f"{verb} contains {count} filters, maximum is {filters_max}")
    try:
        return sub_id, tuple([parse_filter(obj) for obj in message[2:]])
    except InvalidFilter as error:
        raise InvalidMessage(f"invalid filter: {error.reason}") from None


def _parse_close(message: list[object]) -> CloseMessage:
    if len(message) < 2:
        raise InvalidMessage("CLOSE requires sub_id")
    sub_id = message[1]
    if type(sub_id) is not str:
        raise InvalidMessage("CLOSE sub_id must be a string")
    return CloseMessage(sub_id)


# --- relay to client --------------------------------------------------------------------------------------------------


def auth(challenge: str) -> bytes:
    """`["AUTH",challenge]`: the first thing a client hears (NIP-42)."""
    return orjson.dumps(["AUTH", challenge])


def event_prefix(sub_id: str) -> bytes:
    """What stands before the event in every EVENT frame of a subscription; made once per subscription."""
    return b'["EVENT",' + orjson.dumps(sub_id) + b","


def event_frame(sub_prefix: bytes, event_json: bytes) -> bytes:
    """`["EVENT",sub,{…}]` from `event_prefix` and `Event.json`."""
    return b"%b%b]" % (sub_prefix, event_json)


def ok(event_id: str, accepted: bool, message: str) -> bytes:
    """`["OK",id,accepted,message]`; the message has a machine-readable prefix or is empty."""
    return orjson.dumps(["OK", event_id, accepted, message])


def eose(sub_id: str) -> bytes:
    """`["EOSE",sub]`: all that was stored has been sent."""
    return orjson.dumps(["EOSE", sub_id])


def count(sub_id: str, number: int) -> bytes:
    """`["COUNT",sub,{"count":n}]` (NIP-45)."""
    return orjson.dumps(["COUNT", sub_id, {"count": number}])


def closed(sub_id: str, message: str) -> bytes:
    """`["CLOSED",sub,message]`: the subscription was refused or ended, or, with an empty message, CLOSE obeyed."""
    return orjson.dumps(["CLOSED", sub_id, message])


def notice(text: str) -> bytes:
    """`["NOTICE",text]`."""
    return orjson.dumps(["NOTICE", text])


def ws_frame_head(length: int, opcode: int = 1) -> bytes:
    """The head of an unfragmented, unmasked server frame of `length` payload bytes (RFC 6455 §5.2). 1 is text."""
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 1 << 16:
        return bytes((0x80 | opcode, 126)) + length.to_bytes(2, "big")
    return bytes((0x80 | opcode, 127)) + length.to_bytes(8, "big")


def event_ws_frame(sub_prefix: bytes, event_json: bytes) -> bytes:
    """`ws_frame(event_frame(...))` with one copy instead of three: every delivery makes one."""
    length = len(sub_prefix) + len(event_json) + 1
    if 126 <= length < 1 << 16:
        return b"".join((b"\x81\x7e", length.to_bytes(2, "big"), sub_prefix, event_json, b"]"))
    return b"".join((ws_frame_head(length), sub_prefix, event_json, b"]"))


def ws_frame(payload: bytes, opcode: int = 1) -> bytes:
    """A whole server frame."""
    return ws_frame_head(len(payload), opcode) + payload
