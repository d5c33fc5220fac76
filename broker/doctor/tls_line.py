"""TLS over a connection that is open already, step by step: one that ends in the handshake is told as such
(asyncio's own ``start_tls`` waits on), and TLS within a proxy's TLS is no different from any other.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeVar

from broker.doctor.connecting import Stream

Result = TypeVar("Result")
PIECE = 65_536


class TlsLine:
    """A client's end of TLS; its certificate is checked as ``context`` says."""

    def __init__(self, stream: Stream, context: ssl.SSLContext, host: str) -> None:
        self._reader, self._writer = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    async def handshake(self) -> None:
        """Raises ``ssl.SSLError``, or ``ConnectionError`` when the other side leaves."""
        await self._drive(self.tls.do_handshake)

    async def write(self, data: bytes) -> None:
        await self._drive(lambda: self.tls.write(data))

    async def read(self) -> bytes:
        """What comes next."""
        return await self._drive(lambda: self.tls.read(PIECE))

    async def _drive(self, step: Callable[[], Result]) -> Result:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
            else:
                await self._flush()
                return result
            data = await self._reader.read(PIECE)
            if not data:
                raise ConnectionAbortedError("the other side has left")
            self._incoming.write(data)

    async def _flush(self) -> None:
        if self._outgoing.pending:
            self._writer.write(self._outgoing.read())
            await self._writer.drain()
