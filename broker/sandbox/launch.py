"""Starts the sandbox as a process of its own and waits until it listens."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from broker.sandbox.credentials import AppCredentials, Credentials
from broker.sandbox.serve import RunningSandbox

STOP_TIMEOUT_SECONDS = 5


@dataclass(frozen=True)
class SandboxProcess(RunningSandbox):
    """`environment` is what a broker needs for it; the key files live as long as the process."""

    environment: dict[str, str]
    pid: int


@contextlib.contextmanager
def in_subprocess(*arguments: str) -> Iterator[SandboxProcess]:
    """A sandbox on a free port; `arguments` are further ones of `python -m broker.sandbox`."""
    command = [sys.executable, "-m", "broker.sandbox", "--port", "0", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own command
        try:
            yield _ready(process)
        finally:
            _stop(process)


def _ready(process: subprocess.Popen[str]) -> SandboxProcess:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise RuntimeError(f"the sandbox ended with status {process.wait()} before it listened")
    report = json.loads(line)
    credentials = _credentials(report["credentials"])
    return SandboxProcess(report["base_url"], credentials, report["environment"], process.pid)


def _credentials(values: dict[str, Any]) -> Credentials:
    return Credentials(
        api_token=values["api_token"],
        server_app=AppCredentials(**values["server_app"]),
        browser_app=AppCredentials(**values["browser_app"]),
    )


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
