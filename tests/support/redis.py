"""A Redis server that the tests start themselves, and what can befall one."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import redis as client

from broker.errors import StoreUnavailable
from broker.state.redis import Redis
from tests.support import needs

START_SECONDS = 10.0
BACK_SECONDS = 5.0
"""In which a broker uses a server again that is well."""


class RedisServer:
    """A server on a free port of loopback. What it is told here is undone by ``heal``."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._program = needs.executable("redis-server", "valkey-server")
        self._options = options
        self.folder = folder
        self.password: str | None = None
        """What ``command`` has to say first, once a test shut the server."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.folder}/redis.sock"

    def start(self, *options: str) -> None:
        """Start it, on the port that it always has; it keeps nothing of before unless it saved it."""
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        paths = ["--dir", str(self.folder), "--unixsocket", str(self.folder / "redis.sock")]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([*command, *paths, *self._options, *options], stdout=log)
        give_up = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._is_running, self._log()
            assert time.monotonic() < give_up, self._log()
            time.sleep(0.01)

    def command(self, *words: str) -> object:
        """What the server answers."""
        with self._client() as connection:
            return connection.execute_command(*words)

    def connections(self) -> int:
        """How many clients it has, beside the one that asks."""
        with self._client() as connection:
            return len(connection.client_list()) - 1

    def pause(self) -> None:
        """From now on it takes connections, which its kernel does for it, and never answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def refuse_writes(self) -> None:
        """Read-only, as a replica of a primary that is gone."""
        self.command("REPLICAOF", "127.0.0.1", "1")

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def restart(self) -> None:
        """End it and start it again, with nothing of before."""
        self.kill()
        self.start()

    def heal(self) -> None:
        """Running, writable and empty, whatever a test did to it."""
        if not self._is_running:
            self.start()
        self.resume()
        self.command("REPLICAOF", "NO", "ONE")
        for name, value in (("min-replicas-to-write", "0"), ("maxmemory", "0"), ("requirepass", "")):
            self.command("CONFIG", "SET", name, value)
        self.password = None
        self.command("FLUSHALL")

    @property
    def _is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def _log(self) -> str:
        return (self.folder / "redis.log").read_text()

    def _client(self) -> client.Redis:
        return client.Redis(port=self.port, password=self.password, decode_responses=True)

    def _answers(self) -> bool:
        try:
            return bool(self.command("PING"))
        except client.ConnectionError:
            return False


@contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """A server of one test's own, started with these options."""
    folder = Path(tempfile.mkdtemp(prefix="broker-redis-"))  # a socket's path must be short
    server = RedisServer(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def session_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis_server(session_redis: RedisServer) -> Iterator[RedisServer]:
    """A server that is empty and well, before and after."""
    session_redis.heal()
    yield session_redis
    session_redis.heal()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A process's connection to ``redis_server``."""
    async with opened(redis_server.url) as redis:
        yield redis


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Redis]:
    """A process's connection to the server at ``url``."""
    redis = Redis(url)
    await redis.open()
    try:
        yield redis
    finally:
        await redis.close()


async def until_back(redis: Redis) -> None:
    """Wait until a server that is well is used again."""
    give_up = time.monotonic() + BACK_SECONDS
    while True:
        try:
            return await redis.ping()
        except StoreUnavailable:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.02)
