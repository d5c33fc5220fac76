"""A line to a server that can be cut, muted, or lose what the server answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Weather = Literal["fair", "cut", "mute", "answers lost"]


class Line:
    """Passes on what comes at ``port`` to a server on this machine, as far as the weather lets it."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.weather: Weather = "fair"
        self._server_port = server_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._mended = asyncio.Event()

    def breaks(self, weather: Weather) -> None:
        """From now on it is so; what is connected is cut off when the line is."""
        self.weather = weather
        self._mended.clear()
        if weather == "cut":
            self._close_all()

    def mend(self) -> None:
        """All is well again, for those who connect anew."""
        self.weather = "fair"
        self._mended.set()
        self._close_all()

    def _close_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        if self.weather == "cut":
            writer.transport.abort()
            return
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers |= {writer, there}
        try:
            await asyncio.gather(
                self._pass_on(reader, there, "mute"), self._pass_on(there_reader, writer, "answers lost")
            )
        finally:
            self._writers -= {writer, there}
            writer.transport.abort()
            there.transport.abort()

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, lost: Weather
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                if self.weather in ("mute", lost):
                    await self._mended.wait()
                    return
                target.write(data)
                await target.drain()
        target.transport.abort()


@asynccontextmanager
async def line_to(server_port: int) -> AsyncIterator[Line]:
    """A line to the server at ``server_port``; cut at the end."""
    line = Line(server_port)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        line.breaks("cut")
        line._mended.set()
        server.close()
