"""The spooled files of one process: the one that it writes, and those that are to be replayed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from broker.observe import logs
from broker.state.audit.backlog import Backlog, drop, first
from broker.state.audit.chain import Head
from broker.state.audit.row import AuditRow, Values
from broker.state.audit.spool import Spool, SpooledBatch

BATCH_ROWS = 128
REFUSALS_SHARE = 0.5
LAST_WORDS_BYTES = 4096
"""What a file may grow beyond its bound, so that it can say that it is full."""


class Spooling:
    """Where rows go while the database takes none. ``max_bytes`` bounds all files of this process together;
    refusals may have half of it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._open: Spool | None = None
        self._closed: list[Spool] = []
        """To be replayed, the oldest first."""
        self._batches: Iterator[SpooledBatch] | None = None
        self._is_full = False
        self._is_told = False
        """Whether the log has a line on what keeps rows from the file."""

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to replay."""
        return bool(self._closed)

    @property
    def size(self) -> int:
        """In bytes, all files together."""
        return sum(spool.size for spool in (*self._closed, *([self._open] if self._open else [])))

    async def adopt(self) -> None:
        """Take over what processes that died left in the folder."""
        try:
            self._closed += await asyncio.to_thread(Spool.adopt_all, self._folder)
        except OSError as error:
            logs.warning("spooled audit rows can't be read", detail=str(error))

    async def take_from(self, backlog: Backlog) -> None:
        """Put what waits into the file, as far as it fits; the rest stays where it is."""
        for queue, share in _shares(backlog):
            while rows := first(queue, BATCH_ROWS):
                added = await asyncio.to_thread(self.add, rows, share=share)
                drop(queue, added)
                if added < len(rows):
                    break

    def take_last_from(self, backlog: Backlog) -> None:
        """The same at the end, when nothing may come in between. Blocks."""
        for queue, share in _shares(backlog):
            while rows := first(queue, BATCH_ROWS):
                added = self.add(rows, share=share)
                drop(queue, added)
                if added < len(rows):
                    break

    def add(self, rows: Sequence[Values], *, unless: Head | None = None, share: float = 1.0) -> int:
        """Put rows into the file, as one batch; how many fitted, or could be written at all. Blocks."""
        if not rows or self._is_full:
            return 0
        try:
            if self._open is None:
                self._open = Spool.make(self._folder)
            room = int(self._max_bytes * share) - self.size
            added = self._open.add(rows, max_bytes=self._open.size + room, unless=unless)
            if added < len(rows) and share == 1.0:
                self._is_full = True
                self.add_last_words(AuditRow(action="audit.gap", result="spool_full").values())
        except OSError as error:
            if not self._is_told:
                self._is_told = True
                logs.warning("audit rows can't be spooled", detail=str(error))
            return 0
        return added

    def add_last_words(self, row: Values) -> None:
        """Say why rows are missing, also in a file that is full. Blocks; raises ``OSError``."""
        if self._open is None:
            self._open = Spool.make(self._folder)
        self._open.add([row], max_bytes=self._open.size + LAST_WORDS_BYTES)

    def turn(self) -> None:
        """The database takes rows again: what was written is to be replayed."""
        if self._open is not None:
            self._closed.append(self._open)
        self._open, self._is_full, self._is_told = None, False, False

    @property
    def current(self) -> Spool:
        """The file that is being replayed."""
        return self._closed[0]

    def next_batch(self, after: int) -> SpooledBatch | None:
        """The next of the current file, None at its end; the first is that of line ``after``. Blocks."""
        if self._batches is None:
            self._batches = self.current.batches(after)
        return next(self._batches, None)

    @property
    def has_begun(self) -> bool:
        """Whether the current file is being read."""
        return self._batches is not None

    def start_over(self) -> None:
        """Read the current file again from where the database says."""
        self._batches = None

    def finish(self) -> None:
        """All of the current file is in the database. Blocks."""
        self._batches = None
        self._closed.pop(0).remove()

    def skip(self) -> str:
        """The current file is of no use; it stays where it is, and this is its name."""
        self._batches = None
        spool = self._closed.pop(0)
        spool.close()
        return spool.name

    def close(self) -> None:
        """Let go of all files; what is in them is replayed by whoever comes next. Blocks."""
        self.turn()
        self._batches = None
        while self._closed:
            self._closed.pop().close()


def _shares(backlog: Backlog) -> tuple[tuple[deque[Values], float], ...]:
    return (backlog.notes, 1.0), (backlog.refusals, REFUSALS_SHARE)
