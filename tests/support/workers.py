"""A broker of several worker processes, and the Redis that they need."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from tests.support import needs
from tests.support.broker_process import Broker, running_broker, stop
from tests.support.waiting import wait_for


@contextmanager
def running_workers(
    folder: Path, coze_environment: dict[str, str], workers: int = 2, **settings: str
) -> Iterator[Broker]:
    """A broker of so many workers; its ``process`` is the one that looks after them."""
    with (
        running_redis(folder / "redis") as redis_url,
        running_broker(
            folder, coze_environment, BROKER_WORKERS=str(workers), **{"REDIS_URL": redis_url, **settings}
        ) as broker,
    ):
        yield broker


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """A Redis server of its own on a free port; gives its URL."""
    folder.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([needs.executable("redis-server", "valkey-server"), *options], stdout=log)
    try:
        wait_for(lambda: _listens(port))
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        stop(process)


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def worker_pids(broker: Broker) -> list[int]:
    """The processes that serve, the oldest first."""
    return [child.pid for child in psutil.Process(broker.process.pid).children()]


def pid_of(broker: Broker, request_id: str) -> int:
    """Which worker served a request."""
    return int(broker.record(request_id)["pid"])


@contextmanager
def served_by(broker: Broker, pid: int) -> Iterator[httpx.Client]:
    """A client whose connection that worker took: it stays there as long as it is kept alive."""
    for _ in range(500):
        with httpx.Client(base_url=broker.url, timeout=30, headers=broker.auth()) as client:
            answer = client.get("/health")
            if pid_of(broker, answer.headers["x-request-id"]) == pid:
                yield client
                return
    raise AssertionError(f"worker {pid} took none of 500 connections")
