"""`POST /query`, `/count`, `/events`: the verbs of a WebSocket for clients that ask once.

In: an array of filters or one signed event, from a caller that signed this very request (NIP-98) or has another
credential. Out: `[event, …]`, `{"count": n}`, or what became of the event. Who may see what, the gates and the bounds
are those of REQ, COUNT and EVENT; nothing is registered and nothing stays open. Refusals are problem details.

Theory. What a caller may read is asked again when everything has been found, with no wait between that and the answer:
what was lost meanwhile is left out, or counted anew. A filter for channels that may not be read finds nothing, as in a
COUNT, instead of being refused: other filters of the same request may well find something.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson
import trio
from quart import Blueprint, Response, request

from relay.access.identity import Caller
from relay.access.scopes import MESSAGES_READ
from relay.errors import Refused
from relay.http.auth import services
from relay.http.edge import when_answered
from relay.http.events import accept
from relay.http.problems import answer_with_problems
from relay.http.refusals import ApiError, NotWellFormed, from_refusal, json_response, unavailable
from relay.http.signed import authenticate_signed
from relay.http.values import raw_body
from relay.nostr.filter import Filter, InvalidFilter, p_gate_refused, parse_filter, subscription_channels
from relay.nostr.ids import parse_hex64
from relay.query.conditions import Reach
from relay.query.count import count
from relay.query.gather import AnswersTooLarge, AnswerTooLarge, Gathered, gather
from relay.query.replay import Limits
from relay.query.search import hits
from relay.query.sql import Cursor

P_GATED: Final = "restricted: p-gated kinds require #p tag matching your pubkey"
MIXED: Final = "mixed search and non-search filters not supported"
BEFORE_ID_ALONE: Final = "before_id requires until to be set"
TOO_LARGE: Final = "answer too large"

routes = Blueprint("bridge", __name__)
answer_with_problems(routes)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter, and the place behind which its events begin."""

    filter: Filter
    after: Cursor | None


@routes.post("/events")
async def submit_event() -> Response:
    body = await raw_body()
    return await accept(body, await authenticate_signed(body))


@routes.post("/query")
async def query_events() -> Response:
    """Each event once: for each filter in turn its newest, or where all of them search, its best first."""
    body = await raw_body()
    caller = await authenticate_signed(body, MESSAGES_READ)
    wanted = _wanted(body, caller)
    filters = [each.filter for each in wanted]
    searched = [each.search is not None for each in filters]
    if any(searched) and not all(searched):
        raise ApiError(400, MIXED)
    found = services().answers.begin()
    when_answered(request.scope, found.release)
    try:
        async with services().asking(caller, long=any(searched)):
            accessible = await services().directory.readable_now(caller)
            reach = _reach(caller, filters, accessible, search=any(searched))
            await (_search(filters, reach, found) if any(searched) else _stored(wanted, reach, found))
            still = accessible & await services().directory.readable_now(caller)
    except Refused as refused:
        raise from_refusal(refused.refusal) from None
    except AnswerTooLarge:
        raise ApiError(400, TOO_LARGE, "Ask with a smaller `limit`, and go on with `until` and `before_id`.") from None
    except (AnswersTooLarge, trio.TooSlowError):
        raise unavailable() from None
    shown = [row.json for row in found.rows if row.channel_id is None or row.channel_id in still]
    return Response(b"[" + b",".join(shown) + b"]", 200, content_type="application/json")


@routes.post("/count")
async def count_events() -> Response:
    """How many different events at least one of the filters could show; `limit` does not matter."""
    body = await raw_body()
    caller = await authenticate_signed(body, MESSAGES_READ)
    filters = [each.filter for each in _wanted(body, caller, paged=False)]
    try:
        async with services().asking(caller, long=True):
            number = await _count(caller, filters)
    except Refused as refused:
        raise from_refusal(refused.refusal) from None
    except trio.TooSlowError:
        raise unavailable() from None
    return json_response({"count": number})


# -- what is asked -----------------------------------------------------------------------------------------------------


def _wanted(body: bytes, caller: Caller, *, paged: bool = True) -> list[Wanted]:
    """The filters of a body, if this caller may ask so. `paged`: whether `before_id` means something.

    Raises:
        ApiError: 413, 400 or 403.
    """
    settings = services().settings
    if len(body) > settings.max_frame_bytes:
        # The bound of a REQ: a megabyte of ids would keep the database busy for seconds.
        raise NotWellFormed(413, f"filters exceed maximum size of {settings.max_frame_bytes} bytes")
    try:
        objects = orjson.loads(body)
        if type(objects) is not list:
            raise InvalidFilter("expected an array")
        if len(objects) > settings.max_filters:
            raise InvalidFilter(f"{len(objects)} filters, maximum is {settings.max_filters}")
        filters = [parse_filter(each) for each in objects]
    except (orjson.JSONDecodeError, InvalidFilter) as error:
        raise ApiError(400, f"invalid filters: {error}") from None
    if subscription_channels(filters) is None and p_gate_refused(filters, caller.pubkey):
        raise ApiError(403, P_GATED)
    named = [each.get("before_id") if paged else None for each in objects]
    return [Wanted(each, _after(each, before_id)) for each, before_id in zip(filters, named, strict=True)]


def _after(wanted: Filter, before_id: object) -> Cursor | None:
    """The last event of the page before: `until` is its time and `before_id` its id. Raises ApiError (400)."""
    if before_id is None:
        return None
    if wanted.until is None:
        raise ApiError(400, BEFORE_ID_ALONE)
    if wanted.search is not None:
        raise ApiError(400, "before_id cannot continue a search")
    event_id = parse_hex64(before_id) if isinstance(before_id, str) else None
    if event_id is None:
        raise ApiError(400, "before_id must be 64 hex characters")
    return min(wanted.until, 2**63 - 1), bytes.fromhex(event_id)


def _reach(caller: Caller, filters: Sequence[Filter], accessible: frozenset[str], *, search: bool) -> Reach:
    channels = subscription_channels(filters)
    # A token that is bound to channels was not given for finding what stands outside of all of them.
    global_events = channels is None and not (search and caller.channel_ids is not None)
    return Reach(accessible, global_events, channels)


# -- what is found -----------------------------------------------------------------------------------------------------


async def _stored(wanted: Sequence[Wanted], reach: Reach, found: Gathered) -> None:
    parts = services()
    limits = Limits.from_settings(parts.settings)
    asked = [(each.filter, each.after) for each in wanted]
    await gather(parts.pool, asked, reach, limits, found, now=int(time.time()))


async def _search(filters: Sequence[Filter], reach: Reach, found: Gathered) -> None:
    parts = services()
    limits = Limits.from_settings(parts.settings)
    for each in filters:
        found.add(await hits(parts.pool, each, reach, limits, now=int(time.time())))


async def _count(caller: Caller, filters: Sequence[Filter]) -> int:
    parts = services()
    while True:
        accessible = await parts.directory.readable_now(caller)
        asked = [
            (each, _reach(caller, filters, accessible, search=each.search is not None)) for each in filters
        ]  # fmt: skip
        number = await count(
            parts.pool, asked, now=int(time.time()), statement_seconds=parts.settings.statement_seconds
        )  # fmt: skip
        if accessible <= await parts.directory.readable_now(caller):
            return number
