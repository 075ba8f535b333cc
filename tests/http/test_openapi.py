"""The OpenAPI document against OpenAPI's own schema and against the routes of the app, and the judge of the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi.definitions import OPENAPI_31

from relay.http.openapi.document import document
from tests.support.contract import BrokenContractError, Contract
from tests.support.http import Rig

NOT_DESCRIBED = {"/docs/{version}/{name}"}
"""Routes that are nobody's but the documentation page's."""

WHOLE = document("http://localhost:3000")
OPERATIONS = {
    (method, path): operation for path, methods in WHOLE["paths"].items() for method, operation in methods.items()
}


def inside(value: Any, *place: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value within, with the keys that lead to it."""
    yield place, value
    if isinstance(value, dict):
        for key, each in value.items():
            yield from inside(each, *place, key)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from inside(each, *place, str(number))


# -- the document ------------------------------------------------------------------------------------------------------


def test_it_is_valid_by_the_schema_of_openapi_31():
    assert OPENAPI_31["$id"].startswith("https://spec.openapis.org/oas/3.1/schema/")
    errors = list(Draft202012Validator(OPENAPI_31).iter_errors(WHOLE))
    assert not errors, errors[0]


def test_every_schema_is_one_and_every_reference_leads_somewhere():
    schemas = [value for place, value in inside(WHOLE) if place[-1:] == ("schema",)]
    assert len(schemas) > len(OPERATIONS)
    for schema in [*schemas, *WHOLE["components"]["schemas"].values()]:
        Draft202012Validator.check_schema(schema)
    used = {value for place, value in inside(WHOLE) if place[-1:] == ("$ref",)}
    assert used == {f"#/components/schemas/{name}" for name in WHOLE["components"]["schemas"]}, (
        "and none is for nothing"
    )


def test_every_operation_can_be_found_and_read():
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    assert not [name for name in names if re.fullmatch("[a-z][a-zA-Z0-9]*", name) is None]
    tags = [tag["name"] for tag in WHOLE["tags"]]
    assert {tag for operation in OPERATIONS.values() for tag in operation["tags"]} == set(tags)
    for place, operation in OPERATIONS.items():
        assert operation["summary"], place
        assert {"500", "503"} <= set(operation["responses"]), place


def test_every_operation_says_who_may_call_it():
    schemes = set(WHOLE["components"]["securitySchemes"])
    assert schemes == {"bearer", "x_pubkey", "nip98"}
    for place, operation in OPERATIONS.items():
        named = {name for each in operation["security"] for name in each}
        assert named <= schemes, place
        assert bool(named) == ("401" in operation["responses"]), place


def test_the_parameters_of_a_path_are_those_in_its_name():
    for (method, path), operation in OPERATIONS.items():
        described = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"]
        assert sorted(described) == sorted(re.findall(r"\{([^}]*)\}", path)), (method, path)


# -- the document and the routes ---------------------------------------------------------------------------------------


async def test_every_route_is_described_and_every_description_has_a_route(rig: Rig):
    routed = {
        (method.lower(), re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule))
        for rule in rig.app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    left_out = {place for place in routed if place[1] in NOT_DESCRIBED}
    assert {path for _, path in left_out} == NOT_DESCRIBED
    assert routed - left_out == set(OPERATIONS)


async def test_what_needs_a_credential_is_refused_without_one(rig: Rig):
    """And what needs none is not: both as the document has it. A bare request is well-formed where it needs no query
    and no body, and those that are not well-formed are refused even earlier."""
    for (method, path), operation in OPERATIONS.items():
        target = re.sub(r"\{[^}]*\}", "00000000-0000-4000-8000-000000000000", path)
        found = await rig.request(method.upper(), target)
        if not operation["security"]:
            assert found.status not in (401, 403), target
        elif operation.get("requestBody") is None and not _has_required_query(operation):
            assert found.status == 401, target
        else:
            assert found.status in (400, 401, 415), target


def _has_required_query(operation: dict[str, Any]) -> bool:
    return any(each["in"] == "query" and each["required"] for each in operation.get("parameters", ()))


# -- the judge ---------------------------------------------------------------------------------------------------------

THING = {"type": "object", "properties": {"id": {"type": "string", "format": "uuid"}}, "additionalProperties": False}
UUID = "11111111-1111-4111-8111-111111111111"
SMALL = Contract(
    {
        "paths": {
            "/things/{thing}": {
                "get": {
                    "responses": {
                        "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                        "204": {},
                    }
                }
            },
            "/things/mine": {"post": {"responses": {"400": {"content": {"text/plain": {"schema": {"minLength": 1}}}}}}},
        },
        "components": {"schemas": {"Thing": THING}},
    }
)


@pytest.mark.parametrize(
    ("method", "target", "status", "content_type", "body"),
    [
        ("GET", "/things/1", 200, "application/json", b"{}"),
        ("GET", "/things/1?x=/y", 200, "Application/JSON; charset=utf-8", f'{{"id":"{UUID}"}}'.encode()),
        ("GET", "/things/1", 204, None, b""),
        ("HEAD", "/things/1", 200, "application/json", b""),
        ("PUT", "/things/1", 405, None, b""),
        ("POST", "/things/mine", 400, "text/plain", b"no"),
        ("GET", "/things/mine", 405, None, b""),
        ("GET", "/things/1/2", 418, None, b"of a test"),
        ("OPTIONS", "/things/1", 200, None, b""),
    ],
)
def test_what_is_described_passes(method: str, target: str, status: int, content_type: str | None, body: bytes):
    SMALL.check(method, target, status, content_type, body)


@pytest.mark.parametrize(
    ("method", "target", "status", "content_type", "body", "why"),
    [
        ("GET", "/things/1", 500, "application/json", b"{}", "status"),
        ("GET", "/things/1", 200, "text/plain", b"{}", "content type"),
        ("GET", "/things/1", 200, None, b"{}", "content type"),
        ("GET", "/things/1", 200, "application/json", b'{"other":1}', "Additional properties"),
        ("GET", "/things/1", 200, "application/json", b'{"id":"1"}', "is not a 'uuid'"),
        ("GET", "/things/1", 204, None, b"x", "no body"),
        ("HEAD", "/things/1", 200, "application/json", b"{}", "no body"),
        ("PUT", "/things/1", 200, None, b"", "method"),
        ("POST", "/things/mine", 400, "text/plain", b"", "non-empty|too short"),
    ],
)
def test_what_is_not_described_does_not(
    method: str, target: str, status: int, content_type: str | None, body: bytes, why: str
):
    with pytest.raises(BrokenContractError, match=why):
        SMALL.check(method, target, status, content_type, body)
