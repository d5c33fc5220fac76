"""Requests that may be sent twice and take effect once: a row for each, from its beginning to its answer.

The row is held by whoever began, on a lease that is renewed while the work goes on. Should a process die,
another may take the row over once the lease is out; not so when the last byte may have gone out before.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.errors import IdempotencyInProgress, IdempotencyKeyReused, StoreUnavailable
from broker.state.database import Database
from broker.state.database import idempotency as table
from broker.state.sweeping import Sweeping
from broker.state.uninterrupted import uninterrupted

State = Literal["running", "committing", "done", "unknown"]
"""``committing``: the last byte may be out, so it must not be done again."""

LEASE_SECONDS = 30
POLL_SECONDS = 0.2
RETRY_AFTER_SECONDS = 10
"""A client that lost its line asks again while its first request still holds the row, for half a minute."""


@dataclass(frozen=True)
class Earlier:
    """What became of the same request before. ``answer`` is None when nobody knows."""

    sha256: str
    answer: dict[str, Any] | None


@dataclass(frozen=True)
class Begun:
    """A request that is done for the first time; the handle of its row."""

    name: str
    owner: str


class IdempotencyRecords:
    """The rows. ``wait_seconds`` is how long ``begin`` waits for the same request to be over."""

    def __init__(
        self,
        database: Database,
        *,
        ttl_seconds: int,
        wait_seconds: float = 10.0,
        now: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._ttl_seconds = ttl_seconds
        self._wait_seconds = wait_seconds
        self._now = now
        self._sweeping = Sweeping(now, ticks)

    async def begin(self, name: str, fingerprint: str) -> Begun | Earlier:
        """Take the row ``name`` for a request that looks like ``fingerprint``, or learn what became of it.

        Raises :class:`IdempotencyKeyReused` when the row belongs to another request,
        :class:`IdempotencyInProgress` when the same one is still running after the wait.
        """
        give_up = asyncio.get_running_loop().time() + self._wait_seconds
        while True:
            found = await self._try_to_begin(name, fingerprint)
            if found is not None:
                return found
            if asyncio.get_running_loop().time() > give_up:
                raise IdempotencyInProgress(retry_after_seconds=RETRY_AFTER_SECONDS)
            await asyncio.sleep(POLL_SECONDS)

    async def renew(self, begun: Begun) -> None:
        """Hold the row for another lease."""
        await self._change(begun, lease_until=self._now() + LEASE_SECONDS)

    async def commit(self, begun: Begun, sha256: str) -> None:
        """Say that the last byte goes out now. Raises :class:`StoreUnavailable` when the row is lost."""
        lease_until = self._now() + LEASE_SECONDS
        if not await self._change(begun, state="committing", sha256=sha256, lease_until=lease_until):
            raise StoreUnavailable(log="the idempotency key was taken over: its lease had run out")

    async def finish(
        self, begun: Begun, answer: dict[str, Any] | None, *, ttl_seconds: int | None = None
    ) -> None:
        """Keep the answer, or that there is none and nobody knows; from here on it stays so, for as long as
        any row is kept or for ``ttl_seconds``.
        """
        state: State = "unknown" if answer is None else "done"
        expires_at = self._expiry() if ttl_seconds is None else int(self._now()) + ttl_seconds
        await self._change(begun, state=state, answer=answer, expires_at=expires_at)

    @uninterrupted
    async def forget(self, begun: Begun) -> None:
        """Nothing came of the request, so it may be sent again."""
        statement = sa.delete(table).where(table.c.name == begun.name, table.c.owner == begun.owner)
        async with self._database.transaction() as connection:
            await connection.execute(statement)

    async def _try_to_begin(self, name: str, fingerprint: str) -> Begun | Earlier | None:
        """None when the same request is running elsewhere."""
        begun = Begun(name, secrets.token_hex(16))
        try:
            if await self._insert(begun, fingerprint):
                return begun
        except asyncio.CancelledError:
            await self.forget(begun)  # nobody is left to hold it
            raise
        row = await self._row(name)
        if row is None:
            return None  # it was forgotten in this moment; try again
        if row["state"] != "running" and row["expires_at"] <= self._now():
            await self.forget(Begun(name, row["owner"]))
            return await self._try_to_begin(name, fingerprint)
        if row["fingerprint"] != fingerprint:
            raise IdempotencyKeyReused
        if row["state"] in ("done", "unknown"):
            return Earlier(row["sha256"], row["answer"])
        if row["lease_until"] > self._now():
            return None
        return await self._take_over(begun, row)

    @uninterrupted
    async def _insert(self, begun: Begun, fingerprint: str) -> bool:
        row = {
            "name": begun.name,
            "owner": begun.owner,
            "fingerprint": fingerprint,
            "state": "running",
            "lease_until": self._now() + LEASE_SECONDS,
            "expires_at": self._expiry(),
        }
        try:
            async with self._database.transaction() as connection:
                await self._sweep(connection)
                await connection.execute(sa.insert(table).values(row))
        except IntegrityError:
            return False
        return True

    @uninterrupted
    async def _row(self, name: str) -> Any:
        async with self._database.transaction() as connection:
            return (await connection.execute(sa.select(table).where(table.c.name == name))).mappings().first()

    async def _take_over(self, begun: Begun, row: Any) -> Begun | Earlier | None:
        """The row of somebody who died; of those who come for it one gets it."""
        left_open = row["state"] == "running"
        values = (
            {"owner": begun.owner, "lease_until": self._now() + LEASE_SECONDS}
            if left_open
            else {"state": "unknown"}
        )
        if not await self._change(Begun(row["name"], row["owner"]), **values):
            return None
        return begun if left_open else Earlier(row["sha256"], None)

    @uninterrupted
    async def _change(self, begun: Begun, **values: Any) -> bool:
        """Whether the row was still there, and still ours."""
        ours = (table.c.name == begun.name, table.c.owner == begun.owner)
        async with self._database.transaction() as connection:
            return (await connection.execute(sa.update(table).where(*ours).values(**values))).rowcount == 1

    def _expiry(self) -> int:
        return int(self._now()) + self._ttl_seconds

    async def _sweep(self, connection: AsyncConnection) -> None:
        before = self._sweeping.due()
        if before is not None:
            over = (table.c.expires_at < before, table.c.lease_until < before)
            await connection.execute(sa.delete(table).where(*over))
