"""The OpenAPI document at `/openapi.json`, and a page at `/docs` that shows it.

The page is Swagger UI out of the package `swagger-ui-py`, of which only the static files are used; none of its code
runs. Nothing on the page comes from elsewhere, and its policy forbids the browser to ask anybody but us: what a reader
types into it (a token, say) stays between the two. Its addresses are relative, so that a proxy may put the relay under
any path, and the addresses of its parts change with their content, so that browsers may keep them for good.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import trio
from quart import Blueprint, Response
from werkzeug.exceptions import NotFound

from relay.http.auth import services
from relay.http.openapi.document import document_json, http_address

_TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".png": "image/png"}
_FROM_THE_PACKAGE: Final = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
_VERSION_DIGITS: Final = 16

# `data:` is for the icons that are written into Swagger UI's style sheet.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>relay: the HTTP door</title>
<link rel="icon" type="image/png" href="docs/{version}/favicon-32x32.png">
<link rel="stylesheet" href="docs/{version}/swagger-ui.css">
<link rel="stylesheet" href="docs/{version}/page.css">
</head>
<body>
<div id="docs"><noscript>This page needs JavaScript; the document itself is
<a href="openapi.json">openapi.json</a>.</noscript></div>
<script src="docs/{version}/swagger-ui-bundle.js"></script>
<script src="docs/{version}/page.js"></script>
</body>
</html>
"""
_STYLE: Final = "body { margin: 0; background: #fafafa; }\n"
# The requests of "Try it out" go to where the page came from, whatever address the relay is known by: the policy allows
# no other, and in development the two often differ (127.0.0.1 and localhost).
_SCRIPT: Final = """\
"use strict";
const here = new URL(".", location.href);
fetch(new URL("openapi.json", here))
  .then((answer) => answer.json())
  .then((spec) => {
    spec.servers = [{ url: here.href.replace(/\\/$/, "") }];
    SwaggerUIBundle({
      spec,
      dom_id: "#docs",
      deepLinking: true,
      displayRequestDuration: true,
      docExpansion: "list",
      validatorUrl: null,
    });
  })
  .catch((error) => {
    document.getElementById("docs").textContent = `The document cannot be shown: ${error}`;
  });
"""

routes = Blueprint("docs", __name__)


@dataclass(frozen=True, slots=True)
class Assets:
    """What the page is made of, by file name. `version` is a hash over all of it."""

    version: str
    files: dict[str, bytes]


@routes.get("/openapi.json")
async def openapi() -> Response:
    address = http_address(services().settings.relay_url)
    return Response(document_json(address), 200, content_type="application/json")


@routes.get("/docs")
async def page() -> Response:
    found = await trio.to_thread.run_sync(assets)
    response = Response(_PAGE.format(version=found.version), 200, content_type="text/html; charset=utf-8")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@routes.get("/docs/<version>/<name>")
async def asset(version: str, name: str) -> Response:
    """A part of the page. An address with another version is unknown, and never kept as the wrong content."""
    found = await trio.to_thread.run_sync(assets)
    if version != found.version or name not in found.files:
        raise NotFound
    response = Response(found.files[name], 200, content_type=_TYPES[Path(name).suffix])
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@cache
def assets() -> Assets:
    """Read once, from the disk: call it in a thread."""
    # Where the package is, without importing it: its `__init__` brings a template engine and handlers for others' apps.
    spec = find_spec("swagger_ui")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    static = Path(spec.submodule_search_locations[0], "static")
    files = {name: (static / name).read_bytes() for name in _FROM_THE_PACKAGE}
    files |= {"page.css": _STYLE.encode(), "page.js": _SCRIPT.encode()}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(hashlib.sha256(files[name]).digest())
    return Assets(digest.hexdigest()[:_VERSION_DIGITS], files)
