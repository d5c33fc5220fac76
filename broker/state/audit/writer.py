"""The audit as the running broker writes it: many rows in one transaction, never in an upload's way.

While the database takes no rows, whoever must not act unseen is refused at once, and what was done all the
same goes to a file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.errors import AuditUnavailable, StoreUnavailable
from broker.observe import logs, snapshot
from broker.state.audit.backlog import Backlog, Taken
from broker.state.audit.log import Abandoned, AuditLog, Batch, Stretch
from broker.state.audit.row import AuditRow
from broker.state.audit.spooling import BATCH_ROWS, Spooling

RECORD_SECONDS = 3.0
"""A disk that is busy takes its time; only a database that takes no rows at all is to close the mint."""
PROBE_SECONDS = 0.5
SPOOL_SECONDS = 0.1
NOTE_SECONDS = 0.1
"""How long a row that nobody waits for may wait for others."""
REPLAY_PAUSE_SECONDS = 0.01
"""So that others get at the database, too."""
MAX_FAILED_REPLAYS = 5
"""In turn, though the database takes rows: then it is the file that is wrong, and it keeps nobody out."""
CLOSE_SECONDS = 5.0
LOG_HEAD_SECONDS = 600.0

Result = TypeVar("Result")


class Audit:
    """Takes rows from everywhere in the process and writes them, in one task.

    ``folder`` is for rows that the database did not take; they may take ``spool_bytes`` there. A batch that
    the database has not taken after ``record_seconds`` counts as not written.
    """

    def __init__(
        self, log: AuditLog, folder: Path, *, spool_bytes: int, record_seconds: float = RECORD_SECONDS
    ) -> None:
        self._log = log
        self._record_seconds = record_seconds
        self._backlog = Backlog()
        self._spooling = Spooling(folder, spool_bytes)
        self._works = False
        self._trouble = "not opened yet"
        self._is_told = False
        """Whether the log has a line on what is wrong."""
        self._is_closing = False
        self._called = asyncio.Event()
        """Something came."""
        self._urged = asyncio.Event()
        """Something came that should not wait for others."""
        self._under_way = 0
        self._stray: asyncio.Task[Any] | None = None
        """A batch that was given up and is still on its way."""
        self._task: asyncio.Task[None] | None = None
        self._failed_replays = 0
        self._log_head_at = 0.0

    @property
    def waiting(self) -> int:
        """How many rows are in memory, those that are being written too."""
        return len(self._backlog) + self._under_way

    @property
    def spooled_bytes(self) -> int:
        """How much is in files."""
        return self._spooling.size

    # --- what others call -------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take over what processes that died left behind, and start to write."""
        snapshot.count("audit_rows_waiting", lambda: self.waiting)
        snapshot.count("audit_spooled_bytes", lambda: self.spooled_bytes)
        await self._spooling.adopt()
        await self._probe()
        self._task = asyncio.create_task(self._run())

    async def record(self, row: AuditRow) -> None:
        """Write a row; when this returns, it is in the database.

        Raises :class:`AuditUnavailable` within twice ``record_seconds`` when it can't be written, and at once
        when the one before could not. What the row tells of must not be done then.
        """
        if not self._works or self._is_closing:
            raise AuditUnavailable(log=self._trouble)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._backlog.records.append((row.values(), written))
        self._called.set()
        self._urged.set()
        await written

    async def append_within(self, connection: AsyncConnection, row: AuditRow) -> None:
        """Write a row in a transaction of the caller's, as the last that it does."""
        await self._log.append_within(connection, row)

    def note(self, row: AuditRow) -> None:
        """Have a row written soon. Never waits, never raises: a row that there is no room for is counted."""
        try:
            self._backlog.note(row.values(), is_refusal=row.is_refusal)
            if self._task is not None and self._task.done():
                self._spool_the_rest()  # a straggler, after the end
            self._called.set()
            if len(self._backlog) >= BATCH_ROWS:
                self._urged.set()
        except Exception as error:
            logs.unexpected(error)

    async def ping(self) -> None:
        """Raise :class:`AuditUnavailable` while rows can't be written."""
        if not self._works:
            raise AuditUnavailable(log=self._trouble)

    async def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Write what waits, ``seconds`` at the most, and spool the rest, and what is noted later, too."""
        self._is_closing = True
        self._called.set()
        self._urged.set()
        if self._task is None:
            self._spool_the_rest()
            return
        done, _ = await asyncio.wait([self._task], timeout=seconds)
        if not done:
            self._works, self._trouble = False, "closing"
            await asyncio.wait([self._task], timeout=2 * self._record_seconds)
        self._log_head()

    # --- the task ---------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._is_closing:
                await self._step()
            while self._works and self._backlog:
                await self._write()
        finally:
            self._works, self._trouble = False, "closed"
            self._spool_the_rest()

    async def _step(self) -> None:
        try:
            await (self._work() if self._works else self._wait_for_better())
        except Exception as error:  # whatever it is, callers must not wait for a writer that is gone
            self._works, self._trouble = False, type(error).__name__
            logs.unexpected(error)
            await asyncio.sleep(PROBE_SECONDS)

    async def _work(self) -> None:
        if not self._backlog:
            self._called.clear()
            self._urged.clear()
        if not self._backlog and not self._spooling.is_waiting and not self._is_closing:
            await self._called.wait()
        await self._gather()
        if self._backlog:
            await self._write()
        if self._works and self._spooling.is_waiting and not self._is_closing:
            await self._replay()
            await asyncio.sleep(REPLAY_PAUSE_SECONDS)

    async def _gather(self) -> None:
        """Let more rows come while nobody waits. Rows that are waited for gather while others are written."""
        if not self._backlog.is_waited_for and not self._spooling.is_waiting and not self._is_closing:
            await _within(NOTE_SECONDS, self._urged)

    async def _write(self) -> None:
        self._backlog.tell_lost()
        taken = self._backlog.take(BATCH_ROWS)
        self._urged.clear()
        batch = Batch(taken.rows)
        if not batch.rows:
            return
        self._under_way = len(batch.rows)
        try:
            await self._bounded(self._log.append(batch), batch)
        except StoreUnavailable as error:
            await self._give_up(taken, batch, error)
            return
        except BaseException:
            self._backlog.refuse(taken.records, self._trouble)  # nobody must wait for what never comes
            raise
        finally:
            self._under_way = 0
        for _, written in taken.records:
            if not written.done():
                written.set_result(None)
        if time.monotonic() >= self._log_head_at:
            self._log_head()

    async def _bounded(self, work: Coroutine[Any, Any, Result], batch: Batch | None = None) -> Result:
        """What ``work`` gives. Raises :class:`StoreUnavailable`, also when that takes too long."""
        task = asyncio.ensure_future(work)
        await asyncio.wait([task], timeout=self._record_seconds)
        if not task.done():
            if batch is not None:
                batch.is_abandoned = True
            self._stray = task
            task.add_done_callback(_hear)
            raise StoreUnavailable(log=f"no answer within {self._record_seconds} seconds")
        error = task.exception()
        if error is None or isinstance(error, StoreUnavailable | Abandoned):
            return task.result()
        if isinstance(error, Exception) and self._works:
            logs.unexpected(error)
        raise StoreUnavailable(log=f"{type(error).__name__}: {error}") from error

    async def _give_up(self, taken: Taken, batch: Batch, error: StoreUnavailable) -> None:
        """Those who wait hear of it; the rest goes to the file."""
        self._works, self._trouble = False, error.log or error.detail
        self._backlog.refuse(taken.records, self._trouble)
        if batch.attempted is None:
            self._backlog.put_back(taken)
            return
        # They may be in the database all the same; whoever replays them looks.
        rows = [*taken.notes, *taken.refusals]
        added = await asyncio.to_thread(self._spooling.add, rows, unless=batch.attempted)
        self._backlog.lose(rows=len(rows) - added)

    async def _wait_for_better(self) -> None:
        if not self._is_told:
            self._is_told = True
            logs.warning("the audit can't be written", detail=self._trouble)
        self._backlog.refuse((), self._trouble)
        await self._spooling.take_from(self._backlog)
        if self._stray is not None and not self._stray.done():
            await asyncio.wait([self._stray], timeout=SPOOL_SECONDS)
            return
        await self._probe()
        give_up = time.monotonic() + PROBE_SECONDS
        while not self._works and not self._is_closing and time.monotonic() < give_up:
            await asyncio.sleep(SPOOL_SECONDS)
            await self._spooling.take_from(self._backlog)

    async def _probe(self) -> None:
        """Try to write; when it works, go on."""
        batch = Batch([])
        try:
            await self._bounded(self._log.append(batch), batch)
        except StoreUnavailable as error:
            self._trouble = error.log or error.detail
            return
        self._spooling.turn()
        self._works, self._is_told = True, False
        logs.info("the audit is written", head=str(self._log.head), spooled_bytes=self.spooled_bytes)

    # --- what was spooled -------------------------------------------------------------------------------

    async def _replay(self) -> None:
        """Write one batch of what was spooled, once."""
        try:
            await self._replay_batch()
        except Abandoned:
            self._spooling.start_over()
        except StoreUnavailable as error:
            self._works, self._trouble = False, error.log or error.detail
            self._failed_replays += 1
            if self._failed_replays < MAX_FAILED_REPLAYS:
                self._spooling.start_over()
            else:
                logs.warning("spooled audit rows can't be written", file=self._spooling.skip())
        except OSError as error:
            logs.warning("spooled audit rows can't be read", detail=str(error))
            self._spooling.skip()

    async def _replay_batch(self) -> None:
        spooling = self._spooling
        name = spooling.current.name
        after = 0 if spooling.has_begun else await self._bounded(self._log.spooled_lines(name))
        found = await asyncio.to_thread(spooling.next_batch, after)
        if found is None:
            await asyncio.to_thread(spooling.finish)
            await self._bounded(self._log.forget_spool(name))
            return
        rows = found.rows if found.rows is not None else [_unreadable(name, found.number).values()]
        batch = Batch(rows, Stretch(name, found.number, found.number + 1), found.unless)
        await self._bounded(self._log.append(batch), batch)
        self._failed_replays = 0

    def _spool_the_rest(self) -> None:
        """At the end, and after it. Blocks."""
        backlog, spooling = self._backlog, self._spooling
        backlog.refuse((), self._trouble)
        backlog.tell_lost()
        spooling.take_last_from(backlog)
        if backlog:
            backlog.lose_all()
            backlog.tell_lost()
            spooling.add_last_words(backlog.notes.popleft())
        spooling.close()

    def _log_head(self) -> None:
        """Who takes away the newest rows takes the head with them; the log is kept elsewhere."""
        self._log_head_at = time.monotonic() + LOG_HEAD_SECONDS
        if self._log.head is not None:
            logs.info("audit head", head=str(self._log.head))


async def _within(seconds: float, event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _hear(task: asyncio.Task[Any]) -> None:
    """Nobody waits for it any more."""
    if not task.cancelled():
        task.exception()


def _unreadable(name: str, line: int) -> AuditRow:
    return AuditRow(action="audit.gap", result="unreadable", detail={"file": name, "line": line})
