"""What the broker asks of a scanner. Another one is another class with these methods."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from broker.transfer.scanned import Scan


class Scanner(Protocol):
    """A scanner somewhere. No file that it could not look at is let through."""

    def scan(self) -> AbstractAsyncContextManager[Scan]:
        """Connect, for one file; whatever was opened is closed at the end of the block.

        Raises :class:`~broker.errors.ScannerUnavailable`. How long it may take is the caller's to say.
        """

    async def ping(self) -> None:
        """Return when the scanner lives and answers. Raises :class:`~broker.errors.ScannerUnavailable`."""
