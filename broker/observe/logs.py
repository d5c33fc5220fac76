"""Structured logs: JSON for machines, colours for a terminal, our lines and the libraries' alike."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from typing import Any, Literal

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

from broker.observe import events
from broker.observe.events import Event
from broker.observe.redaction import CREDENTIAL, redacted

LogFormat = Literal["auto", "json", "console"]
NOISY = ("aiosqlite", "alembic", "asyncio", "httpx", "httpcore", "uvicorn.access")

# Without the values of local variables: among them are credentials.
_TRACE = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))

_log = structlog.get_logger("broker")


def configure(log_format: LogFormat = "auto", level: str = "info") -> None:
    """Send every log line of this process to standard error, in one shape."""
    global _log  # noqa: PLW0603 - a logger keeps what it was configured with when it was first used
    console = sys.stderr.isatty() if log_format == "auto" else log_format == "console"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(console=console))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_shared(), *_last(console=console)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Output(handler),
        cache_logger_on_first_use=True,
    )
    _log = structlog.get_logger("broker")


class _Output:
    """Writes our own lines to where the libraries' go. The way through a ``LogRecord`` costs a request more
    than all else in its line does.
    """

    name = "broker"

    def __init__(self, handler: logging.StreamHandler[Any]) -> None:
        self._handler = handler

    def write(self, line: str) -> None:
        self._handler.acquire()
        try:
            with suppress(OSError, ValueError):  # a log that can't be written holds up nobody's file
                self._handler.stream.write(line + "\n")
                self._handler.flush()
        finally:
            self._handler.release()

    debug = info = warning = error = critical = write


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


def _last(*, console: bool) -> list[Processor]:
    """From what is known to a line of text."""
    if console:
        return [
            _without_credentials,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
    return [_without_credentials, _TRACE, structlog.processors.JSONRenderer(_json)]


def _json(line: EventDict, **_: Any) -> str:
    return _JSON.encode(line)


_JSON = json.JSONEncoder(default=repr)


def _formatter(*, console: bool) -> logging.Formatter:
    """For the libraries' lines."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared(), _without_uvicorn_colours],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_last(console=console)],
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
    texts = [value for value in line.values() if isinstance(value, str)]
    if CREDENTIAL.search("\t".join(texts)) is None:  # most lines', and quicker than one by one
        return line
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
