"""Log lines: one form for all, and never the values of local variables."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx2
import pytest
import structlog

from relay import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def fail() -> None:
    token = "sprout_" + "0123456789abcdef" * 4
    raise RuntimeError(f"failed with a token of {len(token)} characters")


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_show_no_local_variables(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form)
    try:
        fail()
    except RuntimeError:
        structlog.get_logger("relay.x").exception("it failed")
    written = capsys.readouterr().err
    assert "failed with a token of 71 characters" in written
    assert "sprout_0123" not in written


def test_libraries_come_out_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "json")
    logging.getLogger("quart").warning("theirs")
    structlog.get_logger("relay.x").info("not wanted")
    structlog.get_logger("relay.x").warning("ours", number=1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("theirs", "warning"), ("ours", "warning")]
    assert lines[1]["number"] == 1


def test_the_http_client_does_not_log_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    """They may carry passwords."""
    logs.configure("info", "json")
    answering = httpx2.MockTransport(lambda _: httpx2.Response(204))
    with httpx2.Client(transport=answering) as client:
        client.get("https://user:secret@witness.example/")
    assert capsys.readouterr().err == ""
