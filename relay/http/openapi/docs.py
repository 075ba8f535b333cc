"""`docs`, described. The parts of the page (`/docs/<version>/<name>`) are the page's business and are not."""

from __future__ import annotations

from relay.http.openapi.parts import NOBODY, STRING, Paths, Schema, answer, operation

PATHS: Paths = {
    "/openapi.json": {
        "get": operation(
            "getOpenApiDocument",
            "This document",
            tag="docs",
            security=NOBODY,
            answers={200: answer("An OpenAPI 3.1 document.", {"type": "object"})},
        )
    },
    "/docs": {
        "get": operation(
            "getDocsPage",
            "This document, as a page for people",
            tag="docs",
            security=NOBODY,
            answers={200: answer("A page that loads nothing from anywhere else.", STRING, "text/html")},
        )
    },
}

SCHEMAS: dict[str, Schema] = {}
