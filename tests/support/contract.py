"""Holds an answer of the relay against its OpenAPI document: status, content type, and the body by its schema.

Every answer that goes through `tests.support.http.Rig` is judged here, so each test of a route is a test of what the
document says about it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import orjson
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from relay.http.openapi.document import document

_BASE = "urn:relay"


class BrokenContractError(AssertionError):
    """An answer that the document does not allow."""


@dataclass(frozen=True)
class Described:
    """A path of the document; `methods` in lower case."""

    template: str
    pattern: re.Pattern[str]
    methods: dict[str, Any]


class Contract:
    """Judges answers by one document. Of a path that is not in it, it has no opinion."""

    def __init__(self, whole: dict[str, Any]) -> None:
        self._paths = [
            Described(template, _pattern(template), methods)
            for template, methods in sorted(whole["paths"].items(), key=lambda item: _parameters_last(item[0]))
        ]
        self._registry = Registry().with_resource(_BASE, Resource(whole, DRAFT202012))
        self._validators: dict[str, Draft202012Validator] = {}

    def find(self, target: str) -> Described | None:
        """The description that a request's target falls under: fixed segments win over parameters."""
        path = target.partition("?")[0]
        return next((each for each in self._paths if each.pattern.fullmatch(path)), None)

    def check(self, method: str, target: str, status: int, content_type: str | None, body: bytes) -> None:
        """Judge an answer; `content_type` None = it has none. Raises BrokenContractError."""
        answer = f"{method} {target}: {status} {content_type} {body[:500]!r}"
        described = self.find(target)
        # test_openapi.py sees to it that every route is described: this is no route, or one that a test has made.
        # OPTIONS is answered alike for every path, known or not.
        if described is None or method == "OPTIONS":
            return
        described_method = "get" if method == "HEAD" else method.lower()
        operation = described.methods.get(described_method)
        if operation is None:
            if status != 405:
                raise BrokenContractError(f"the method is not described, and the answer is not 405: {answer}")
            return
        if str(status) not in operation["responses"]:
            raise BrokenContractError(f"the status is not described: {answer}")
        content = operation["responses"][str(status)].get("content", {})
        if method == "HEAD" or not content:
            if body:
                raise BrokenContractError(f"no body is described: {answer}")
            return
        media_type = (content_type or "").partition(";")[0].strip().lower()
        if media_type not in content:
            raise BrokenContractError(f"the content type is not described: {answer}")
        if "schema" in content[media_type]:
            place = ("paths", described.template, described_method, "responses", str(status), "content", media_type)
            self._check_body(place, media_type, body, answer)

    def _check_body(self, place: tuple[str, ...], media_type: str, body: bytes, answer: str) -> None:
        value = orjson.loads(body) if media_type.endswith("json") else body.decode()
        pointer = "/".join(part.replace("~", "~0").replace("/", "~1") for part in (*place, "schema"))
        if pointer not in self._validators:
            self._validators[pointer] = Draft202012Validator(
                {"$ref": f"{_BASE}#/{pointer}"}, registry=self._registry, format_checker=_FORMATS
            )
        error = next(iter(self._validators[pointer].iter_errors(value)), None)
        if error is not None:
            raise BrokenContractError(f"{error.json_path}: {error.message[:500]}: {answer}")


@cache
def contract() -> Contract:
    return Contract(document("http://localhost"))


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("".join("[^/]+" if part.startswith("{") else re.escape(part) for part in _parts(template)))


def _parts(template: str) -> list[str]:
    return re.split(r"(\{[^}]*\})", template)


def _parameters_last(template: str) -> list[tuple[bool, str]]:
    return [(segment.startswith("{"), segment) for segment in template.split("/")]


_FORMATS = FormatChecker(formats=())


def _checks(name: str) -> Callable[[Callable[[str], object]], None]:
    def register(parse: Callable[[str], object]) -> None:
        _FORMATS.checks(name, raises=ValueError)(lambda value: not isinstance(value, str) or bool(parse(value)))

    return register


@_checks("date-time")
def _date_time(text: str) -> bool:
    return text.endswith("+00:00") and datetime.fromisoformat(text).tzinfo is not None


@_checks("uuid")
def _uuid(text: str) -> bool:
    return str(UUID(text)) == text
