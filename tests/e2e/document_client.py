"""A small client that knows nothing of the relay but its OpenAPI document: it finds operations by their names.

In: the address of the document. Out: answers, each held against what the document says of it. How a credential is sent
is read from the document too; how a NIP-98 request is signed is NIP-98's.
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Self
from urllib.parse import quote

import httpx2
import orjson

from tests.support.contract import Contract
from tests.support.core import Person
from tests.support.relay import fields

Credential = Callable[[str, str, bytes], tuple[str, str]]
"""Method, address and body of a request → the name of a security scheme, and what to send by it."""


def token(text: str) -> Credential:
    return lambda _method, _url, _body: ("bearer", text)


def signed_by(person: Person) -> Credential:
    """Signs each request. A nonce makes two equal ones of the same second two."""

    def sign(method: str, url: str, body: bytes) -> tuple[str, str]:
        tags = [["u", url], ["method", method], ["payload", sha256(body).hexdigest()], ["nonce", secrets.token_hex(8)]]
        return "nip98", "Nostr " + b64encode(orjson.dumps(fields(person.sign(27235, tags=tags)))).decode()

    return sign


class DocumentClient:
    """Calls operations by `operationId`. A context manager."""

    def __init__(self, document_url: str) -> None:
        self._http = httpx2.Client(timeout=30)
        self.document = self._http.get(document_url).raise_for_status().json()
        self._contract = Contract(self.document)
        self._server: str = self.document["servers"][0]["url"]
        self._places = {
            operation["operationId"]: (method.upper(), path, operation)
            for path, methods in self.document["paths"].items()
            for method, operation in methods.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(
        self, name: str, credential: Credential | None = None, *, body: object = None, **parameters: object
    ) -> tuple[int, Any]:
        """Status and body. Raises BrokenContractError for an answer that the document does not allow."""
        method, path, operation = self._places[name]
        sent = {"path": {}, "query": {}, "header": {}}
        for each in operation.get("parameters", ()):
            if each["name"] in parameters:
                sent[each["in"]][each["name"]] = str(parameters.pop(each["name"]))
            assert each["name"] in sent[each["in"]] or not each["required"], f"{name} needs {each['name']}"
        assert not parameters, f"{name} has no {', '.join(parameters)}"
        for key, value in sent["path"].items():
            path = path.replace("{" + key + "}", quote(value, safe=""))
        content, headers = b"", sent["header"]
        if body is not None:
            content = orjson.dumps(body)
            headers["Content-Type"] = next(iter(operation["requestBody"]["content"]))
        if credential is not None:
            headers |= self._authorize(operation, *credential(method, self._server + path, content))
        found = self._http.request(method, self._server + path, params=sent["query"], headers=headers, content=content)
        self._contract.check(method, path, found.status_code, found.headers.get("Content-Type"), found.content)
        return found.status_code, found.json() if found.content else None

    def _authorize(self, operation: Mapping[str, Any], scheme: str, value: str) -> dict[str, str]:
        assert {scheme: []} in operation["security"], f"{operation['operationId']} does not take {scheme}"
        described = self.document["components"]["securitySchemes"][scheme]
        if described["type"] == "http":
            return {"Authorization": f"{described['scheme'].title()} {value}"}
        assert described["in"] == "header"
        return {described["name"]: value}
