"""The upstream of the benchmark: takes an upload as fast as it comes and answers as Coze would.

``python -m tests.bench.sink PORT``. It counts and forgets; a broker that sent a byte too few gets no answer.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import cast

import uvloop

TAIL_BYTES = 512
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
BOUNDARY = re.compile(rb"\r\ncontent-type: *multipart/form-data; *boundary=([^\r\n]+)", re.IGNORECASE)


class Sink(asyncio.Protocol):
    """One connection: request after request, each answered when its last byte is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._head = b""
        self._left = -1
        self._tail = b""

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            data = self._read_head(data)
            if self._left < 0:
                return
        self._left -= len(data)
        self._tail = data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else (self._tail + data)[-TAIL_BYTES:]
        if self._left <= 0:
            self._answer()

    def _read_head(self, data: bytes) -> bytes:
        """The head of the request, and of the form in it; what comes after is the file."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        form_end = self._head.find(b"\r\n\r\n", end + 4) if end >= 0 else -1
        length = LENGTH.search(self._head[: end + 2]) if end >= 0 else None
        if length is None:
            return b""
        boundary = BOUNDARY.search(self._head[: end + 2])
        if boundary and form_end < 0:
            return b""
        self._boundary = boundary[1] if boundary else b""
        start = form_end + 4 if boundary else end + 4
        self._left = self._file_and_end = int(length[1]) - (start - end - 4)
        self._tail = b""
        rest, self._head = self._head[start:], b""
        return rest

    def _answer(self) -> None:
        closing = self._tail.rfind(b"\r\n--" + self._boundary + b"--") if self._boundary else len(self._tail)
        size = self._file_and_end - (len(self._tail) - closing)
        self._left = -1
        data = {"id": "7000000000000000001", "bytes": size, "created_at": 1, "file_name": "a"}
        body = json.dumps({"code": 0, "msg": "", "data": data}).encode()
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )


async def serve(port: int) -> None:
    """Answer until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
