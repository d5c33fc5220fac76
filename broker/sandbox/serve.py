"""Runs the sandbox on a loopback address: as a command, or in a thread of the caller's process."""

import contextlib
import ipaddress
import json
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from broker.sandbox import config as configuration
from broker.sandbox.app import create_app
from broker.sandbox.config import SandboxConfig
from broker.sandbox.connection import ConnectionProtocol
from broker.sandbox.credentials import Credentials, generate

DEFAULT_PORT = 2027
BACKLOG = 1024
START_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class RunningSandbox:
    base_url: str
    credentials: Credentials


def run(
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    config_file: Path | None = None,
    credentials_dir: Path | None = None,
    as_json: bool = False,
) -> None:
    """Serve until interrupted. Without a config file, fresh credentials are made and printed once it listens.

    Without a directory the private keys lie in a temporary one, which goes when the sandbox stops.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        audience = audience_of(listener)
        if config_file is not None:
            config = configuration.load(config_file, audience=audience)
            report = _report(f"http://{audience}", None, None)
        else:
            config, credentials = generate(audience)
            directory = credentials_dir or Path(stack.enter_context(_temporary_directory()))
            report = _report(f"http://{audience}", credentials, credentials.write_keys(directory))
        _exit_on_sigterm()
        _Server(config, on_listening=lambda: _print(report, as_json=as_json)).run([listener])


@contextlib.contextmanager
def in_thread(**limits: Any) -> Iterator[RunningSandbox]:
    """A sandbox on a free port for the length of a `with`; `limits` are fields of `SandboxConfig`."""
    with listen("127.0.0.1", 0) as listener:
        config, credentials = generate(audience_of(listener))
        listening = threading.Event()
        server = _Server(replace(config, **limits), on_listening=listening.set)
        thread = threading.Thread(target=server.run, args=([listener],), name="sandbox", daemon=True)
        thread.start()
        try:
            if not listening.wait(START_TIMEOUT_SECONDS):
                raise RuntimeError("the sandbox did not start")
            yield RunningSandbox(f"http://{config.audience}", credentials)
        finally:
            server.should_exit = True
            thread.join()


def listen(host: str, port: int) -> socket.socket:
    """Bind first: the port that the system chose becomes part of the audience."""
    address = loopback_address(host)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET  # noqa: PLR2004 - IPv6
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def loopback_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Its control endpoints ask for no credential, so nothing but loopback will do."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if address.is_loopback:
            return address
    raise ValueError(f"the sandbox binds to a loopback address only, not to {host!r}")


def audience_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(uvicorn.Server):
    def __init__(self, config: SandboxConfig, *, on_listening: Callable[[], object]) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(config),
                http=ConnectionProtocol,
                loop="auto",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="warning",
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
            )
        )
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()


def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="coze-sandbox-")


def _report(
    base_url: str, credentials: Credentials | None, key_files: tuple[Path, Path] | None
) -> dict[str, Any]:
    if credentials is None or key_files is None:
        return {"base_url": base_url, "credentials": None, "environment": {"COZE_API_BASE": base_url}}
    environment = credentials.environment(base_url, key_files)
    return {"base_url": base_url, "credentials": asdict(credentials), "environment": environment}


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    lines = [f"{name}={value}" for name, value in report["environment"].items()]
    text = json.dumps(report) if as_json else "\n".join(lines)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _exit_on_sigterm() -> None:
    """uvicorn raises the signal again once it has stopped; an exit then lets `with` blocks clean up."""

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a handler is given
        sys.exit(0)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGINT, leave)
