"""The app as a whole: CORS, limits, what the router refuses, counting, crashes, and the end."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import httpx2
import hypercorn.config
import hypercorn.trio
import pytest
import trio
from quart import Response
from quart_trio import QuartTrio

from relay import metrics
from relay.http import app, values
from relay.http.edge import Edge
from tests.http.raw import ask
from tests.support.http import Rig, new_key

VARY = "origin, access-control-request-method, access-control-request-headers"


def counted(action: str, code: int = 200, caller: str = "unknown") -> float:
    labels = {"action": action, "code": str(code), "caller": caller}
    return metrics.REGISTRY.get_sample_value("http_requests_total", labels) or 0.0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/info", 200), ("GET", "/nowhere", 404), ("DELETE", "/api/channels", 405), ("GET", "/api/channels", 401)],
)
async def test_cors_stands_on_every_answer(rig: Rig, method: str, path: str, status: int) -> None:
    found = await rig.request(method, path, headers={"Origin": "https://a.example"})
    assert found.status == status
    assert found.headers["access-control-allow-origin"] == "*"
    assert found.headers["access-control-expose-headers"] == "*"
    own = ", authorization, x-pubkey" if path.startswith("/api/") else ""
    assert found.headers.getlist("vary") == [VARY + own]


@pytest.mark.parametrize("path", ["/api/channels", "/", "/nowhere"])
async def test_every_options_request_is_a_preflight(rig: Rig, path: str) -> None:
    before = counted(path)
    found = await rig.request("OPTIONS", path)
    assert (found.status, found.body) == (200, b"")
    assert found.headers["access-control-allow-methods"] == "*"
    assert found.headers["access-control-allow-headers"] == "*"
    assert found.headers["access-control-allow-origin"] == "*"
    assert "access-control-expose-headers" not in found.headers
    assert counted(path) == before


async def test_listed_origins(rig: Rig) -> None:
    app = rig.with_settings(cors_origins="https://a.example, https://b.example")
    for method in ("GET", "OPTIONS"):
        listed = await rig.request(method, "/info", headers={"Origin": "https://b.example"}, app=app)
        assert listed.headers["access-control-allow-origin"] == "https://b.example"
        assert "access-control-expose-headers" not in listed.headers
        other = await rig.request(method, "/info", headers={"Origin": "https://c.example"}, app=app)
        assert "access-control-allow-origin" not in other.headers
        assert other.headers["vary"] == VARY
        assert "access-control-allow-origin" not in (await rig.request(method, "/info", app=app)).headers


@pytest.mark.parametrize("nobody", [",", " , ,"])
async def test_a_list_that_names_no_origin_lets_none_in(
    rig: Rig, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = rig.with_settings(cors_origins=nobody)
    assert "names no origin" in capsys.readouterr().out
    for method in ("GET", "OPTIONS"):
        found = await ask(app, method, "/info", {"Origin": "https://a.example"})
        assert found.status == 200
        assert found.header("access-control-allow-origin") is None
        assert found.header("access-control-expose-headers") is None
        assert found.header("vary") == VARY


async def test_no_value_is_every_origin(rig: Rig) -> None:
    for empty in ("", "  "):
        found = await ask(rig.with_settings(cors_origins=empty), "GET", "/info", {"Origin": "https://a.example"})
        assert found.header("access-control-allow-origin") == "*"


@pytest.mark.parametrize("origins", ["", "https://a.example"])
async def test_a_route_may_let_every_origin_in(rig: Rig, origins: str) -> None:
    """One value, whatever the relay would have said; and what the route varies by is told in the same header."""
    app = rig.with_settings(cors_origins=origins)

    async def own() -> Response:
        return Response(b"", 200, {"Access-Control-Allow-Origin": "*", "Vary": "Accept"})

    app.add_url_rule("/own", view_func=own)
    found = await ask(app, "GET", "/own", {"Origin": "https://b.example"})
    assert found.header("access-control-allow-origin") == "*"
    assert found.header("vary") == f"{VARY}, Accept"


async def test_unknown_paths_and_methods_have_no_body(rig: Rig) -> None:
    for path in ("/nowhere", "/api/channels/", "/api", "/api/dms/x"):
        found = await rig.get(path)
        assert (found.status, found.body) == (404, b""), path
    found = await rig.request("PATCH", "/api/dms")
    assert (found.status, found.body, found.headers["allow"]) == (405, b"", "GET, HEAD, POST")
    assert (await rig.get("/api/events")).headers["allow"] == "POST"


async def test_head_is_get_without_the_body(rig: Rig) -> None:
    head = await rig.request("HEAD", "/info")
    assert (head.status, head.body) == (200, b"")
    assert (await rig.request("HEAD", "/api/channels")).status == 401


async def test_a_body_that_says_it_is_too_long(rig: Rig) -> None:
    """Before anybody asks who is there, and also where no body is read."""
    too_long = {"Content-Length": str(1_048_577)}
    for method, path in (("POST", "/api/events"), ("GET", "/api/channels")):
        found = await rig.request(method, path, headers=too_long)
        assert (found.status, found.text) == (413, "length limit exceeded")
        assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert (await rig.post("/nowhere", headers=too_long)).status == 404


async def test_a_body_that_turns_out_to_be_too_long(rig: Rig) -> None:
    app = rig.with_settings(max_body_bytes=1024)
    client = app.test_client(use_cookies=False)
    async with client.request("/api/events", method="POST", headers={"Transfer-Encoding": "chunked"}) as connection:
        for _ in range(3):
            await connection.send(b"x" * 512)
        await connection.send_complete()
    response = await connection.as_response()
    assert response.status_code == 413
    assert await response.get_data() == b"Failed to buffer the request body: length limit exceeded"


async def test_a_body_that_does_not_come(rig: Rig) -> None:
    app = rig.with_settings(body_seconds=0.05)
    client = app.test_client(use_cookies=False)
    async with client.request("/api/events", method="POST", headers={"Content-Length": "10"}) as connection:
        await connection.send(b"12345")
    response = await connection.as_response()
    assert response.status_code == 408
    assert await response.get_json() == {"error": "request body did not arrive in time"}


@pytest.mark.parametrize("chunks", [0, 3])
async def test_a_body_that_comes_too_slowly(rig: Rig, monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
    """The time for the whole is not over, but no body as slow as this could be a large one."""
    monkeypatch.setattr(values, "BODY_GRACE_SECONDS", 0.1)
    client = rig.app.test_client(use_cookies=False)
    async with client.request("/api/events", method="POST", headers={"Transfer-Encoding": "chunked"}) as connection:
        for _ in range(chunks):
            await connection.send(b"x")
    response = await connection.as_response()
    assert response.status_code == 408


async def test_a_body_that_keeps_the_floor_may_take_its_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "BODY_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(values, "BODY_BYTES_PER_SECOND", 100)
    client = rig.app.test_client(use_cookies=False)
    async with client.request("/api/events", method="POST", headers={"Transfer-Encoding": "chunked"}) as connection:
        for _ in range(4):
            await connection.send(b"x" * 100)
            await trio.sleep(0.05)
        await connection.send_complete()
    assert (await connection.as_response()).status_code == 401


async def test_requests_are_counted_by_route_and_caller(rig: Rig) -> None:
    hide = "/api/dms/{channel_id}/hide"
    before = counted(hide, 401), counted("/info"), counted("/info", caller="mesh_1-a")
    await rig.post("/api/dms/11111111-1111-1111-1111-111111111111/hide")
    await rig.get("/info")
    await rig.get("/info", headers={"x-envoy-downstream-service-cluster": "mesh_1-a"})
    await rig.get("/info", headers={"x-envoy-downstream-service-cluster": "x" * 65})
    await rig.get("/info", headers={"x-envoy-downstream-service-cluster": "a b"})
    assert (counted(hide, 401), counted("/info"), counted("/info", caller="mesh_1-a")) == (
        before[0] + 1, before[1] + 3, before[2] + 1,
    )  # fmt: skip


async def test_every_route_is_counted_under_its_pattern(rig: Rig) -> None:
    """Whatever stands in the path: one label for each route, and none for each channel."""
    rules = [rule for rule in rig.app.url_map.iter_rules() if not rule.rule.startswith(("/_", "/health"))]
    assert len(rules) >= 8
    for rule in rules:
        method = next(iter(sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})))
        path = re.sub(r"<[^>]*>", "7e57ab1e", rule.rule)
        await ask(rig.app, method, path)
        pattern = re.sub(r"<(?:[^:>]*:)?([^>]*)>", r"{\1}", rule.rule)
        assert pattern in actions(), path
    assert not [action for action in actions() if "7e57ab1e" in action or "<" in action]


def actions() -> set[str]:
    names = metrics.REGISTRY.collect()
    return {s.labels["action"] for metric in names if metric.name == "http_requests" for s in metric.samples}


async def test_head_is_answered_wherever_get_is(rig: Rig) -> None:
    """Same status, same headers, no body; and only there."""
    for rule in rig.app.url_map.iter_rules():
        path = re.sub(r"<[^>]*>", "7e57ab1e", rule.rule)
        head = await ask(rig.app, "HEAD", path)
        assert head.body == b"", path
        if "GET" in (rule.methods or ()):
            whole = await ask(rig.app, "GET", path)
            assert (head.status, head.headers) == (whole.status, whole.headers), path
        elif "GET" not in (head.header("allow") or "GET"):
            assert head.status == 405, path


async def test_no_route_bears_a_slash_too_many(rig: Rig) -> None:
    for rule in rig.app.url_map.iter_rules():
        path = re.sub(r"<[^>]*>", "7e57ab1e", rule.rule)
        if path == "/":
            continue
        encoded = path[0] + path[1:].replace("/", "%2f", 1)
        for wrong in (path + "/", "/" + path, path.replace("/", "//"), *([encoded] if encoded != path else [])):
            found = await ask(rig.app, "GET", wrong)
            assert (found.status, found.body) == (404, b""), wrong


async def test_an_encoded_letter_is_the_letter(rig: Rig) -> None:
    assert (await ask(rig.app, "GET", "/%69nfo")).status == 200
    assert (await ask(rig.app, "GET", "/info%00")).status == 404
    assert (await ask(rig.app, "GET", "/%2e%2e/info")).status == 404


async def test_invented_callers_do_not_fill_the_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_callers", set())
    before = counted("/info", caller="unknown")
    for number in range(app.CALLERS_MAX + 20):
        await rig.get("/info", headers={"x-envoy-downstream-service-cluster": f"invented-{number}"})
    names = metrics.REGISTRY.collect()
    callers = {s.labels["caller"] for metric in names if metric.name == "http_requests" for s in metric.samples}
    assert len({caller for caller in callers if caller.startswith("invented")}) == app.CALLERS_MAX
    assert counted("/info") == before + 20


async def test_probes_and_unknown_paths_are_not_counted(rig: Rig) -> None:
    for path in ("/health", "/_liveness", "/_readiness", "/nowhere-to-be-counted"):
        await rig.get(path)
    names = metrics.REGISTRY.collect()
    actions = {s.labels["action"] for metric in names if metric.name == "http_requests" for s in metric.samples}
    assert not [action for action in actions if re.match(r"/_|/health|/nowhere", action)]


async def test_latency_has_the_labels_of_the_count(rig: Rig) -> None:
    await rig.get("/info")
    labels = {"action": "/info", "code": "200", "caller": "unknown"}
    assert metrics.REGISTRY.get_sample_value("http_request_latency_ms_count", labels) == counted("/info")


async def test_a_crash_in_a_route_is_a_500_and_the_app_lives_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def crash(*_: object, **__: object) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
            raise RuntimeError("a secret detail")

    with monkeypatch.context() as patch:
        patch.setattr("relay.http.channels.channel_list.visible", crash)
        before = counted("/api/channels", 500)
        found = await rig.get("/api/channels", key=new_key())
    assert (found.status, found.json) == (500, {"error": "internal server error"})
    assert found.headers["access-control-allow-origin"] == "*"
    assert counted("/api/channels", 500) == before + 1
    assert "a secret detail" in capsys.readouterr().out
    assert (await rig.get("/api/channels", key=new_key())).status == 200


@pytest.mark.parametrize("started", [False, True])
async def test_a_crash_around_the_app_is_contained_at_the_edge(started: bool) -> None:
    sent: list[dict[str, object]] = []

    async def send(message: object) -> None:
        sent.append(dict(message))  # type: ignore[call-overload]

    async def broken(_scope: object, _receive: object, send: object) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        raise ExceptionGroup("both", [ValueError("a"), OSError("b")])

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await Edge(broken)(scope, trio.sleep_forever, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == (200 if started else 500)
    if not started:
        assert sent[1]["body"] == b'{"error":"internal server error"}'


async def test_a_cancelled_request_is_not_an_answer() -> None:
    async def waits(_scope: object, _receive: object, _send: object) -> None:
        await trio.sleep_forever()

    async def send(message: object) -> None:
        raise AssertionError(message)

    with trio.CancelScope() as cancelled:
        cancelled.cancel()
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await Edge(waits)(scope, trio.sleep_forever, send)  # type: ignore[arg-type]
    assert cancelled.cancelled_caught


async def test_what_is_no_request_goes_through_the_edge() -> None:
    seen = []

    async def inner(scope: dict[str, object], _receive: object, _send: object) -> None:
        seen.append(scope["type"])

    await Edge(inner)({"type": "lifespan"}, trio.sleep_forever, trio.sleep_forever)  # type: ignore[arg-type]
    assert seen == ["lifespan"]


async def test_writes_are_refused_at_the_end_and_reads_are_not(rig: Rig) -> None:
    rig.stopping = True  # only readiness says so yet
    key = new_key()
    assert (await rig.submit(key, 9, [["h", "x"]])).status == 400
    rig.refusing = True
    for path in ("/api/events", "/api/dms", "/api/dms/x/hide", "/api/dms/x/members"):
        found = await rig.post(path, key=key)
        assert (found.status, found.json) == (503, {"error": "shutting down"}), path
    assert (await rig.get("/api/channels", key=key)).status == 200
    assert (await rig.post("/nowhere")).status == 404


def shielded(app: QuartTrio) -> object:
    """As the launch forms do it: Quart-Trio would cancel the send after which Hypercorn looks at the connection."""

    async def outer(scope: object, receive: object, send: Callable[[dict[str, object]], Awaitable[None]]) -> None:
        async def send_whole(message: dict[str, object]) -> None:
            with trio.CancelScope(shield=True):
                await send(message)

        await app(scope, receive, send_whole)  # type: ignore[arg-type]

    return outer


async def serve(app: QuartTrio, *, task_status: trio.TaskStatus[list[str]]) -> None:
    config = hypercorn.config.Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    await hypercorn.trio.serve(shielded(app), config, shutdown_trigger=trio.sleep_forever, task_status=task_status)  # type: ignore[arg-type]


async def test_over_a_real_port(rig: Rig) -> None:
    """What the test client cannot show: h11's view of HEAD, of early answers, and the addresses of a connection."""

    async def crash() -> Response:
        raise RuntimeError("in a route")

    rig.app.add_url_rule("/crash", view_func=crash)
    key = new_key()
    async with trio.open_nursery() as nursery:
        (address,) = await nursery.start(serve, rig.app)
        async with httpx2.AsyncClient(base_url=address) as client:
            assert (await client.get("/api/channels", headers={"X-Pubkey": key.public_hex})).json() == []
            head = await client.head("/info")
            assert (head.status_code, head.content) == (200, b"")
            assert int(head.headers["content-length"]) > 100
            assert (await client.get("/crash")).status_code == 500
            tag = (await client.get("/info")).headers["etag"]
            for method in ("GET", "HEAD"):
                same = await client.request(method, "/info", headers={"If-None-Match": tag})
                assert (same.status_code, same.content) == (304, b"")
                assert "content-length" not in same.headers
            for path in ("/nowhere", "/api//channels", "//api/channels", "/api%2Fchannels"):
                missing = await client.get(path)
                assert (missing.status_code, missing.content) == (404, b""), path
                assert "content-type" not in missing.headers
            assert (await client.options("/x")).headers["access-control-allow-methods"] == "*"
            early = await client.post("/api/events", content=b"x" * 1_100_000)
            assert (early.status_code, early.text) == (413, "length limit exceeded")
            assert (await client.get("/health")).text == "ok"
        nursery.cancel_scope.cancel()
