"""All descriptions in one document, and what they have in common: who may call, what a conditional request gets.

In: the `PATHS` and `SCHEMAS` of every resource, and the address that clients reach. Out: the OpenAPI 3.1 document, as
data and as the bytes that are served; both are made once for an address.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import orjson

from relay import __version__
from relay.http.openapi import (
    agents,
    audit,
    audit_witness,
    bridge,
    channels,
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
from relay.http.openapi.parts import ERROR, INTEGER, JSON, STRING, Schema, header, record

_RESOURCES: Final = (
    discovery, channels, messages, threads, reactions, events, dms, feed, search, agents, presence, users, social,
    tokens, bridge, audit, audit_witness, docs,
)  # fmt: skip

# Open, unlike all others: a problem may carry more than what the RFC names.
_PROBLEM: Final = record(
    {"type": STRING, "title": STRING, "status": INTEGER, "detail": STRING, "error": STRING},
    optional=("detail",),
    closed=False,
)

_ABOUT: Final = """\
A relay keeps signed [Nostr](https://github.com/nostr-protocol/nips) events, records each of them in an audit chain, and
shows them to whoever may see them. This document describes its HTTP door; the other one is a WebSocket on the same port
that speaks NIP-01.

**Reading** is done with the routes below. **Writing** is done with signed events, almost without exception: to create a
channel, to send a message, to react, to join or to leave, sign an event of that kind and `POST` it to `/api/events`.

Ids of events and public keys are 64 lowercase hexadecimal digits; ids of channels are UUIDs. Keys in a query or a body
that a route does not know are ignored. Everything that answers `GET` answers `HEAD` too, without the body. A refusal is
`{"error": …}`, sometimes with a `message`; a request that cannot even be read is refused with a sentence in plain text.
"""

_TAGS: Final[Mapping[str, str]] = {
    "discovery": "What anybody may ask: what this relay is, who has which name here, whether it is well.",
    "channels": "Channels, their members and their canvas.",
    "messages": "The messages of a channel.",
    "threads": "A message and the replies to it.",
    "reactions": "Who reacted to a message, and how.",
    "events": "Single signed events, in and out: the way in for everything that is written.",
    "dms": "Direct messages: channels of two to nine people.",
    "feed": "What concerns the caller, gathered from all channels.",
    "search": "Messages by their words.",
    "agents": "The bots that the caller shares a channel with.",
    "presence": "Who is online.",
    "users": "Profiles.",
    "social": "Notes and contact lists.",
    "tokens": "API tokens: made, listed and revoked by their owner.",
    "bridge": "NIP-01 over HTTP: filters in, events out, with requests that are signed one by one.",
    "audit": "What the relay has signed about its audit log, and proofs of it, for auditors.",
    "docs": "This document.",
}

_SECURITY: Final[Mapping[str, Schema]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API token of this relay (`sprout_` and 64 hexadecimal digits), or a JSON Web Token of its "
        "identity provider, where it has one. What a token may do is in its scopes.",
    },
    "x_pubkey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Pubkey",
        "description": "For development only, and off unless the operator has switched it on: the caller's public key, "
        "believed without proof. It counts only between two ends on one machine, with no proxy between them and on a "
        "connection that is kept open for further requests.",
    },
    "nip98": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "A NIP-98 request: `Nostr ` and the Base64 of a signed event of kind 27235 that names this very "
        "URL, the method and the hash of the body. It is good for one request, within a minute of its making.",
    },
}

_ETAG: Final[Schema] = {
    "description": "Changes whenever the body does. Send it back in `If-None-Match`.",
    "schema": STRING,
}
_IF_NONE_MATCH: Final = header("If-None-Match", STRING, "The `ETag` of the answer that the client still has.")
_NOT_MODIFIED: Final[Schema] = {"description": "The answer that the client has is still the right one."}


def document(server: str) -> dict[str, Any]:
    """The OpenAPI document; `server` is the address that its paths are under."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Error": ERROR, "Problem": _PROBLEM}
    for resource in _RESOURCES:
        for path, methods in resource.PATHS.items():
            for method, operation in methods.items():
                whole = _conditional(operation) if method == "get" and is_conditional(path) else operation
                paths.setdefault(path, {})[method] = whole
        schemas |= resource.SCHEMAS
    return {
        "openapi": "3.1.0",
        "info": {"title": "relay", "version": __version__, "description": _ABOUT},
        "servers": [{"url": server}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": dict(_SECURITY)},
    }


@cache
def document_json(server: str) -> bytes:
    return orjson.dumps(document(server))


def http_address(relay_url: str) -> str:
    """The address of the HTTP door, for the address that WebSocket clients are given."""
    parts = urlsplit(relay_url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def is_conditional(path: str) -> bool:
    """Whether a GET of this path has an ETag and looks at `If-None-Match`."""
    return path.startswith("/api/") or path in ("/info", "/openapi.json")


def _conditional(operation: Schema) -> Schema:
    responses = dict(operation["responses"])
    ok = responses["200"]
    if JSON in ok.get("content", ()):
        responses["200"] = ok | {"headers": {**ok.get("headers", {}), "ETag": _ETAG}}
    responses["304"] = _NOT_MODIFIED
    return operation | {
        "parameters": [*operation.get("parameters", ()), _IF_NONE_MATCH],
        "responses": dict(sorted(responses.items())),
    }
