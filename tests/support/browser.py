"""A real Chromium, and what happens in its pages."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.support import needs

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "google-chrome", "google-chrome-stable")
OF_THE_NETWORK = ("Failed to load resource", "Access to ")
"""How the browser's own lines about refused and blocked requests begin; no script can keep it from them."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium; a test without one is skipped."""
    path = executable()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def executable() -> str:
    """Ubuntu's ``chromium-browser`` may be a script that only asks for a snap, so it counts where it runs."""
    return needs.executable(*NAMES, *(["chromium-browser"] if _runs("chromium-browser") else []))


def _runs(name: str) -> bool:
    try:
        done = subprocess.run([name, "--version"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@dataclass
class Tab:
    """A page and what it did; attributes that it lacks are the page's."""

    page: Page
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings on the console, violated policies among them, and errors that nobody caught."""

    def __post_init__(self) -> None:
        self._debugger = self.page.context.new_cdp_session(self.page)
        self.page.on("request", self._note_request)
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        # Asked for only when a chooser is awaited, it comes too late for the key that opens one.
        self.page.on("filechooser", lambda _: None)

    def _note_request(self, request: Request) -> None:
        self.requests.append(request)

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    @property
    def own_complaints(self) -> list[str]:
        """What the page's script and policy are to blame for."""
        return [text for text in self.complaints if not text.startswith(OF_THE_NETWORK)]

    @property
    def origins(self) -> set[str]:
        """Who was asked for anything."""
        parts = [urlsplit(request.url) for request in self.requests]
        return {f"{part.scheme}://{part.netloc}" for part in parts if part.scheme != "data"}

    def asked(self, path: str) -> list[Request]:
        """The POSTs to a path."""
        posts = [request for request in self.requests if request.method == "POST"]
        return [request for request in posts if urlsplit(request.url).path == path]

    def slow_down(self, bytes_per_second: int) -> None:
        """What it sends goes no faster than this; -1 lifts it."""
        speed = {"downloadThroughput": -1, "uploadThroughput": bytes_per_second}
        self._debugger.send("Network.emulateNetworkConditions", {"offline": False, "latency": 0, **speed})


@contextmanager
def tab(browser: Browser, **context: Any) -> Iterator[Tab]:
    """A tab in a context of its own; ``context`` as ``Browser.new_context`` takes it."""
    with browser.new_context(**context) as fresh:
        fresh.set_default_timeout(15_000)
        yield Tab(fresh.new_page())
