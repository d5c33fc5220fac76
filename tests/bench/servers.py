"""The programs side by side: each a process of its own on loopback, measured from outside."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.bench.load import Target
from tests.support.broker_process import clean_environment, running_broker

MIB = 1024 * 1024
SAMPLE_SECONDS = 0.01
START_SECONDS = 20.0

NGINX = """
worker_processes 1; daemon off; error_log {folder}/error.log; pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off; client_max_body_size 0; keepalive_requests 100000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    client_body_buffer_size 64k;
    upstream sink {{ server 127.0.0.1:{sink_port}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://sink/v1/files/upload; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_request_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Server:
    """A program that takes uploads, and the process that does the work."""

    name: str
    target: Target
    pid: int

    def cpu_seconds(self) -> float:
        """What it used of the CPU so far, its children included."""
        return sum(_cpu_seconds(process) for process in self._processes())

    def memory_bytes(self) -> int:
        """What it holds in memory now."""
        return sum(process.memory_info().rss for process in self._processes())

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        """The CPU it uses and the most memory it holds while the block runs."""
        watch = Watch(self)
        try:
            yield watch
        finally:
            watch.stop()

    def _processes(self) -> list[psutil.Process]:
        main = psutil.Process(self.pid)
        return [main, *main.children(recursive=True)]


class Watch:
    """Looks at a server every few milliseconds, from a thread of its own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._cpu_before = server.cpu_seconds()
        self._idle = server.memory_bytes()
        self._peak = self._idle
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        self.cpu_seconds = 0.0

    @property
    def memory_over_idle_bytes(self) -> int:
        """The most it held, over what it held when the watch began."""
        return self._peak - self._idle

    def stop(self) -> None:
        """Read the meters a last time."""
        self._stop.set()
        self._thread.join()
        self.cpu_seconds = self._server.cpu_seconds() - self._cpu_before

    def _look(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self._server.memory_bytes())


@contextmanager
def sink() -> Iterator[int]:
    """The upstream; gives its port."""
    port = free_port()
    with _process([sys.executable, "-m", "tests.bench.sink", str(port)], port):
        yield port


@contextmanager
def nginx(folder: Path, sink_port: int) -> Iterator[Server]:
    """nginx, streaming. Fails loudly where there is none."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise SystemExit(
            "The benchmark measures against nginx, and there is none. Install it (apt install nginx)."
        )
    folder.mkdir()
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, sink_port=sink_port))
    with _process([program, "-c", str(config), "-p", str(folder)], port) as process:
        yield Server("nginx", Target("127.0.0.1", port, "/proxy/upload"), process.pid)


@contextmanager
def naive(sink_port: int) -> Iterator[Server]:
    """``UploadFile`` and httpx."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.naive", str(port), f"http://127.0.0.1:{sink_port}"]
    with _process(command, port) as process:
        yield Server("UploadFile + httpx", Target("127.0.0.1", port, "/proxy/upload"), process.pid)


@contextmanager
def broker(folder: Path, sink_port: int, **settings: str) -> Iterator[tuple[Server, str]]:
    """The broker as it is installed, in front of the sink; with an API key for everything."""
    coze = {"COZE_API_BASE": f"http://127.0.0.1:{sink_port}", "COZE_API_TOKEN": "pat_for_the_benchmark"}
    settings = {"BROKER_FILE_TYPES": "*", **settings}
    with running_broker(folder, coze, **settings) as running:
        port = int(running.url.rpartition(":")[2])
        target = Target("127.0.0.1", port, "/proxy/upload", running.secret_key)
        yield Server("broker", target, running.process.pid), running.secret_key


@contextmanager
def bare_broker(folder: Path, sink_port: int) -> Iterator[None]:
    """Nothing but ``broker serve``, until it is ready."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    environment = clean_environment() | {
        "COZE_API_BASE": f"http://127.0.0.1:{sink_port}",
        "COZE_API_TOKEN": "pat_for_the_benchmark",
        "PORT": str(port),
        "BROKER_DATA_DIR": str(folder),
    }
    command = [sys.executable, "-m", "broker", "serve"]
    with _process(command, port, environment, stderr=subprocess.DEVNULL):
        while httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code != 200:
            time.sleep(0.01)
        yield


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": sys.version.split()[0],
        "system": os.uname().sysname,
    }


def write_json(path: Path, value: object) -> None:
    """Write ``value`` so that a diff of two runs can be read."""
    path.write_text(json.dumps(value, indent=2) + "\n")


@contextmanager
def _process(
    command: list[str], port: int, environment: dict[str, str] | None = None, stderr: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=stderr)
    try:
        _wait_for(process, port)
        yield process
    finally:
        process.terminate()
        process.wait(15)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit(f"{process.args!r} did not start")


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
