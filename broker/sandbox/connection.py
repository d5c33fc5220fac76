"""The socket behind a request, for answers that are meant to fail: ASGI alone cannot reset it."""

import asyncio
import socket
import struct

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

EXTENSION = "coze.sandbox.connection"


class Connection:
    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def close(self) -> None:
        """Send what is buffered, then end the connection."""
        self._transport.close()

    def reset(self) -> None:
        """End the connection with RST: that is what closing with a linger time of zero does."""
        if not self._transport.is_closing():  # the client may have left before
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()


class ConnectionProtocol(HttpToolsProtocol):
    """uvicorn's own protocol; each request finds its connection among the ASGI extensions."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"connection": Connection(self.transport)}}


def connection_of(scope: Scope) -> Connection:
    connection: Connection = scope["extensions"][EXTENSION]["connection"]
    return connection
