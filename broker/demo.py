"""The demo: a sandbox Coze, the broker and its page on this machine, and one file by each route.

The parts are processes of their own, set up the way an operator would set them up.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from broker.uploader import BrokerClient, UploadFailedError

BROKER_PORT = 2026
SANDBOX_PORT = 2027
START_SECONDS = 20.0
STOP_SECONDS = 10.0
INTERRUPTED = 130
LARGE_BYTES = 12_000_000
# The smallest picture there is: one transparent pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)

out = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """The demo can't go on; the message is for a person."""


def run(*, check: bool) -> int:
    """Start everything, upload by both routes, serve the page until interrupted (or leave, with ``check``).

    Returns the exit code: 0 when both uploads worked, 130 when a ``check`` was interrupted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="broker-demo-")))
            return _run(stack, folder, check=check)
    except DemoError as error:
        Console(stderr=True).print(f"The demo failed: {error}", style="red", highlight=False, markup=False)
        return 1
    except KeyboardInterrupt:
        out.print("\nStopped.")
        return INTERRUPTED if check else 0


def _run(stack: ExitStack, folder: Path, *, check: bool) -> int:
    coze, url, key = _started(stack, folder, [(0, 0)] if check else [(SANDBOX_PORT, BROKER_PORT), (0, 0)])
    out.print(f"[bold]Sandbox Coze[/bold]  {coze['base_url']}")
    out.print(f"[bold]Broker[/bold]        {url}  (documentation: {url}/docs)")
    _upload_both(folder, BrokerClient(url, key, origin=url))
    if not check:
        out.print(f"\nOpen [bold]{url}[/bold] and drop a file on the page. Ctrl-C stops everything.")
        signal.pause()
    return 0


def _started(stack: ExitStack, folder: Path, ports: list[tuple[int, int]]) -> tuple[dict[str, Any], str, str]:
    """Sandbox and broker, running, on the first of these pairs of ports that is to be had.

    Another program may take a port between the look at it and its use; a second demo does.
    """
    for number, (sandbox_port, broker_port) in enumerate(ports, start=1):
        try:
            with ExitStack() as attempt:
                started = _start(attempt, folder / str(number), sandbox_port, broker_port)
                stack.push(attempt.pop_all())
                return started
        except DemoError:
            if number == len(ports):
                raise
    raise AssertionError("no ports were given")


def _start(
    stack: ExitStack, folder: Path, sandbox_port: int, broker_port: int
) -> tuple[dict[str, Any], str, str]:
    folder.mkdir()
    coze = stack.enter_context(_sandbox(folder, _free_port(sandbox_port)))
    url = f"http://127.0.0.1:{_free_port(broker_port)}"
    environment = _environment(folder, coze, url)
    key = _publishable_key(environment, url)
    stack.enter_context(_broker(environment | {"BROKER_PAGE_PUBLISHABLE_KEY": key}, url))
    return coze, url, key


def _upload_both(folder: Path, client: BrokerClient) -> None:
    small, large = folder / "small.png", folder / "large.csv"
    small.write_bytes(PNG)
    large.write_bytes((b"row,value\n" + b"1,2\n" * 1024) * (LARGE_BYTES // 4106 + 1))
    for path, route in ((small, "direct"), (large, "proxy")):
        try:
            done = client.upload_by_token(path)
        except UploadFailedError as error:
            raise DemoError(f"{path.name}: {error}") from error
        if done["route"] != route:
            raise DemoError(f"{path.name} went by {done['route']} ({done['reason']}), not by {route}")
        out.print(
            f"{route:>6}  {path.name} ({path.stat().st_size:,} bytes)  file_id [bold]{done['file_id']}[/bold]"
        )


@contextmanager
def _sandbox(folder: Path, port: int) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "broker.sandbox", "--port", str(port), "--json"]
    command += ["--credentials-dir", str(folder / "sandbox")]
    with _process(command, dict(os.environ), cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        line = process.stdout.readline()
        if not line:
            raise DemoError("the sandbox Coze did not start")
        yield json.loads(line)


@contextmanager
def _broker(environment: dict[str, str], url: str) -> Iterator[None]:
    folder = Path(environment["BROKER_DATA_DIR"])
    log = folder / "broker.log"
    with (
        log.open("wb") as file,
        _process([*_BROKER, "serve"], environment, cwd=folder, stderr=file) as process,
    ):
        _wait_until_ready(process, url, log)
        yield


_BROKER = (sys.executable, "-m", "broker")


@contextmanager
def _process(
    command: list[str], environment: dict[str, str], *, cwd: Path, **pipes: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is asked to stop at the end, and made to if it does not.

    It works in a folder of the demo's: a ``.env`` where the demo was called is an operator's, and not
    meant for it.
    """
    process = subprocess.Popen(command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, **pipes)  # noqa: S603 - our own
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Not to be interrupted: whoever presses Ctrl-C twice must not leave a process behind."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment(folder: Path, coze: dict[str, Any], url: str) -> dict[str, str]:
    """The settings an operator would write, and nothing of what this shell happens to have set."""
    ours = ("COZE_", "BROKER_", "DATABASE_URL", "REDIS_URL", "HOST", "PORT")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(ours)}
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    of_coze: dict[str, str] = coze["environment"]
    return (
        kept
        | of_coze
        | {
            "HOST": "127.0.0.1",
            "PORT": url.rpartition(":")[2],
            "BROKER_DATA_DIR": str(data_dir),
            "BROKER_KEY_PEPPER": secrets.token_hex(32),
            "BROKER_LOG_FORMAT": "json",
        }
    )


def _publishable_key(environment: dict[str, str], origin: str) -> str:
    command = [
        *_BROKER,
        "keys",
        "create",
        "--name",
        "demo page",
        "--publishable",
        "--origin",
        origin,
        "--json",
    ]
    folder = environment["BROKER_DATA_DIR"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, check=False)  # noqa: S603 - our own
    if done.returncode != 0:
        raise DemoError(f"no key could be made: {done.stderr.decode().strip()}")
    return str(json.loads(done.stdout)["key"])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        try:
            if httpx.get(f"{url}/ready", trust_env=False).status_code == 200:  # noqa: PLR2004 - HTTP's own
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise DemoError(f"the broker did not start:\n{log.read_text(errors='replace')}")


def _free_port(wanted: int) -> int:
    """``wanted`` if it is free, else any that is."""
    for port in (wanted, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as listener:
                return int(listener.getsockname()[1])
        except OSError:
            continue
    raise DemoError("no port is free")
