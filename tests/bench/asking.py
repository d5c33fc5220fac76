"""Small JSON requests to a server: how long each takes, or how many of them a second brings."""

from __future__ import annotations

import asyncio
import re
import time
from typing import cast

from tests.bench.load import LoadError, Target

ASK_SECONDS = 60.0
CONNECTIONS = 16
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


async def seconds_each(target: Target, body: bytes, *, count: int) -> list[float]:
    """One request after another on one connection; the seconds of each.

    Raises :class:`LoadError` when one is refused.
    """
    async with asyncio.timeout(ASK_SECONDS):
        asker = await _connect(target, body)
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            await asker.ask()
            seconds.append(time.perf_counter() - start)
        asker.transport.close()
    return seconds


async def per_second(target: Target, body: bytes, *, seconds: float) -> float:
    """How many requests are answered in a second, on several connections with one on its way on each.

    Raises :class:`LoadError` when one is refused.
    """
    async with asyncio.timeout(seconds + ASK_SECONDS):
        askers = [await _connect(target, body) for _ in range(CONNECTIONS)]
        start = time.perf_counter()
        for asker in askers:
            asker.go_on_until(start + seconds)
        await asyncio.gather(*(asker.done for asker in askers))
        elapsed = time.perf_counter() - start
    for asker in askers:
        asker.transport.close()
    return sum(asker.answers for asker in askers) / elapsed


async def _connect(target: Target, body: bytes) -> _Asker:
    request = target.head("application/json", len(body)) + body
    loop = asyncio.get_running_loop()
    _, asker = await loop.create_connection(lambda: _Asker(request), target.host, target.port)
    return asker


class _Asker(asyncio.Protocol):
    """One connection. A protocol and not a stream, which costs about as much as the server that it asks."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._answer = b""
        self._until = 0.0
        self.answers = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    async def ask(self) -> None:
        """One request, and the whole of its answer."""
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(self._request)
        await self.done

    def go_on_until(self, until: float) -> None:
        """Ask again as soon as an answer is there; ``done`` when the time has come."""
        self._until = until
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, content = self._answer.partition(b"\r\n\r\n")
        length = LENGTH.search(head) if end else None
        if length is None or len(content) < int(length[1]):
            return
        answer, self._answer = self._answer, b""
        self.answers += 1
        if b" 200 " not in answer[:16]:
            self._end(LoadError(f"a request was refused: {answer[:500]!r}"))
        elif time.perf_counter() < self._until:
            self.transport.write(self._request)
        else:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(LoadError(f"the connection was closed: {error!r}"))

    def _end(self, error: LoadError | None) -> None:
        if self.done.done():
            return
        if error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)
