"""ClamAV's daemon, spoken to in its INSTREAM protocol (``man clamd``).

``zINSTREAM`` and a NUL, then chunks, each after its length in four bytes, big-endian; a length of zero
ends the file, and one answer that ends in a NUL comes back. Written by hand because the libraries that
there are (clamd, clamav-client, aioclamd, pyvalve) read a file to its end before they look for an answer.

On plain sockets instead of asyncio's streams: clamd answers and closes in the midst of a file that is too
large for it, and a stream that fails to write throws the answer away, while the socket still has it.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from broker.errors import ContentRefused, NotScannable, ScannerUnavailable
from broker.transfer.pace import RETRY_AFTER_SECONDS

Address = str | tuple[str, int]
"""The path of a Unix socket, or host and port."""

MAX_REPLY_BYTES = 1024
PING_SECONDS = 2.0
_CLEAN = b"stream: OK\0"
_FOUND = re.compile(rb"stream: ([!-~][ -~]*) FOUND\0")
_TOO_LARGE = b"INSTREAM size limit exceeded. ERROR\0"
_BEYOND_ITS_LIMITS = b"Heuristics.Limits.Exceeded"
"""What clamd with ``AlertExceedsMax`` finds in a file that it looked at in part; without, it says OK."""


class Clamd:
    """A :class:`~broker.scanning.scanner.Scanner`."""

    def __init__(self, address: Address, *, max_bytes: int) -> None:
        self._address = address
        self._max_bytes = max_bytes

    @asynccontextmanager
    async def scan(self) -> AsyncIterator[InStream]:
        """Connect and begin."""
        with await _connect(self._address) as connection:
            stream = InStream(connection, self._max_bytes)
            await stream.begin()
            yield stream

    async def ping(self) -> None:
        """Returns within seconds."""
        try:
            async with asyncio.timeout(PING_SECONDS):
                with await _connect(self._address) as connection:
                    await _send(connection, b"zPING\0")
                    answer = await _reply(connection)
        except TimeoutError:
            raise _unavailable(f"no answer in {PING_SECONDS:g} s") from None
        if answer != b"PONG\0":
            raise _unavailable(f"answered {answer!r}")


class InStream:
    """A :class:`~broker.transfer.scanned.Scan`."""

    def __init__(self, connection: socket.socket, max_bytes: int) -> None:
        self._connection = connection
        self._max_bytes = max_bytes
        self._fed_bytes = 0

    async def begin(self) -> None:
        """Say that a file is coming."""
        if not await _send(self._connection, b"zINSTREAM\0"):
            await self._ended_early()

    async def feed(self, piece: bytes) -> None:
        """Send a chunk; returns once it is out, so that the file comes no faster than clamd takes it."""
        self._fed_bytes += len(piece)
        if self._fed_bytes > self._max_bytes:
            raise NotScannable(log=f"more than {self._max_bytes} bytes")
        chunk = len(piece).to_bytes(4, "big") + piece
        if not await _send(self._connection, chunk) or self._has_answered():
            await self._ended_early()

    async def verdict(self) -> None:
        """Say that this was all, and hear."""
        if self._has_answered() or not await _send(self._connection, b"\0\0\0\0"):
            await self._ended_early()
        _judge(await _reply(self._connection))

    def _has_answered(self) -> bool:
        """Whether there is something to read, be it the end."""
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    async def _ended_early(self) -> NoReturn:
        """clamd takes no more: what it said is why. Whatever it said, it has not seen the whole file."""
        _judge(await _reply(self._connection))
        raise _unavailable("called the file clean before its end")


async def _connect(address: Address) -> socket.socket:
    try:
        if isinstance(address, str):
            return await _connected(socket.AF_UNIX, address)
        return await _connected_to_first(*address)
    except OSError as error:
        raise _unavailable(f"can't be reached: {error}") from error


async def _connected_to_first(host: str, port: int) -> socket.socket:
    """Of all the addresses that a name stands for, the first that takes the connection."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    trouble = OSError("no address")
    for family, _, _, _, address in found:
        try:
            return await _connected(family, address)
        except OSError as error:
            trouble = error
    raise trouble


async def _connected(family: int, address: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        if family != socket.AF_UNIX:  # else the file's end would wait for the last chunk's acknowledgement
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


async def _send(connection: socket.socket, data: bytes) -> bool:
    """Whether it went out; if not, the answer tells more than the error does."""
    try:
        await asyncio.get_running_loop().sock_sendall(connection, data)
    except OSError:
        return False
    return True


async def _reply(connection: socket.socket) -> bytes:
    """One answer, with the NUL that ends it."""
    loop, reply = asyncio.get_running_loop(), b""
    try:
        while b"\0" not in reply and len(reply) <= MAX_REPLY_BYTES:
            more = await loop.sock_recv(connection, MAX_REPLY_BYTES)
            if not more:
                raise _unavailable(f"closed the connection after {reply!r}")
            reply += more
    except OSError as error:
        raise _unavailable(f"broke the connection: {error}") from error
    return reply


def _judge(reply: bytes) -> None:
    """Clean is what clamd calls so in exactly these words."""
    if reply == _CLEAN:
        return
    found = _FOUND.fullmatch(reply)
    if reply == _TOO_LARGE or (found and found[1].startswith(_BEYOND_ITS_LIMITS)):
        raise NotScannable(log=f"clamd answered {reply!r}")
    if found:
        raise ContentRefused(log=f"clamd found {found[1].decode()}")
    raise _unavailable(f"answered {reply[:200]!r}")


def _unavailable(what_it_did: str) -> ScannerUnavailable:
    return ScannerUnavailable(log=f"clamd {what_it_did}", retry_after_seconds=RETRY_AFTER_SECONDS)
