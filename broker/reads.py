"""How much is read from a connection at once.

A transport of uvloop reads up to 256 KB whenever it can, also for uploads that wait their turn: of a thousand
of them that is a quarter of a gigabyte. Here the pieces grow with the file.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

FULL_BYTES = 512 * 1024
# The pieces that a reader has taken as they came, and how much it may read next. The first piece is asked
# for to learn a file's name; once a second was taken, the file is being passed on.
STEPS = ((0, 16 * 1024), (2, 128 * 1024), (10, FULL_BYTES))
STARTING_PIECES = STEPS[1][0]


def next_bytes(taken_pieces: int) -> int:
    """How much to read at once for a reader that keeps up; for one that doesn't, ask with 0."""
    return next(size for pieces, size in reversed(STEPS) if taken_pieces >= pieces)


class Reader(Protocol):
    """A protocol that says how much it would take next."""

    @property
    def read_bytes(self) -> int:
        """At most :data:`FULL_BYTES`."""

    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class MeasuredReads(asyncio.BufferedProtocol):
    """Stands between a transport and a reader, and passes everything on.

    ``buffer`` may be shared by all connections of one event loop: what was read is taken out at once.
    """

    def __init__(self, reader: Reader, buffer: memoryview) -> None:
        self._reader = reader
        self._buffer = buffer

    def get_buffer(self, _: int) -> memoryview:
        return self._buffer[: self._reader.read_bytes]

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.data_received(self._buffer[:nbytes].tobytes())

    def eof_received(self) -> bool | None:
        return self._reader.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.connection_lost(exc)

    def pause_writing(self) -> None:
        self._reader.pause_writing()

    def resume_writing(self) -> None:
        self._reader.resume_writing()
