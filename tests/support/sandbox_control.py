"""Telling the sandbox Coze how to behave, and asking it what it saw."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

# One for all: making a client reads the machine's certificates, which takes longer than a test.
_http = httpx.Client()


@dataclass(frozen=True)
class SandboxControl:
    """The sandbox of the tests."""

    url: str
    environment: dict[str, str]
    """What a broker must have set to use it."""

    def fail(self, **fault: Any) -> None:
        """Make the next requests fail in this way (see ``broker.sandbox.faults``)."""
        _http.put(f"{self.url}/_sandbox/faults", json=fault).raise_for_status()

    def heal(self) -> None:
        """No more faults, and forget what was seen."""
        _http.delete(f"{self.url}/_sandbox/faults").raise_for_status()
        _http.delete(f"{self.url}/_sandbox/events").raise_for_status()

    def file(self, file_id: str) -> dict[str, Any]:
        """What it stored under an id; fails when there is nothing."""
        files = {file["id"]: file for file in self._get("files")}
        found: dict[str, Any] = files[file_id]
        return found

    def events(self, **expected: Any) -> list[dict[str, Any]]:
        """What happened since ``heal``, of events with these values."""
        return [event for event in self._get("events") if expected.items() <= event.items()]

    def wait_for(self, condition: Callable[[], Any], seconds: float = 5.0) -> Any:
        """Ask until the answer is truthy."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            if result := condition():
                return result
            time.sleep(0.005)
        raise AssertionError("waited in vain")

    def _get(self, what: str) -> list[dict[str, Any]]:
        body = _http.get(f"{self.url}/_sandbox/{what}").raise_for_status().json()
        rows: list[dict[str, Any]] = body if isinstance(body, list) else body[what]
        return rows
