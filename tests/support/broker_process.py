"""The broker as its operator runs it: a process of its own, set up through its environment."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

COMMAND = (sys.executable, "-m", "broker")
START_SECONDS = 20.0
PAGE_ORIGIN = "http://app.example:3000"
"""An origin that every broker of the tests allows besides its own."""

_running: list[Broker] = []


@dataclass
class Broker:
    """A running broker."""

    url: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path
    secret_key: str = ""
    """An API key for tokens and files."""
    publishable_key: str = ""
    """A key for pages, from the broker's own origin and ``PAGE_ORIGIN``."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return self.url

    @functools.cached_property
    def admin_key(self) -> str:
        """An API key that may administer keys and nothing else; made when it is first asked for."""
        return str(self.create_key("--scope=keys:admin")["key"])

    def auth(self, key: str | None = None) -> dict[str, str]:
        """The Authorization header for a key; for the secret one when none is given."""
        return {"Authorization": f"Bearer {key or self.secret_key}"}

    def mint(self, *, key: str | None = None, origin: str | None = None, **asked: Any) -> dict[str, Any]:
        """A token as ``POST /token`` answers it; fails when it is refused."""
        headers = self.auth(key) | ({"Origin": origin} if origin else {})
        response = httpx.post(f"{self.url}/token", json=asked, headers=headers)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``broker …`` with this broker's settings."""
        return run_command(*arguments, environment=self.environment, **options)

    def create_key(self, *arguments: str) -> dict[str, Any]:
        """``broker keys create …``: everything it printed."""
        done = self.command("keys", "create", "--name", "test", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        created: dict[str, Any] = json.loads(done.stdout)
        return created

    def log_lines(self) -> list[dict[str, Any]]:
        """What it logged so far, parsed; a line that is no JSON fails."""
        lines: list[dict[str, Any]] = [
            json.loads(line)
            for line in self.log.read_text().splitlines(keepends=True)
            if line.endswith("\n")  # the last one may be half written
        ]
        return lines

    def record(self, request_id: str, seconds: float = 5.0) -> dict[str, Any]:
        """The log's record of one request, which is written once the request is over."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            for line in self.log_lines():
                if line.get("request_id") == request_id and line["event"] == "request":
                    return dict(line)
            time.sleep(0.02)
        raise AssertionError(f"no record of request {request_id}")

    def last_record(self, path: str, seconds: float = 5.0, **expected: Any) -> dict[str, Any]:
        """The newest record of a path with these values; for requests whose answer nobody got."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            for line in reversed(self.log_lines()):
                if line.get("path") == path and expected.items() <= line.items():
                    return dict(line)
            time.sleep(0.02)
        raise AssertionError(f"no record of {path} with {expected}")


def run_command(
    *arguments: str, environment: dict[str, str], timeout: float = 60, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``broker …`` to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def clean_environment() -> dict[str, str]:
    """This process's environment without what a developer may have set for a broker."""
    ours = (
        "COZE_",
        "BROKER_",
        "DATABASE_URL",
        "REDIS_URL",
        "HOST",
        "PORT",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "UPSTREAM_",
        "ENABLE_RATE_",
        "RATE_LIMIT_",
    )
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(ours)}


@contextmanager
def running_broker(folder: Path, coze_environment: dict[str, str], **settings: str) -> Iterator[Broker]:
    """A broker on a free port, with a secret key and a publishable one; ended at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **clean_environment(),
        **coze_environment,
        "HOST": "127.0.0.1",
        "PORT": "0",
        "BROKER_DATA_DIR": str(folder / "data"),
        "BROKER_ALLOWED_ORIGINS": PAGE_ORIGIN,
        "BROKER_LOG_FORMAT": "json",
        # Tests are many callers from one address; those of the limits set their own.
        "RATE_LIMIT_REQUESTS": "1000000",
        "BROKER_MAX_FAILED_CREDENTIALS": "1000000",
        "BROKER_UPSTREAM_UPLOADS_PER_SECOND": "0",
        # A Coze that fails one test is well in the next; those of its weather set their own.
        "BROKER_BREAKER_FAILURES": "0",
        "BROKER_UPSTREAM_PAUSE_SECONDS": "0",
        **settings,
    }
    log = folder / "broker.log"
    if environment.get("DATABASE_URL", "").startswith("postgres"):  # an operator's own to bring up to date
        migrated = run_command("migrate", environment=environment)
        assert migrated.returncode == 0, migrated.stderr
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, "serve"],
            env=environment,
            stderr=file,
            stdout=file,
            stdin=subprocess.DEVNULL,
            cwd=folder,
        )
    try:
        broker = Broker(_wait_until_ready(process, log), environment, process, log)
        scopes = ("token:mint", "files:upload", "files:read")
        broker.secret_key = broker.create_key(*(f"--scope={scope}" for scope in scopes))["key"]
        origins = (broker.origin, PAGE_ORIGIN)
        broker.publishable_key = broker.create_key(
            "--publishable", *(f"--origin={origin}" for origin in origins)
        )["key"]
        _running.append(broker)
        yield broker
    finally:
        _running[:] = [other for other in _running if other.process is not process]
        stop(process)


def running() -> list[Broker]:
    """Every broker that ``running_broker`` started and that still runs."""
    return [broker for broker in _running if broker.process.poll() is None]


def stop(process: subprocess.Popen[bytes], seconds: float = 15.0) -> int:
    """Ask a process to stop, and make it when it does not; its return code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        url = _listening_url(log)
        if url:
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    return url
            except httpx.HTTPError:
                pass
        time.sleep(0.02)
    raise AssertionError(f"the broker did not start:\n{log.read_text()}")


def _listening_url(log: Path) -> str | None:
    for line in log.read_text().splitlines():
        if '"event": "listening"' in line:
            return str(json.loads(line)["url"])
    return None
