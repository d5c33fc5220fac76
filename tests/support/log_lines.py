"""What this process writes into its log while a test runs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from broker.observe import logs


class LogLines:
    """The lines so far, as the broker writes them in JSON."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def __call__(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def events(self) -> list[str]:
        """The lines' names, in their order."""
        return [line["event"] for line in self()]


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    logs.configure("json")
    root.handlers[0].setStream(stream)  # type: ignore[attr-defined]
    yield LogLines(stream)
    root.handlers[:] = handlers
    root.setLevel(level)
