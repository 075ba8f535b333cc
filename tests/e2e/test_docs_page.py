"""The documentation page in a real browser: Debian's Chromium, driven by Playwright, on a relay of its own.

Playwright's sync interface is used, in tests without an event loop of ours. The browser's log is part of what is
judged: what the page's policy forbids shows there as an error, and nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest
from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright

from relay.http.openapi.document import document
from tests.support.launching import Launched

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
MILLISECONDS = 30_000
"""Until something shows; a page takes one second on two busy cores."""

OPERATIONS = {
    operation["operationId"] for methods in document("http://relay")["paths"].values() for operation in methods.values()
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        reason = f"no {CHROMIUM}: install Debian's package chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@dataclass
class Visit:
    """A page and what the browser said and asked for meanwhile."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.set_default_timeout(MILLISECONDS)
        expect.set_options(timeout=MILLISECONDS)
        self.page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(_address(request)))

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.locator(".opblock").first.wait_for()


def _address(request: Request) -> str:
    return f"{request.method} {request.url}"


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    page = browser.new_page()
    found = Visit(page)
    found.watch()
    yield found
    page.close()


@pytest.fixture
def address(relay: Launched) -> str:
    return relay.url.replace("ws://", "http://")


def shown(page: Page) -> set[str]:
    """The operations on the page. Swagger UI makes an id of tag and operation for each."""
    ids = page.locator(".opblock").evaluate_all("found => found.map(each => each.id)")
    return {each.rpartition("-")[2] for each in ids}


def try_out(page: Page, operation: str) -> tuple[str, str]:
    """Status and body of an operation without parameters that must be filled in, called by its buttons."""
    block = page.locator(f"[id$='-{operation}']")
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    block.get_by_role("button", name="Execute").click()
    answer = block.locator(".live-responses-table .response")
    status = answer.locator(".response-col_status")
    expect(status).to_contain_text(re.compile(r"\d{3}"))
    return status.inner_text().split()[0], answer.locator(".highlight-code code").first.inner_text()


def test_every_operation_is_on_the_page_and_nobody_else_is_asked(visit: Visit, address: str):
    visit.open(f"{address}/docs")
    assert shown(visit.page) == OPERATIONS
    assert visit.page.title() == "relay: the HTTP door"
    # What is inside of one is only made when it is unfolded: one of each resource, as all of them would take a minute.
    for resource in visit.page.locator(".opblock-tag-section").all():
        control = resource.locator(".opblock-summary-control").last
        control.click()
        visit.page.locator(".opblock.is-open .responses-table").wait_for()
        control.click()
    assert visit.complaints == []
    assert f"GET {address}/openapi.json" in visit.requests
    assert not [each for each in visit.requests if not each.split(" ")[1].startswith((f"{address}/", "data:"))]


def test_a_route_can_be_tried_from_the_page(visit: Visit, address: str):
    visit.open(f"{address}/docs")
    status, body = try_out(visit.page, "getRelayInformation")
    assert status == "200"
    assert '"supported_nips"' in body
    assert f"GET {address}/info" in visit.requests
    assert visit.complaints == []


def test_what_the_policy_forbids_is_not_loaded(visit: Visit, address: str):
    """And shows among the complaints, of which the other tests see none."""
    visit.open(f"{address}/docs")
    with visit.page.expect_console_message(lambda said: "Content Security Policy" in said.text):
        visit.page.evaluate(
            "document.body.append(Object.assign(new Image(), {src: 'https://elsewhere.example/pixel.png'}))"
        )
    with visit.page.expect_console_message(lambda said: "Content Security Policy" in said.text):
        visit.page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {text: 'window.was_run = true'}))"
        )
    assert visit.page.evaluate("window.was_run") is None
    assert len(visit.complaints) == 2


def test_a_credential_goes_to_the_relay_and_its_refusal_is_shown(visit: Visit, address: str):
    visit.open(f"{address}/docs")
    page = visit.page
    page.get_by_role("button", name="Authorize").first.click()
    bearer = page.locator(".auth-container", has_text="bearer").first
    bearer.locator("input").fill("sprout_" + "0" * 64)
    bearer.get_by_role("button", name="Apply credentials").click()
    page.locator(".modal-ux").get_by_role("button", name="Close").last.click()
    with page.expect_request(f"{address}/api/channels*") as sent:
        status, body = try_out(page, "listChannels")
    assert sent.value.headers["authorization"] == "Bearer sprout_" + "0" * 64
    assert (status, orjson.loads(body)) == ("401", {"error": "invalid_token"})


def test_a_proxy_may_put_it_under_any_path(visit: Visit, address: str):
    """Its addresses are relative: those of its parts, of the document, and of what is tried out."""
    mount = "https://proxy.example/team/relay"
    asked = []

    def pass_on(route: Route) -> None:
        asked.append(route.request.url)
        assert route.request.url.startswith(mount)
        route.fulfill(response=route.fetch(url=address + route.request.url.removeprefix(mount)))

    visit.page.route("https://proxy.example/**", pass_on)
    visit.open(f"{mount}/docs")
    assert shown(visit.page) == OPERATIONS
    assert try_out(visit.page, "getRelayInformation")[0] == "200"
    assert f"{mount}/info" in asked
    assert visit.complaints == []
    assert not [each for each in visit.requests if not each.split(" ")[1].startswith((f"{mount}/", "data:"))]
