"""NIP-11, liveness, readiness, status, and what `/metrics` shows of the parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from relay import __version__
from relay.errors import StoreGone
from relay.http import readiness
from relay.http.app import create_app
from relay.http.health import create_health_app, create_metrics_app
from relay.http.services import Readiness
from tests.http.raw import ask
from tests.support.http import Rig, new_key


@pytest.mark.parametrize("path", ["/", "/info"])
@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "application/json"),
        ("text/html, */*", "application/json"),
        ("application/nostr+json", "application/nostr+json"),
        ("application/json, application/nostr+json;q=0.9", "application/nostr+json"),
    ],
)
async def test_nip11(rig: Rig, path: str, accept: str | None, content_type: str) -> None:
    found = await rig.get(path, headers={"Accept": accept} if accept else None)
    assert (found.status, found.headers["content-type"]) == (200, content_type)
    document = found.json
    assert document["self"] == rig.services.relay_key.public_hex
    assert document["version"] == __version__
    assert {23, 29, 33, 42} <= set(document["supported_nips"])
    assert document["supported_nips"] == sorted(document["supported_nips"])
    settings = rig.services.settings
    limits = document["limitation"]
    assert limits["max_message_length"] == settings.max_frame_bytes
    assert limits["max_subscriptions"] == settings.max_subscriptions == 1024
    assert (limits["max_filters"], limits["max_limit"]) == (settings.max_filters, settings.max_limit)
    assert limits["auth_required"] is True


async def test_nip11_shows_the_limits_that_were_set(rig: Rig) -> None:
    app = rig.with_settings(max_frame_bytes=70_000, max_subscriptions=7, max_filters=3, max_limit=99)
    limits = (await rig.get("/info", app=app)).json["limitation"]
    names = ("max_message_length", "max_subscriptions", "max_filters", "max_limit")
    assert [limits[name] for name in names] == [70_000, 7, 3, 99]


async def test_liveness_on_both_ports_at_all_times(rig: Rig) -> None:
    rig.stopping = rig.refusing = True
    for app, path in (
        (rig.app, "/health"),
        (rig.app, "/_liveness"),
        (create_health_app(rig.services), "/_liveness"),
    ):
        found = await rig.get(path, app=app)
        assert (found.status, found.text) == (200, "ok")


@pytest.mark.parametrize("on_health_port", [False, True])
async def test_readiness(rig: Rig, on_health_port: bool) -> None:
    app = create_health_app(rig.services) if on_health_port else rig.app

    async def ask() -> tuple[int, object]:
        found = await rig.get("/_readiness", app=app)
        return found.status, found.json

    assert await ask() == (200, {"status": "ready"})
    rig.ready = Readiness(postgres=True, audit=False)
    assert await ask() == (503, {"status": "not_ready", "postgres": True, "redis": True, "audit": False, "pool": True})
    rig.ready = Readiness(postgres=False, audit=True)
    assert await ask() == (503, {"status": "not_ready", "postgres": False, "redis": True, "audit": True, "pool": True})
    rig.stopping = True
    assert await ask() == (503, {"status": "shutting_down"})


async def test_a_probe_that_fails_or_hangs_is_not_ready(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert readiness.PROBE_SECONDS == 2
    monkeypatch.setattr(readiness, "PROBE_SECONDS", 0.02)

    async def fails() -> Readiness:
        raise StoreGone("nobody answers")

    for probe in (fails, trio.sleep_forever):
        app = create_app(replace(rig.services, readiness=probe))
        found = await rig.get("/_readiness", app=app)
        assert found.status == 503
        assert found.json == {"status": "not_ready", "postgres": False, "redis": True, "audit": False, "pool": True}


async def test_status_is_on_the_health_port_only(rig: Rig) -> None:
    found = await rig.get("/_status", app=create_health_app(rig.services))
    assert found.json == {"service": "relay", "version": __version__, "uptime_seconds": 12}
    assert (await rig.get("/_status")).status == 404
    assert (await ask(create_health_app(rig.services), "GET", "/")).status == 404


async def test_metrics_show_the_parts(rig: Rig) -> None:
    key = new_key()
    channel_id = await rig.channel(key)
    await rig.services.directory.is_member(channel_id, key.public_hex)
    await rig.services.directory.accessible(key.public_hex)
    found = await rig.get("/metrics", app=create_metrics_app(rig.services))
    assert found.status == 200
    assert found.headers["content-type"].startswith("text/plain; version=")
    lines = found.text.splitlines()
    for cache in ("channels", "memberships", "accessible"):
        assert f'sprout_cache_entries{{cache="{cache}"}} 1.0' in lines
    pool = rig.services.pool.statistics()
    assert f'sprout_pool_connections{{pool="main",state="idle"}} {float(pool.idle)}' in lines
    assert 'sprout_pool_acquire_timeouts{pool="audit"} 0.0' in lines
    assert "sprout_audit_queue_entries 0.0" in lines
    assert any(line.startswith("sprout_build_info{") for line in lines)
    assert not [line for line in lines if "_created" in line]
