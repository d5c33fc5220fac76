"""Uploads to a server, bounded in count and time: raw sockets, prepared bytes, so that they cost little."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any, cast

from tests.bench.table import MIB

BOUNDARY = b"bench-7d1f0c6f2f5c4a9e"
END = b"\r\n--%b--\r\n" % BOUNDARY
PIECE = bytes(range(256)) * 4096  # 1 MiB
SMALL_PIECE = 65_536
UPLOAD_SECONDS = 120.0
STEPS_PER_SECOND = 10
GROUPS = 100


class LoadError(Exception):
    """A server that is measured did not do its work; the message says which, and what it did."""


@dataclass(frozen=True)
class Target:
    """Where to send, and as whom."""

    host: str
    port: int
    path: str
    authorization: str = ""

    def head(self, content_type: str, content_length: int) -> bytes:
        """A request's head."""
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Content-Type: {content_type}",
            f"Content-Length: {content_length}",
            *([f"Authorization: Bearer {self.authorization}"] if self.authorization else []),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def form_head(self, size: int) -> bytes:
        """Everything before the first byte of a file of this size."""
        form = (
            b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n" % BOUNDARY
        )
        content_type = f"multipart/form-data; boundary={BOUNDARY.decode()}"
        return self.head(content_type, len(form) + size + len(END)) + form


@dataclass(frozen=True)
class Uploaded:
    """How one upload went. Times in seconds."""

    waited: float
    """From its last byte to the first of its answer."""
    answer: dict[str, Any]


def upload_one(target: Target, size: int) -> Uploaded:
    """Send one file through a blocking socket. Raises :class:`LoadError` when it is not taken."""
    with socket.create_connection((target.host, target.port), UPLOAD_SECONDS) as connection:
        connection.sendall(target.form_head(size))
        for left in range(size, 0, -len(PIECE)):
            connection.sendall(PIECE if left >= len(PIECE) else PIECE[:left])
        connection.sendall(END)
        sent_at = time.perf_counter()
        connection.recv(1, socket.MSG_PEEK)
        waited = time.perf_counter() - sent_at
        return Uploaded(waited, _answer_of(connection, target))


def _answer_of(connection: socket.socket, target: Target) -> dict[str, Any]:
    response = HTTPResponse(connection)
    try:
        response.begin()
        content = response.read()
    except HTTPException as error:
        raise LoadError(f"{target}: no answer to an upload ({error!r})") from error
    if response.status != 200:
        raise LoadError(f"{target}: an upload was answered {response.status} {content[:300]!r}")
    return cast(dict[str, Any], json.loads(content))


@dataclass(frozen=True)
class Outcome:
    """What came of many uploads."""

    ok: int
    failed: int
    seconds: float

    @property
    def mib_per_second(self) -> float:
        return self.ok / self.seconds


async def upload_many(target: Target, count: int) -> Outcome:
    """``count`` uploads of 1 MiB, all at once, each on a connection of its own."""
    pieces = [target.form_head(MIB), *[PIECE[:SMALL_PIECE]] * (MIB // SMALL_PIECE), END]
    start = time.perf_counter()
    taken = await asyncio.gather(*(_is_taken(target, pieces) for _ in range(count)))
    return Outcome(sum(taken), count - sum(taken), time.perf_counter() - start)


async def _is_taken(target: Target, pieces: list[bytes]) -> bool:
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            reader, writer = await asyncio.open_connection(target.host, target.port)
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except OSError:  # a TimeoutError is one, too
        return False


class SlowUploads:
    """Uploads that trickle at a steady rate until the end of ``async with``.

    Raises :class:`LoadError` there when any of them ended before: then there were fewer than was said.
    """

    def __init__(self, target: Target, *, count: int, bytes_per_second: int) -> None:
        self._target = target
        self._count = count
        self._step = PIECE[: bytes_per_second // STEPS_PER_SECOND]
        self._uploads: list[_SlowUpload] = []

    async def __aenter__(self) -> SlowUploads:
        head, loop = self._target.form_head(500 * MIB), asyncio.get_running_loop()
        for _ in range(self._count):
            transport, upload = await loop.create_connection(
                _SlowUpload, self._target.host, self._target.port
            )
            transport.write(head)
            self._uploads.append(upload)
        self._task = asyncio.create_task(self._trickle())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        ended = sum(upload.has_ended for upload in self._uploads)
        for upload in self._uploads:
            upload.transport.abort()
        if ended:
            raise LoadError(f"{ended} of {self._count} slow uploads ended before their time")

    async def _trickle(self) -> None:
        """Each of them once in a step, one after the other: callers don't send in time with each other."""
        groups = [self._uploads[start::GROUPS] for start in range(GROUPS)]
        while True:
            for group in groups:
                for upload in group:
                    upload.transport.write(self._step)
                await asyncio.sleep(1 / STEPS_PER_SECOND / GROUPS)


class _SlowUpload(asyncio.Protocol):
    has_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, _: bytes) -> None:
        self.has_ended = True

    def connection_lost(self, _: Exception | None) -> None:
        self.has_ended = True
