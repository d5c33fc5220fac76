"""The rows: what is measured, against what, and the goal. Ratios of one run; absolute figures drift."""

from __future__ import annotations

import asyncio
import gzip
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import servers
from tests.bench.load import SlowUploads, Target, ask_many, upload_many, upload_one
from tests.bench.servers import MIB, Server

SLOW_UPLOADS = 500
HELPER = Path(__file__).parents[2] / "web" / "static" / "upload-to-coze.js"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    large_bytes: int
    uploads: int
    small_uploads: int
    requests: int

    @classmethod
    def full(cls) -> Size:
        return cls(large_bytes=500 * MIB, uploads=1000, small_uploads=300, requests=3000)

    @classmethod
    def quick(cls) -> Size:
        return cls(large_bytes=200 * MIB, uploads=300, small_uploads=100, requests=800)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    number: str
    figure: str
    measured: str
    goal: str
    reached: bool
    value: float


def measure(folder: Path, size: Size) -> list[Row]:
    """Every row, in one run."""
    with servers.sink() as sink_port, servers.nginx(folder / "nginx", sink_port) as nginx:
        return [
            *_streaming(folder, sink_port, nginx, size),
            *_many(folder, sink_port, nginx, size),
            *_waiting(folder, sink_port, size),
            _responsive(folder, sink_port, size),
            _start(folder, sink_port),
            _helper(),
        ]


def _streaming(folder: Path, sink_port: int, nginx: Server, size: Size) -> Iterator[Row]:
    """P1, P2, P3a: one large file after another."""
    with (
        servers.naive(sink_port) as naive,
        servers.broker(folder / "large", sink_port) as (broker, _),
    ):
        for server in (nginx, naive, broker):
            upload_one(server.target, MIB)
        cpu = {server.name: _cpu_per_gib(server, size.large_bytes) for server in (nginx, broker, naive)}
        with broker.watched() as watch:
            upload_one(broker.target, size.large_bytes)
    per_gib = f"{cpu['broker']:.2f} s/GiB against"
    ratio = cpu["broker"] / cpu["nginx"]
    yield Row(
        "P1",
        "CPU per GiB, against nginx",
        f"{ratio:.2f} ({per_gib} {cpu['nginx']:.2f})",
        "≤ 2.0",
        ratio <= 2,
        ratio,
    )
    ratio = cpu["broker"] / cpu[naive.name]
    yield Row(
        "P2",
        "CPU per GiB, against UploadFile + httpx",
        f"{ratio:.2f} ({per_gib} {cpu[naive.name]:.2f})",
        "≤ 0.2",
        ratio <= 0.2,
        ratio,
    )
    over = watch.memory_over_idle_bytes / MIB
    yield Row("P3", "memory over idle, one large upload", f"{over:.1f} MiB", "≤ 8 MB", over <= 8, over)


def _cpu_per_gib(server: Server, size: int) -> float:
    """The least of three runs: whatever else the machine does only adds."""
    used = []
    for _ in range(3):
        with server.watched() as watch:
            upload_one(server.target, size)
        used.append(watch.cpu_seconds)
    return min(used) / (size / 2**30)


def _many(folder: Path, sink_port: int, nginx: Server, size: Size) -> Iterator[Row]:
    """P3b, P4: many uploads of 1 MiB at once."""
    many = {"BROKER_MAX_UPSTREAM_CONNECTIONS": "64", "BROKER_POOL_WAIT_SECONDS": "60"}
    with servers.broker(folder / "many", sink_port, **many) as (broker, _):
        upload_one(broker.target, MIB)
        rates = {}
        for server in (nginx, broker):
            with server.watched() as watch:
                outcome = asyncio.run(
                    upload_many(server.target, count=size.uploads, size=MIB, at_once=size.uploads)
                )
            rates[server.name] = outcome.ok / outcome.seconds
    over = watch.memory_over_idle_bytes / MIB
    yield Row(
        "P3",
        f"memory over idle, {size.uploads} uploads at once",
        f"{over:.0f} MiB",
        "≤ 128 MB",
        over <= 128,
        over,
    )
    ratio = rates["broker"] / rates["nginx"]
    figure = (
        f"{ratio:.2f} ({rates['broker']:.0f} MiB/s against {rates['nginx']:.0f}), {outcome.failed} failed"
    )
    yield Row(
        "P4",
        f"throughput of {size.uploads} uploads of 1 MiB at once, against nginx",
        figure,
        "≥ 0.5, none failed",
        ratio >= 0.5 and not outcome.failed,
        ratio,
    )


def _waiting(folder: Path, sink_port: int, size: Size) -> Iterator[Row]:
    """P6: what the broker adds between the last byte and the answer."""
    with servers.broker(folder / "waiting", sink_port) as (broker, _):
        direct = Target("127.0.0.1", sink_port, "/v1/files/upload")
        waits = {}
        for name, target in (("direct", direct), ("broker", broker.target)):
            outcome = asyncio.run(upload_many(target, count=size.small_uploads, size=MIB, at_once=1))
            waits[name] = sorted(outcome.waits)
    p50, p99 = (_quantile(waits["broker"], q) - _quantile(waits["direct"], q) for q in (0.5, 0.99))
    figure = f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"
    yield Row(
        "P6",
        "added from last byte to answer",
        figure,
        "p50 ≤ 3 ms, p99 ≤ 15 ms",
        p50 <= 0.003 and p99 <= 0.015,
        p50,
    )


def _responsive(folder: Path, sink_port: int, size: Size) -> Row:
    """P7: tokens while many slow uploads run."""
    settings = {"BROKER_MAX_UPSTREAM_CONNECTIONS": "600"}
    with servers.broker(folder / "responsive", sink_port, **settings) as (broker, key):
        token = Target("127.0.0.1", broker.target.port, "/token", key)
        idle, busy = asyncio.run(_ask_idle_and_busy(broker.target, token, size))
    figure = f"{busy * 1000:.1f} ms ({busy / idle:.1f} × idle)"
    name = f"p99 of POST /token while {SLOW_UPLOADS} slow uploads run"
    return Row("P7", name, figure, "≤ 50 ms, ≤ 3 × idle", busy <= 0.05 and busy <= 3 * idle, busy)


async def _ask_idle_and_busy(uploads: Target, token: Target, size: Size) -> tuple[float, float]:
    body = b'{"size": 1000, "route": "proxy"}'
    await ask_many(token, body, count=100)
    idle = sorted(await ask_many(token, body, count=size.requests))
    async with SlowUploads(uploads, count=SLOW_UPLOADS, bytes_per_second=50_000):
        await asyncio.sleep(1)
        busy = sorted(await ask_many(token, body, count=size.requests))
    return _quantile(idle, 0.99), _quantile(busy, 0.99)


def _start(folder: Path, sink_port: int) -> Row:
    """P8: from start to ready, the second time: the first makes the database."""
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        with servers.bare_broker(folder / "start", sink_port):
            seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds[1:])
    return Row("P8", "`broker serve` from start to ready", f"{median:.2f} s", "≤ 1 s", median <= 1, median)


def _helper() -> Row:
    size = len(gzip.compress(HELPER.read_bytes(), 9))
    return Row("P9", "the helper, gzipped", f"{size} bytes", "≤ 4 KB", size <= 4096, size)


def _quantile(values: list[float], q: float) -> float:
    return values[min(len(values) - 1, int(len(values) * q))]
