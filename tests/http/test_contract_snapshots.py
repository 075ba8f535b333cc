"""Word for word: status, headers and body of what the server itself says, before any route has looked at a request.

Clients of the original show these texts as they are, and tell these cases apart by status and type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from relay.http.refusals import ApiError, error_response
from tests.http.raw import ask
from tests.support.http import Rig, new_key

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
QUERY = "Failed to deserialize query string: "
SHAPE = "Failed to deserialize the JSON body into the target type: "
CORS = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "*",
    "vary": "origin, access-control-request-method, access-control-request-headers",
}
PREFLIGHT = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "*",
    "access-control-allow-headers": "*",
    "vary": CORS["vary"],
}
API = {**CORS, "cache-control": "private, no-cache", "vary": CORS["vary"] + ", authorization, x-pubkey"}


class Case(NamedTuple):
    """A request, and everything of its answer but `content-length`."""

    request: str
    status: int
    body: bytes
    content_type: str | None = None
    headers: Mapping[str, str] = CORS
    sent: Mapping[str, str] = {}
    data: bytes | None = None


AS_JSON = {"Content-Type": "application/json"}
CASES = {
    # -- paths and methods
    "unknown path": Case("GET /nowhere", 404, b""),
    "unknown path under api": Case("GET /api/nowhere", 404, b"", headers=API),
    "trailing slash": Case("GET /info/", 404, b""),
    "two slashes": Case("GET //api/dms", 404, b""),
    "two slashes inside": Case("GET /api//dms", 404, b"", headers=API),
    "encoded slash": Case("GET /api%2Fdms", 404, b""),
    "wrong method": Case("PATCH /api/dms", 405, b"", headers={**API, "allow": "GET, HEAD, POST"}),
    "wrong method of a route without GET": Case("GET /api/events", 405, b"", headers={**API, "allow": "POST"}),
    "write where one reads": Case("POST /info", 405, b"", headers={**CORS, "allow": "GET, HEAD"}),
    "preflight": Case("OPTIONS /api/dms", 200, b"", headers=PREFLIGHT),
    "preflight of nothing": Case("OPTIONS /nowhere", 200, b"", headers=PREFLIGHT),
    "preflight of everything": Case("OPTIONS *", 200, b"", headers=PREFLIGHT),
    # -- sizes
    "too long by its own word": Case(
        "POST /api/events", 413, b"length limit exceeded", TEXT, API, {"Content-Length": "1048577"}
    ),
    "too many headers": Case(
        "GET /info", 431, b'{"error":"too many request headers"}', JSON, sent={f"X-{n}": "" for n in range(101)}
    ),
    # -- queries
    "no number": Case(
        "GET /api/dms?limit=ten", 400, f"{QUERY}limit: invalid digit found in string".encode(), TEXT, API
    ),
    "no digits": Case(
        "GET /api/dms?limit=", 400, f"{QUERY}limit: cannot parse integer from empty string".encode(), TEXT, API
    ),
    "a number too large": Case(
        "GET /api/dms?limit=4294967296", 400, f"{QUERY}limit: number too large to fit in target type".encode(),
        TEXT, API,
    ),
    "neither true nor false": Case(
        "GET /api/channels?member=yes", 400, f"{QUERY}member: provided string was not `true` or `false`".encode(),
        TEXT, API,
    ),
    "twice": Case("GET /api/dms?limit=1&limit=2", 400, f"{QUERY}duplicate field `limit`".encode(), TEXT, API),
    # -- bodies
    "no type": Case(
        "POST /api/dms", 415, b"Expected request with `Content-Type: application/json`", TEXT, API, data=b"{}"
    ),
    "another type": Case(
        "POST /api/dms", 415, b"Expected request with `Content-Type: application/json`", TEXT, API,
        {"Content-Type": "text/json"}, b"{}",
    ),
    "no array": Case(
        "POST /api/dms", 422, f"{SHAPE}pubkeys: invalid type: integer `7`, expected a sequence".encode(), TEXT, API,
        AS_JSON, b'{"pubkeys":7}',
    ),
    "no key": Case("POST /api/dms", 422, f"{SHAPE}missing field `pubkeys`".encode(), TEXT, API, AS_JSON, b"{}"),
    "no object": Case(
        "POST /api/dms", 422, f"{SHAPE}invalid type: sequence, expected a map".encode(), TEXT, API, AS_JSON, b"[]"
    ),
    # -- who is there
    "nobody": Case("GET /api/dms", 401, b'{"error":"authentication required"}', JSON, API),
    "another scheme is nobody": Case(
        "GET /api/dms", 401, b'{"error":"authentication required"}', JSON, API, {"Authorization": "Basic eDp5"}
    ),
    "no such token": Case(
        "GET /api/dms", 401, b'{"error":"invalid_token"}', JSON, API, {"Authorization": "Bearer sprout_x"}
    ),
    "no identity provider": Case(
        "GET /api/dms", 401, b'{"error":"authentication failed"}', JSON, API, {"Authorization": "Bearer x.y.z"}
    ),
    "a signed request elsewhere": Case(
        "GET /api/dms", 401,
        b'{"error":"nip98_not_supported","message":"NIP-98 auth is only supported for POST /api/tokens"}',
        JSON, API, {"Authorization": "Nostr e30="},
    ),
}  # fmt: skip


PATHS = {
    "/api/channels", "/api/channels/{channel_id}", "/api/channels/{channel_id}/members",
    "/api/channels/{channel_id}/canvas", "/api/channels/{channel_id}/messages",
    "/api/channels/{channel_id}/threads/{event_id}", "/api/messages/{event_id}/reactions", "/api/events",
    "/api/events/{id}", "/api/dms", "/api/dms/{channel_id}/members", "/api/dms/{channel_id}/hide", "/api/feed",
    "/api/search", "/api/agents", "/api/presence", "/api/users/me/profile", "/api/users/{pubkey}/profile",
    "/api/users/search", "/api/users/batch", "/api/users/me/channel-add-policy", "/api/users/{pubkey}/notes",
    "/api/users/{pubkey}/contact-list", "/api/tokens", "/api/tokens/{id}",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_answer(rig: Rig, case: Case) -> None:
    method, _, path = case.request.partition(" ")
    found = await ask(rig.app, method, path, case.sent, case.data or b"")
    expected = dict(case.headers) | ({"content-type": case.content_type} if case.content_type else {})
    # `Connection: close` comes where a body was not read in time, which is for test_limits.py.
    shown = sorted(header for header in found.headers if header[0] not in ("content-length", "connection"))
    assert (found.status, found.body, shown) == (case.status, case.body, sorted(expected.items()))
    assert found.header("content-length") in (str(len(case.body)), None if not case.body else "")


async def test_a_limit_of_requests_is_told_in_the_body_and_in_the_header() -> None:
    """Clients of the original read the body; everybody else knows the header."""
    error = ApiError(429, "rate_limited", "Mint limit exceeded", retry_after_seconds=17)
    response = error_response(error)
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "17"
    assert await response.get_data(as_text=True) == (
        '{"error":"rate_limited","message":"Mint limit exceeded","retry_after_seconds":17}'
    )


@pytest.mark.parametrize("body", [b"", b"{", b"{} {}", b'{"a":\xff}'])
async def test_what_is_not_json(rig: Rig, body: bytes) -> None:
    """The original's prefix; behind it stands what the parser says."""
    found = await rig.post("/api/dms", headers=AS_JSON, data=body)
    assert (found.status, found.headers["content-type"]) == (400, TEXT)
    assert found.text.startswith("Failed to parse the request body as JSON: ")
    assert len(found.text) > len("Failed to parse the request body as JSON: ")


@pytest.mark.parametrize(
    "mimetype", ["application/json; charset=utf-8", "application/cloudevents+json", "APPLICATION/JSON"]
)
async def test_every_name_of_json(rig: Rig, mimetype: str) -> None:
    found = await rig.post("/api/dms", headers={"Content-Type": mimetype}, data=b'{"pubkeys":[]}')
    assert (found.status, found.json) == (401, {"error": "authentication required"})


async def test_presence_says_the_same_in_the_envelope(rig: Rig) -> None:
    """The one route of the original that wraps its framework's texts."""
    for headers, body, status in ((AS_JSON, b"{", 400), ({}, b"{}", 415), (AS_JSON, b"{}", 422)):
        found = await rig.request("PUT", "/api/presence", headers=headers, data=body, key=new_key())
        assert (found.status, found.headers["content-type"]) == (status, JSON)
        assert list(found.json) == ["error"]


async def test_paths_are_spelled_as_the_original_spells_them(rig: Rig) -> None:
    """With the names of their parameters: they are labels of the metrics, which dashboards name."""
    rules = {re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule) for rule in rig.app.url_map.iter_rules()}
    assert {rule for rule in rules if rule.startswith("/api/")} == PATHS


async def test_the_texts_over_a_key(rig: Rig) -> None:
    """With a caller the same requests are refused with the same words: what cannot be read is refused first."""
    key = new_key()
    for path, options in (
        ("/api/dms?limit=ten", {}),
        ("/api/channels?member=yes", {}),
    ):
        with_key: Any = await rig.get(path, key=key, **options)
        without: Any = await rig.get(path, **options)
        assert (with_key.status, with_key.body) == (without.status, without.body)
