"""`/openapi.json` and the page at `/docs`, as they are served; how the page looks is the browser's test."""

from __future__ import annotations

import re

import pytest

from tests.support.http import Rig


async def test_the_document_is_for_everybody_and_names_the_address_of_the_relay(rig: Rig):
    addresses = {
        "ws://localhost:3000": "http://localhost:3000",
        "wss://relay.example": "https://relay.example",
        "wss://relay.example:8443/team/": "https://relay.example:8443/team",
    }
    for relay_url, address in addresses.items():
        found = await rig.get("/openapi.json", app=rig.with_settings(relay_url=relay_url))
        assert (found.status, found.headers["content-type"]) == (200, "application/json")
        assert found.json["servers"] == [{"url": address}]
        assert found.json["openapi"] == "3.1.0"


async def test_the_page_allows_nothing_from_elsewhere(rig: Rig):
    found = await rig.get("/docs")
    assert (found.status, found.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in found.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"
    assert found.headers["cache-control"] == "no-cache", "it names the version of its parts"
    links = re.findall(r'(?:src|href)="([^"]*)"', found.text)
    assert len(links) == 6
    assert not [link for link in links if link.startswith(("/", "http", "//"))], "a proxy may put it under any path"
    assert not re.search(r"<script(?! src)|<style| on\w+=| style=", found.text), "the policy forbids it"


async def test_the_parts_of_the_page_may_be_kept_for_good(rig: Rig):
    types = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "png": "image/png"}
    page = (await rig.get("/docs")).text
    parts = re.findall(r'"(docs/[^"]*)"', page)
    assert len(parts) == 5
    for part in parts:
        found = await rig.get(f"/{part}")
        assert found.status == 200
        assert found.headers["content-type"] == types[part.rpartition(".")[2]]
        assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.body
        head = await rig.request("HEAD", f"/{part}")
        assert (head.status, head.body) == (200, b"")


async def test_a_part_of_another_version_is_unknown(rig: Rig):
    """Otherwise a browser would keep the new file under the old address, or the other way round, for a year."""
    part = re.findall(r'"/?(docs/[^"]*/page\.js)"', (await rig.get("/docs")).text)[0]
    version = part.split("/")[1]
    assert (await rig.get(f"/docs/{version[::-1]}/page.js")).status == 404
    for name in ("swagger-ui.js", "..%2f__init__.py", "%2e%2e/__init__.py", "page.js/", "LICENSE"):
        found = await rig.get(f"/docs/{version}/{name}")
        assert (found.status, found.body) == (404, b""), name


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_nothing_here_can_be_written(rig: Rig, method: str):
    for path in ("/docs", "/openapi.json"):
        found = await rig.request(method, path)
        assert (found.status, found.body, found.headers["allow"]) == (405, b"", "GET, HEAD")
