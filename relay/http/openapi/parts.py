"""The words that the OpenAPI document is made of: types of the contract, and the shape of an operation.

Pure data, JSON Schema 2020-12. `operation` adds what every route has in common, so that a module says only what is its
own: who may call, what every body is refused for, what happens while the database is away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Schema = dict[str, Any]
Operation = dict[str, Any]
Paths = Mapping[str, Mapping[str, Operation]]

STRING: Final[Schema] = {"type": "string"}
INTEGER: Final[Schema] = {"type": "integer"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
HEX64: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
UUID: Final[Schema] = {"type": "string", "format": "uuid"}
RFC3339: Final[Schema] = {"type": "string", "format": "date-time"}
UNIX: Final[Schema] = {"type": "integer", "format": "int64", "description": "Seconds since 1970."}
TAGS: Final[Schema] = {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}

JSON: Final = "application/json"
TEXT: Final = "text/plain"
PROBLEM: Final = "application/problem+json"

# Names of security schemes; the document defines them.
API: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"x_pubkey": []}]
API_OR_NIP98: Final[list[dict[str, list[str]]]] = [*API, {"nip98": []}]
NOBODY: Final[list[dict[str, list[str]]]] = []


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def record(properties: Mapping[str, Schema], *, optional: Sequence[str] = (), closed: bool = True) -> Schema:
    """An object whose keys are all there, but for the `optional` ones, and which has no others (`closed`)."""
    required = [name for name in properties if name not in optional]
    found: Schema = {"type": "object", "properties": dict(properties), "required": required}
    if closed:
        found["additionalProperties"] = False
    return found


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def enum(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def path(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": description}


def query(name: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def header(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def answer(
    description: str,
    schema: Schema | None = None,
    media_type: str = JSON,
    *,
    headers: Mapping[str, Schema] | None = None,
) -> Schema:
    """A response. No schema: no body. `headers`: name → header object, for those that mean something to a client."""
    found: Schema = {"description": description}
    if headers:
        found["headers"] = dict(headers)
    if schema is not None:
        found["content"] = {media_type: {"schema": schema}}
    return found


ERROR: Final[Schema] = record(
    {"error": STRING, "message": STRING, "retry_after_seconds": INTEGER}, optional=("message", "retry_after_seconds")
)

_COMMON: Final[Mapping[int, str]] = {
    413: "The request has a body that is too large.",
    431: "The request has too many headers, or they are too large.",
    500: "Something is wrong inside the relay; its log says what.",
    503: (
        "The database is away or busy, or the relay is stopping. Nothing was done; try again. Only with the error "
        "`undecided` it is not known whether a write was done; an event that is sent again is stored once."
    ),
}
_BODY: Final[Mapping[int, str]] = {
    400: "The body cannot be read, or what it asks for makes no sense.",
    408: "The body did not arrive in time.",
    415: "The body is not declared as JSON.",
    422: "The body is JSON of another shape.",
}
# The statuses of a request that is not well-formed; clients of the original know their sentences as plain text.
_BEFORE_THE_ROUTE: Final = frozenset({400, 408, 413, 415, 422})
# Refused before it is known which route it is for.
_BEFORE_ALL_ROUTES: Final = frozenset({431})
_LATER: Final = frozenset({429, 503})
_RETRY_AFTER: Final[Schema] = {
    "description": "After how many seconds another try makes sense.",
    "schema": {"type": "integer", "minimum": 0},
}


def operation(
    operation_id: str,
    summary: str,
    *,
    tag: str,
    answers: Mapping[int, Schema],
    description: str = "",
    security: Sequence[Mapping[str, list[str]]] = tuple(API),
    scope: str | None = None,
    parameters: Sequence[Schema] = (),
    body: Schema | None = None,
    body_is_raw: bool = False,
    refusals: Mapping[int, str] | None = None,
    problems: bool = False,
) -> Operation:
    """One operation.

    Args:
        answers: Status → `answer(...)`, for what is no refusal.
        scope: The scope that a token needs.
        body: The schema of a JSON body. `body_is_raw`: its content type is not looked at.
        refusals: Status → when, where it is more than what all routes have in common, or more precise.
        problems: Refusals are problem details (RFC 9457) instead of the `{"error": …}` envelope.
    """
    no = dict(_COMMON)
    if any(each["in"] == "query" for each in parameters):
        no[400] = "A parameter cannot be read."
    if security:
        no[401] = "Who is asking is not known, or the credential is no good any more."
        no[403] = (
            "The credential does not reach this far." if scope is None else f"The token lacks the scope `{scope}`."
        )
    if body is not None:
        no |= {status: text for status, text in _BODY.items() if not (body_is_raw and status in (415, 422))}
    no |= dict(refusals or {})
    found: Operation = {
        "operationId": operation_id,
        "summary": summary,
        "tags": [tag],
        "security": [dict(each) for each in security],
        "responses": {
            **{str(status): each for status, each in sorted(answers.items())},
            **{
                str(status): _refusal(status, text, problems=problems and status not in _BEFORE_ALL_ROUTES)
                for status, text in sorted(no.items())
            },
        },
    }
    if scope is not None:
        description = f"{description}\n\nNeeds the scope `{scope}`.".strip()
    if description:
        found["description"] = description
    if parameters:
        found["parameters"] = list(parameters)
    if body is not None:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    return found


def _refusal(status: int, text: str, *, problems: bool) -> Schema:
    found: Schema = {"description": text}
    if status in _LATER:
        found["headers"] = {"Retry-After": _RETRY_AFTER}
    if problems:
        found["content"] = {PROBLEM: {"schema": ref("Problem")}}
    else:
        found["content"] = {JSON: {"schema": ref("Error")}}
        if status in _BEFORE_THE_ROUTE:
            found["content"][TEXT] = {"schema": STRING}
    return found
