"""ETag and If-None-Match: what has not changed is not sent again, and nobody is shown another one's answer."""

from __future__ import annotations

import pytest

from tests.http.raw import ask
from tests.support.http import Rig, new_key

KINDS_OF_TAG = ['{tag}', 'W/{tag}', '"other", {tag}', "*"]  # fmt: skip


@pytest.mark.parametrize("path", ["/api/channels", "/api/dms", "/info", "/openapi.json"])
async def test_what_the_client_has_is_not_sent_again(rig: Rig, path: str) -> None:
    key = new_key()
    who = {"X-Pubkey": key.public_hex}
    first = await ask(rig.app, "GET", path, who)
    assert first.status == 200
    tag = first.header("etag")
    assert tag is not None
    assert tag.startswith('"')
    assert tag.endswith('"')
    for form in KINDS_OF_TAG:
        for method in ("GET", "HEAD"):
            found = await ask(rig.app, method, path, {**who, "If-None-Match": form.format(tag=tag)})
            assert (found.status, found.body) == (304, b""), (method, form)
            assert found.header("etag") == tag
            assert found.header("content-type") is found.header("content-length") is None
            assert found.header("access-control-allow-origin") == "*"
    other = await ask(rig.app, "GET", path, {**who, "If-None-Match": '"other"'})
    assert (other.status, other.body) == (200, first.body)


async def test_head_has_the_tag_of_get(rig: Rig) -> None:
    whole = await ask(rig.app, "GET", "/info")
    head = await ask(rig.app, "HEAD", "/info")
    assert (head.status, head.body, head.headers) == (200, b"", whole.headers)
    assert head.header("content-length") == str(len(whole.body))


async def test_a_change_is_another_tag(rig: Rig) -> None:
    key = new_key()
    before = await rig.get("/api/channels", key=key)
    await rig.channel(key)
    after = await rig.get("/api/channels", key=key, headers={"If-None-Match": before.headers["etag"]})
    assert after.status == 200
    assert after.headers["etag"] != before.headers["etag"]


async def test_the_same_document_as_another_type_is_another_answer(rig: Rig) -> None:
    """A strong tag is one of the bytes and of what they are."""
    plain = await rig.get("/info")
    named = await rig.get("/info", headers={"Accept": "application/nostr+json"})
    assert named.body == plain.body
    assert named.headers["etag"] != plain.headers["etag"]


async def test_only_a_good_answer_has_a_tag(rig: Rig) -> None:
    key = new_key()
    for method, path, options in (
        ("GET", "/api/channels", {}),  # 401
        ("GET", "/nowhere", {}),
        ("POST", "/api/dms", {"key": key, "json": {"pubkeys": [new_key().public_hex]}}),
        ("GET", "/health", {}),
    ):
        found = await rig.request(method, path, headers={"If-None-Match": "*"}, **options)
        assert found.status != 304
        assert "etag" not in found.headers, path


async def test_right_comes_before_the_tag(rig: Rig) -> None:
    """Who may not see an answer is not told whether it has changed."""
    tag = (await rig.get("/api/channels", key=new_key())).headers["etag"]
    assert (await rig.get("/api/channels", headers={"If-None-Match": tag})).status == 401


async def test_what_is_under_api_is_kept_by_nobody_else(rig: Rig) -> None:
    for path, key in (("/api/channels", new_key()), ("/api/channels", None), ("/api/nowhere", None)):
        found = await rig.get(path, key=key)
        assert found.headers["cache-control"] == "private, no-cache"
        assert found.headers["vary"].endswith(", authorization, x-pubkey")
    assert "cache-control" not in (await rig.get("/info")).headers
