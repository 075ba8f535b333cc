"""Log lines: JSON for machines, coloured text for a terminal; one line an event, on standard error.

Configured once, before anything else runs. Our own modules log through structlog; what the libraries say through the
standard library (Hypercorn, Quart, warnings) comes out in the same form. What may be logged is each module's own
business: never keys, tokens or message content.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

# Hypercorn reports each listening socket in words of its own; the supervisor says it better and once. The HTTP client
# writes a line for each request, with the address, and addresses may carry passwords.
_QUIET = {"hypercorn.error": logging.WARNING, "httpx2": logging.WARNING}


def configure(level: str, format_: str) -> None:
    """`level` and `format_` as in the settings (`log_level`, `log_format`). May be called again."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(format_)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(max(number, quiet))
    logging.captureWarnings(True)


def _rendering(format_: str) -> list[Any]:
    assert format_ in ("auto", "json", "console"), format_
    terminal = sys.stderr.isatty()
    if format_ == "json" or (format_ == "auto" and not terminal):
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # Not the rich one: it prints local variables, and these may hold tokens and keys.
    return [structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback)]
