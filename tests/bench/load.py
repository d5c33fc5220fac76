"""Load on a server, bounded in count: raw sockets and prepared bytes, so that it costs little itself."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass

BOUNDARY = b"bench-7d1f0c6f2f5c4a9e"
PIECE = bytes(range(256)) * 4096  # 1 MiB
ANSWER_SECONDS = 120.0
STEPS_PER_SECOND = 10
GROUPS = 20


@dataclass(frozen=True)
class Target:
    """Where to send, and as whom."""

    host: str
    port: int
    path: str
    authorization: str = ""

    def head(self, size: int) -> bytes:
        """Everything before the first byte of a file of this size."""
        form = (
            b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n" % BOUNDARY
        )
        length = len(form) + size + len(END)
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}",
            f"Content-Length: {length}",
            *([f"Authorization: Bearer {self.authorization}"] if self.authorization else []),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + form


END = b"\r\n--%b--\r\n" % BOUNDARY


@dataclass(frozen=True)
class Outcome:
    """What came of many uploads. Times in seconds."""

    ok: int
    failed: int
    seconds: float
    waits: list[float]
    """From each upload's last byte to its answer."""


def upload_one(target: Target, size: int) -> float:
    """Send one file through a blocking socket; the seconds from its last byte to its answer."""
    with socket.create_connection((target.host, target.port)) as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall(target.head(size))
        left = size
        while left:
            piece = PIECE if left >= len(PIECE) else PIECE[:left]
            connection.sendall(piece)
            left -= len(piece)
        connection.sendall(END)
        sent_at = time.perf_counter()
        status = connection.recv(65536)
        waited = time.perf_counter() - sent_at
    if b" 200 " not in status[:16]:
        raise RuntimeError(f"upload failed: {status[:300]!r}")
    return waited


async def upload_many(target: Target, *, count: int, size: int, at_once: int) -> Outcome:
    """``count`` uploads, ``at_once`` of them at a time, each on a connection of its own."""
    body = [target.head(size), *_pieces(size), END]
    gate, waits, failed = asyncio.Semaphore(at_once), [], 0
    start = time.perf_counter()

    async def one() -> None:
        nonlocal failed
        async with gate:
            try:
                waits.append(await _send(target, body))
            except (OSError, RuntimeError, asyncio.IncompleteReadError):
                failed += 1

    await asyncio.gather(*(one() for _ in range(count)))
    return Outcome(len(waits), failed, time.perf_counter() - start, waits)


async def _send(target: Target, body: list[bytes]) -> float:
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        for piece in body:
            writer.write(piece)
            await writer.drain()
        sent_at = time.perf_counter()
        status = await asyncio.wait_for(reader.readline(), ANSWER_SECONDS)
        if b" 200 " not in status:
            raise RuntimeError(status.decode())
        return time.perf_counter() - sent_at
    finally:
        writer.close()


def _pieces(size: int) -> list[bytes]:
    whole, rest = divmod(size, 65_536)
    return [PIECE[:65_536]] * whole + ([PIECE[:rest]] if rest else [])


class SlowUploads:
    """Uploads that trickle at a steady rate until they are told to stop. ``async with`` it."""

    def __init__(self, target: Target, *, count: int, bytes_per_second: int) -> None:
        self._target = target
        self._count = count
        self._step = bytes_per_second // STEPS_PER_SECOND
        self._writers: list[asyncio.StreamWriter] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SlowUploads:
        head = self._target.head(500 * len(PIECE))
        for _ in range(self._count):
            _, writer = await asyncio.open_connection(self._target.host, self._target.port)
            writer.write(head)
            self._writers.append(writer)
        self._task = asyncio.create_task(self._trickle())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            self._task.cancel()
        for writer in self._writers:
            writer.close()

    async def _trickle(self) -> None:
        """Each of them once in a step, one after the other: callers don't send in time with each other."""
        groups = [self._writers[start::GROUPS] for start in range(GROUPS)]
        while True:
            for group in groups:
                for writer in group:
                    writer.write(PIECE[: self._step])
                await asyncio.sleep(1 / STEPS_PER_SECOND / GROUPS)


async def ask_many(target: Target, body: bytes, *, count: int) -> list[float]:
    """One small JSON request after another on one connection; the seconds of each."""
    head = "\r\n".join(
        [
            f"POST {target.path} HTTP/1.1",
            f"Host: {target.host}:{target.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *([f"Authorization: Bearer {target.authorization}"] if target.authorization else []),
        ]
    )
    request, seconds = head.encode() + b"\r\n\r\n" + body, []
    reader, writer = await asyncio.open_connection(target.host, target.port)
    for _ in range(count):
        start = time.perf_counter()
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        seconds.append(time.perf_counter() - start)
        if b" 200 " not in answer[:16]:
            raise RuntimeError(answer.decode())
    writer.close()
    return seconds
