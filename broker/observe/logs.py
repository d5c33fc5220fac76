"""Structured logs: JSON for machines, colours for a terminal, our lines and the libraries' alike."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Literal

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

from broker.observe import events
from broker.observe.events import Event
from broker.observe.redaction import redacted

LogFormat = Literal["auto", "json", "console"]
NOISY = ("aiosqlite", "alembic", "asyncio", "httpx", "httpcore", "uvicorn.access")

# Without the values of local variables: among them are credentials.
_TRACE = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))

_log = structlog.stdlib.get_logger("broker")


def configure(log_format: LogFormat = "auto", level: str = "info") -> None:
    """Send every log line of this process to standard error, in one shape."""
    console = sys.stderr.isatty() if log_format == "auto" else log_format == "console"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(console=console))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def request_ended(event: Event) -> None:
    """Write the one line that every request leaves behind."""
    level = logging.ERROR if (event.status or 500) >= 500 else logging.INFO  # noqa: PLR2004 - HTTP's own border
    _log.log(level, "request", **event.record())


def _shared() -> list[Processor]:
    return [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_process_id,
        _with_request_id,
    ]


def _formatter(*, console: bool) -> logging.Formatter:
    renderer: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [_TRACE, structlog.processors.JSONRenderer(ensure_ascii=True)]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared(), _without_uvicorn_colours],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _without_credentials,
            *renderer,
        ],
    )


def _with_process_id(_: Any, __: str, line: EventDict) -> EventDict:
    """Which of the workers writes; all of them write to one place."""
    line["pid"] = os.getpid()
    return line


def _with_request_id(_: Any, __: str, line: EventDict) -> EventDict:
    """Whatever is logged while a request is served can be found by its id, the libraries' lines too."""
    if events.is_open():
        line.setdefault("request_id", events.current().request_id)
    return line


def _without_credentials(_: Any, __: str, line: EventDict) -> EventDict:
    """The last line of defence: what others wrote, Coze in its answers for one, may repeat a credential."""
    return {name: redacted(value) if isinstance(value, str) else value for name, value in line.items()}


def _without_uvicorn_colours(_: Any, __: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)
    return event


def unexpected(error: Exception) -> None:
    """Write down an error that nobody expected, with its trace."""
    _log.error("unexpected error", exc_info=error)


def warning(event: str, **values: Any) -> None:
    """Write a warning for the operator."""
    _log.warning(event, **values)


def info(event: str, **values: Any) -> None:
    """Write a line for the operator."""
    _log.info(event, **values)
