"""The programs side by side: each a process of its own on loopback, measured from outside."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.bench.load import Target
from tests.support.broker_process import clean_environment, running_broker, stop
from tests.support.databases import new_database, running_postgresql
from tests.support.redis import running_redis

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


@contextmanager
def sink() -> Iterator[int]:
    """The upstream; gives its port."""
    port = free_port()
    with _process([sys.executable, "-m", "tests.bench.sink", str(port)], port):
        yield port


@contextmanager
def nginx(folder: Path, sink_port: int) -> Iterator[Server]:
    """nginx, streaming. Fails loudly where there is none."""
    program = _nginx()
    folder.mkdir()
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, sink_port=sink_port))
    with _process([program, "-c", str(config), "-p", str(folder)], port) as process:
        yield Server("nginx", Target("127.0.0.1", port, "/proxy/upload"), process.pid)


def _nginx() -> str:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise SystemExit(
            "The benchmark measures against nginx, and there is none. Install it (apt install nginx)."
        )
    return program


@contextmanager
def naive(sink_port: int) -> Iterator[Server]:
    """``UploadFile`` and httpx; a bare JSON route beside it."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.naive", str(port), f"http://127.0.0.1:{sink_port}"]
    with _process(command, port) as process:
        yield Server("UploadFile + httpx", Target("127.0.0.1", port, "/proxy/upload"), process.pid)


@contextmanager
def broker(folder: Path, sink_port: int, **settings: str) -> Iterator[Server]:
    """The broker as it is installed, in front of the sink; with an API key for everything."""
    with running_broker(folder, _coze(sink_port), **settings) as running:
        port = int(running.url.rpartition(":")[2])
        target = Target("127.0.0.1", port, "/proxy/upload", running.secret_key)
        yield Server("broker", target, running.process.pid)


@contextmanager
def broker_with_redis(folder: Path, sink_port: int) -> Iterator[Server]:
    """The same as one of several would run: on PostgreSQL and Redis, on this machine."""
    with running_postgresql() as postgresql, running_redis() as redis:
        stores = {"DATABASE_URL": new_database(postgresql), "REDIS_URL": redis.url}
        with broker(folder, sink_port, **stores) as server:
            yield server


@contextmanager
def unhashed_broker(folder: Path, sink_port: int, key: str) -> Iterator[Server]:
    """The broker without sha256, on the data of the one in ``folder``: whose key is good for both."""
    with _serving("tests.bench.unhashed", folder / "data", sink_port) as (port, pid):
        yield Server("broker without sha256", Target("127.0.0.1", port, "/proxy/upload", key), pid)


@contextmanager
def bare_broker(folder: Path, sink_port: int) -> Iterator[None]:
    """Nothing but ``broker serve``, until it is ready."""
    with _serving("broker", folder, sink_port, "serve"):
        yield


@contextmanager
def _serving(module: str, data: Path, sink_port: int, *arguments: str) -> Iterator[tuple[int, int]]:
    """A broker that is ready; gives its port and its process."""
    port = free_port()
    ours = {"PORT": str(port), "BROKER_DATA_DIR": str(data)}
    environment = clean_environment() | _coze(sink_port) | ours
    command = [sys.executable, "-m", module, *arguments]
    with _process(command, port, environment, log=data.with_suffix(".log")) as process:
        _wait_until_ready(port)
        yield port, process.pid


def _wait_until_ready(port: int) -> None:
    give_up = time.monotonic() + START_SECONDS
    while httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code != 200:
        if time.monotonic() > give_up:
            raise SystemExit("a broker listened, but did not get ready")
        time.sleep(0.01)


def _coze(sink_port: int) -> dict[str, str]:
    """What is sent is no file of any type, and faster than Coze would take it."""
    return {
        "COZE_API_BASE": f"http://127.0.0.1:{sink_port}",
        "COZE_API_TOKEN": "pat_for_the_benchmark",
        "BROKER_FILE_TYPES": "*",
        # Every limit is on, and none is reached.
        "BROKER_RATE_LIMIT_REQUESTS_PER_KEY": "1000000000",
        "BROKER_UPSTREAM_UPLOADS_PER_SECOND": "0",
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def machine() -> dict[str, object]:
    """What the figures were measured on, and with."""
    version = subprocess.run([_nginx(), "-v"], capture_output=True, text=True, check=True, timeout=10)
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "processor": _processor(),
        "system": os.uname().sysname,
        "python": sys.version.split()[0],
        "nginx": version.stderr.strip().rpartition(" ")[2],
    }


def _processor() -> str:
    models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return models[0] if models else os.uname().machine


@contextmanager
def _process(
    command: list[str], port: int, environment: dict[str, str] | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") if log else nullcontext() as errors:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=errors)
        try:
            _wait_for(process, port, log)
            yield process
        finally:
            stop(process)


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path | None) -> None:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    said = log.read_text()[-2000:] if log else ""
    raise SystemExit(f"{process.args!r} did not start. {said}")
