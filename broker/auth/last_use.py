"""When each key was last used: noted at once in memory, written down a little later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import sqlalchemy as sa

from broker.errors import StoreUnavailable
from broker.observe import logs
from broker.state.database import Database
from broker.state.database import api_keys as table
from broker.state.uninterrupted import uninterrupted

EVERY_SECONDS = 10.0

_LATER = (
    sa.update(table)
    .where(table.c.id == sa.bindparam("key_id"))
    .where(sa.or_(table.c.last_used_at.is_(None), table.c.last_used_at < sa.bindparam("used_at")))
    .values(last_used_at=sa.bindparam("used_at"))
)
"""Another process may have seen the key later: its time stands."""


class LastUse:
    """The keys' last uses since they were last written. One for each key, so it stays small."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now
        self._times: dict[str, int] = {}
        self._has_failed = False

    def touch(self, key_id: str) -> None:
        """Note that a key is used now. Costs nothing but a look at the clock."""
        self._times[key_id] = int(self._now())

    async def flush(self) -> None:
        """Write down what was noted, all of it or nothing.

        Raises :class:`~broker.errors.StoreUnavailable`; what was noted is kept for the next time then.
        """
        times, self._times = self._times, {}
        if not times:
            return
        try:
            await self._write(times)
        except StoreUnavailable:
            self._times = {**times, **self._times}
            raise

    @asynccontextmanager
    async def written_behind(self, every_seconds: float = EVERY_SECONDS) -> AsyncIterator[None]:
        """While this is open, what was noted is written every so often, and once more at the end."""
        writer = asyncio.create_task(self._keep_writing(every_seconds))
        try:
            yield
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            await self._flush_or_tell()

    async def _keep_writing(self, every_seconds: float) -> None:
        while True:
            await asyncio.sleep(every_seconds)
            await self._flush_or_tell()

    async def _flush_or_tell(self) -> None:
        """Requests fail without the database too, and are logged: this is said once, not every time."""
        try:
            await self.flush()
        except StoreUnavailable as error:
            if not self._has_failed:
                logs.warning("the keys' last uses can't be written down", detail=error.log)
            self._has_failed = True
        else:
            self._has_failed = False

    @uninterrupted
    async def _write(self, times: dict[str, int]) -> None:
        """In the order of the ids: two processes that write at once don't wait for each other crosswise."""
        rows = [{"key_id": key_id, "used_at": used_at} for key_id, used_at in sorted(times.items())]
        async with self._database.transaction() as connection:
            await connection.execute(_LATER, rows)
