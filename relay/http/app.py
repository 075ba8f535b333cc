"""The app of the relay's port: routes, limits, metrics by route, and what becomes of errors.

In: ASGI `http` scopes from Hypercorn. Out: answers, every one with CORS headers and every no in the relay's own words.
A crash in a route is a 500 and a log line, never more. The lifespan is not Quart's: it would cancel its nursery first
at shutdown and hide a crash in it, so nothing here needs it and the outer app answers for it.
"""

from __future__ import annotations

import re
import time
from typing import Any, Final

import structlog
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from relay import metrics
from relay.http import (
    agents,
    audit,
    audit_witness,
    bridge,
    channels,
    conditional,
    discovery,
    dms,
    docs,
    events,
    feed,
    messages,
    presence,
    reactions,
    search,
    social,
    threads,
    tokens,
    users,
)
from relay.http.auth import services
from relay.http.edge import Edge
from relay.http.refusals import (
    INTERNAL_TEXT,
    SHUTTING_DOWN_TEXT,
    ApiError,
    NotWellFormed,
    error_response,
    unavailable,
)
from relay.http.services import Services
from relay.store.failures import is_unavailable

_CALLER: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_PARAMETER: Final = re.compile(r"<(?:[^:<>]+:)?([^<>]+)>")
_UNCOUNTED: Final = ("/_", "/health")
CALLERS_MAX: Final = 100

RESOURCES: Final = (
    discovery, channels, messages, threads, reactions, events, dms, feed, search, agents, presence, users, social,
    tokens, bridge, audit, audit_witness, docs,
)  # fmt: skip

_EXPECTED: Final = (ApiError, HTTPException)

# The names that are labels already. Of the process, like the registry that holds the labels.
_callers: set[str] = set()

log = structlog.get_logger(__name__)


class _App(QuartTrio):
    async def handle_user_exception(self, error: Exception | BaseExceptionGroup[Any]) -> Any:
        """Quart-Trio answers for the first error of a group and drops the others unseen: here a bug comes first."""
        if isinstance(error, ExceptionGroup):
            _, bugs = error.split(lambda each: isinstance(each, _EXPECTED) or is_unavailable(each))
            if bugs is not None:
                return await _answer_crash(error)
        return await super().handle_user_exception(error)


def create_app(parts: Services) -> QuartTrio:
    """A new app over these parts; several may live side by side."""
    settings = parts.settings
    app = bare_app(__name__)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["BODY_TIMEOUT"] = settings.body_seconds
    app.extensions["relay"] = parts
    for resource in RESOURCES:
        app.register_blueprint(resource.routes)
    app.before_request(_admit)
    app.after_request(_finish)
    # A list that names no origin after all is meant to keep others out, not to let everybody in.
    origins = settings.allowed_origins if settings.cors_origins.strip() else None
    if origins == ():
        log.error("SPROUT_CORS_ORIGINS names no origin: browsers are refused")
    app.asgi_app = Edge(app.asgi_app, origins)  # type: ignore[method-assign, assignment]
    return app


def bare_app(name: str) -> QuartTrio:
    """An app without files, redirects or pages of its own, that answers errors as the relay does."""
    app = _App(name, static_folder=None)
    # Every OPTIONS request is answered at the edge.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    # `/api//dms` is another path than `/api/dms`, not a redirect to it.
    app.url_map.merge_slashes = False
    app.register_error_handler(ApiError, _answer_api_error)
    app.register_error_handler(HTTPException, _answer_http_exception)
    app.register_error_handler(Exception, _answer_crash)
    return app


async def _admit() -> None:
    """What is decided before a route looks at anything."""
    g.started = time.perf_counter()
    if request.routing_exception is not None:
        return
    if request.content_length is not None and request.content_length > services().settings.max_body_bytes:
        raise NotWellFormed(413, "length limit exceeded")
    if request.method not in ("GET", "HEAD") and services().closed_to_writes:
        raise ApiError(503, SHUTTING_DOWN_TEXT)


async def _finish(response: Response) -> Response:
    response = await conditional.prepare(response)
    _count(response)
    return response


def _count(response: Response) -> None:
    rule = request.url_rule
    if rule is None or rule.rule.startswith(_UNCOUNTED):
        return
    caller = _caller(request.headers.get("x-envoy-downstream-service-cluster", ""))
    action = _PARAMETER.sub(r"{\1}", rule.rule)
    labels = (str(response.status_code), caller, action)
    metrics.HTTP_REQUESTS.labels(*labels).inc()
    metrics.HTTP_LATENCY_MS.labels(*labels).observe((time.perf_counter() - g.started) * 1000)


def _caller(name: str) -> str:
    """The label for who says to be calling: every new one is memory for ever, and anybody may invent names."""
    if _CALLER.fullmatch(name) is None or (name not in _callers and len(_callers) >= CALLERS_MAX):
        return "unknown"
    _callers.add(name)
    return name


async def _answer_api_error(error: ApiError) -> Response:
    return error_response(error)


async def _answer_http_exception(error: HTTPException) -> Response:
    """What the router and the body reader refuse. Unknown path and wrong method have no body."""
    response = Response(b"", error.code or 500)
    del response.headers["Content-Type"]
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    return response


async def _answer_crash(error: Exception) -> Response:
    """What nobody expected, and what the store could not do: the second is worth another try, and no traceback."""
    if is_unavailable(error):
        log.warning("the store failed a request", method=request.method, path=request.path, error=repr(error))
        return error_response(unavailable())
    log.error("a request crashed", method=request.method, path=request.path, exc_info=error)
    return error_response(ApiError(500, INTERNAL_TEXT))
