"""A file on its way past a scanner: every byte is looked at, and the last ones wait for the verdict."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

from broker.transfer.pace import Pace


class Scan(Protocol):
    """A scanner's look at one file."""

    async def feed(self, piece: bytes) -> None:
        """Show it the next bytes. May raise already what ``verdict`` would."""

    async def verdict(self) -> None:
        """Return if the file, which is whole now, is clean.

        Raises :class:`~broker.errors.ContentRefused` if it is not,
        :class:`~broker.errors.NotScannable` if the scanner can't tell from this file, and
        :class:`~broker.errors.ScannerUnavailable` if it can't tell now.
        """


async def scanned(pieces: AsyncIterator[bytes], scan: Scan, pace: Pace) -> AsyncGenerator[bytes]:
    """The pieces of a file, each one once the scan has it, the last one once the scan calls the file clean.

    So whoever takes them never has the whole of a file that is refused.
    """
    held = b""
    async for piece in pieces:
        pace.wait_for("scanner")
        await scan.feed(piece)
        pace.wait_for("client")
        if held:
            yield held
        held = piece
    pace.wait_for("scanner")
    await scan.verdict()
    yield held
